"""Progress on standard error: live bars on a terminal, elsewhere a plain line at each end."""

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from instamap.files import escaped
from instamap.progress import Evaluation, Progress

# All of it fits into the 80 columns of a usual terminal: what does not is cut off.
COLUMNS = (
    TextColumn("{task.description:6}"),
    BarColumn(4),
    TextColumn("{task.completed:.0f}/{task.total:.0f}"),
    TextColumn("{task.fields[rate]}"),
    TextColumn("≤"),
    TimeRemainingColumn(),
    TextColumn("{task.fields[state]}"),
)
SHORTEST_TIME = 1e-9  # seconds, by which a rate is divided


class ProgressBars(Progress):
    """A context in which images are read, then maps are fitted, some side by side.

    The fits of one set, which is the first word of a fit's name, come one after the other: one ends
    where the next begins. introduction: lines that come before anything else is told, so that a
    refusal of what is read stands alone.
    """

    def __init__(self, introduction: Sequence[str] = ()) -> None:
        self._introduction = list(introduction)
        self.console = Console(stderr=True)
        self._bars = Bars(*COLUMNS, console=self.console) if self.console.is_terminal else None
        self._tasks: dict[str, TaskID] = {}
        # by set: the fit under way, and its evaluations
        self._fits: dict[str, tuple[str, list[Evaluation]]] = {}
        self._start = time.monotonic()
        self._starts: dict[str, float] = {}

    def __enter__(self) -> "ProgressBars":
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            for name, evaluations in self._fits.values():
                self._end(name, evaluations)
        if self._bars:
            self._bars.stop()

    def message(self, line: str) -> None:
        """Prints a line, above the bars where there are any."""
        self._introduce()
        self._print(line)

    def _introduce(self) -> None:
        lines = self._introduction
        self._introduction = []
        for line in lines:
            self._print(line)

    def _print(self, line: str) -> None:
        self.console.print(escaped(line), highlight=False, markup=False, soft_wrap=True)

    def images_read(self, done: int, total: int) -> None:
        if not done:
            self._starts["read"] = time.monotonic()
        seconds = max(time.monotonic() - self._starts.get("read", self._start), SHORTEST_TIME)
        self._show("read", done, total, f"{done / seconds:.0f} images/s", "")
        if done == total and not self._bars:
            self.message(f"read {total} images in {seconds:.1f} s")

    def counted(self, what: str, done: int, total: int) -> None:
        start = self._starts.setdefault(what, time.monotonic() if done else self._start)
        seconds = max(time.monotonic() - start, SHORTEST_TIME)
        self._show(what, done, total, f"{done / seconds:.1f}/s", "")
        if done == total and not self._bars:
            self.message(f"{total} {what} in {seconds:.1f} s")

    def evaluated(self, fit: str, evaluation: Evaluation, steps: int) -> None:
        group = fit.split()[0]
        if group in self._fits and self._is_another(group, fit, evaluation):
            self._end(*self._fits.pop(group))
        evaluations = self._fits.setdefault(group, (fit, []))[1]
        evaluations.append(evaluation)
        rate = f"{evaluation.step / max(evaluation.seconds, SHORTEST_TIME):.1f} steps/s"
        state = f"held-out {evaluation.held_out:+.4g}"
        self._show(fit, evaluation.step, max(steps, evaluation.step), rate, state)

    def _is_another(self, group: str, fit: str, evaluation: Evaluation) -> bool:
        """Whether the evaluation is not of the set's fit under way: fits of one name may follow
        each other, and each begins at its first step.
        """
        name, evaluations = self._fits[group]
        return name != fit or evaluation.step <= evaluations[-1].step

    def _show(self, name: str, done: int, total: int, rate: str, state: str) -> None:
        self._introduce()
        if self._bars is None:
            return
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total, rate="", state="")
        task = self._tasks[name]
        self._bars.update(task, completed=done, total=total, rate=rate, state=state)

    def _end(self, name: str, evaluations: list[Evaluation]) -> None:
        """Shows that a fit is over: most stop before their last step."""
        last = evaluations[-1]
        if self._bars:
            self._bars.update(self._tasks[name], total=last.step)
            return
        best = max(evaluations, key=lambda one: one.held_out)
        self.message(f"{name}: {last.step} steps in {last.seconds:.1f} s, best at step {best.step}")
