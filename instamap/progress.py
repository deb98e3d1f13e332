"""Progress: what a procedure tells of itself while it runs, and where it keeps what it has done."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Evaluation:
    """The held-out likelihood of a fit at one of its steps.

    loss: nats per fitted image. held_out: nats per held-out image beyond an empty map. best:
    whether it is the highest so far. seconds: since the fit began. stage: of the fit, counted from
    1.
    """

    step: int
    loss: float
    held_out: float
    best: bool
    seconds: float
    stage: int = 1


class Progress:
    """A listener that does nothing; override what is to be shown.

    Fits run in threads of their own: each method is called by one of them at a time.
    """

    def message(self, line: str) -> None:
        """Tells one line for a person to read."""

    def images_read(self, done: int, total: int) -> None:
        """Tells how many of the images have been read: none, where a pass over them begins."""

    def evaluated(self, fit: str, evaluation: Evaluation, steps: int) -> None:
        """Tells of an evaluation of a fit of at most so many steps.

        fit: its name; the first word is the set that is fitted: "half1", "half1 bend", "half1 round
        2".
        """

    def counted(self, what: str, done: int, total: int) -> None:
        """Tells how many of other things (maps, frames, simulated images) are done."""

    def kept(self, what: str) -> Path | None:
        """The file in which a step called `what` keeps its state, so that a stopped run goes on.

        It is there where the step has kept something before. None: nothing is to be kept. Steps of
        one name are told apart by their order.
        """
        return None


class ForwardingProgress(Progress):
    """A listener that passes all it is told to another; override what else it does."""

    def __init__(self, listener: Progress) -> None:
        self._listener = listener

    def message(self, line: str) -> None:
        self._listener.message(line)

    def images_read(self, done: int, total: int) -> None:
        self._listener.images_read(done, total)

    def evaluated(self, fit: str, evaluation: Evaluation, steps: int) -> None:
        self._listener.evaluated(fit, evaluation, steps)

    def counted(self, what: str, done: int, total: int) -> None:
        self._listener.counted(what, done, total)

    def kept(self, what: str) -> Path | None:
        return self._listener.kept(what)


SILENT = Progress()
