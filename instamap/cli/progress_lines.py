"""Progress for programs, as JSON lines on standard error; and for nobody."""

import json
import time
from types import TracebackType
from typing import Any

from instamap.cli.terminal import tell
from instamap.progress import Evaluation, Progress

SHORTEST_TIME = 1e-9  # seconds, by which a rate is divided
MIN_SECONDS = 1.0  # between two lines of one count


class QuietProgress(Progress):
    """A context in which nothing is told but what goes wrong."""

    def __enter__(self) -> "QuietProgress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing is left to tell."""


class ProgressLines(QuietProgress):
    """A context in which each event is one JSON object in a line of its own.

    event: "message" (text), "progress" (what, done, total) or "evaluation" (fit, step, steps, loss,
    held_out, gain: over the fit's first evaluation, best). The last two have rate, per second, and
    seconds_left at most, None where no rate is known.
    """

    def __init__(self, introduction: list[str]) -> None:
        self._introduction = introduction
        self._starts: dict[str, float] = {}
        self._told: dict[str, float] = {}
        self._first: dict[str, float] = {}

    def message(self, line: str) -> None:
        self._tell({"event": "message", "text": line})

    def images_read(self, done: int, total: int) -> None:
        self.counted("images", done, total)

    def counted(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        start = self._starts.setdefault(what, now)
        last = self._told.get(what)
        if last is not None and now - last < MIN_SECONDS and done < total:
            return
        self._told[what] = now
        rate = done / max(now - start, SHORTEST_TIME) if now > start else 0.0
        event = {"event": "progress", "what": what, "done": done, "total": total}
        self._tell({**event, **_pace(rate, total - done)})

    def evaluated(self, fit: str, evaluation: Evaluation, steps: int) -> None:
        first = self._first.setdefault(fit, evaluation.held_out)
        rate = evaluation.step / max(evaluation.seconds, SHORTEST_TIME)
        event = {
            "event": "evaluation",
            "fit": fit,
            "step": evaluation.step,
            "steps": steps,
            "loss": evaluation.loss,
            "held_out": evaluation.held_out,
            "gain": evaluation.held_out - first,
            "best": evaluation.best,
        }
        self._tell({**event, **_pace(rate, steps - evaluation.step)})

    def _tell(self, event: dict[str, Any]) -> None:
        lines = self._introduction
        self._introduction = []
        for line in lines:
            self.message(line)
        tell(json.dumps(event))


def _pace(rate: float, left: int) -> dict[str, float | None]:
    """How many a second, and the seconds that the rest takes at most."""
    seconds = max(left, 0) / rate if rate else None
    return {
        "rate": round(rate, 3),
        "seconds_left": None if seconds is None else round(seconds, 1),
    }
