"""Progress on standard error: live bars on a terminal, elsewhere one plain line at the end of each
stage.
"""

import itertools
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from instamap.fit.loop import Look

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


class Stages:
    """A context in which images are read, then maps are fitted, some side by side. The fits of one
    set, which is the first word of a fit's name, come one after the other: one ends where the next
    begins.
    """

    def __init__(self):
        self.console = Console(stderr=True)
        self._bars = Progress(*COLUMNS, console=self.console) if self.console.is_terminal else None
        self._tasks: dict[str, int] = {}
        self._looks: dict[
            str, tuple[str, list[Look]]
        ] = {}  # by set: the fit under way, and its looks
        self._start = time.monotonic()

    def __enter__(self) -> "Stages":
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, kind, *exception) -> None:
        if kind is None:
            for fit in self._looks.values():
                self._end(*fit)
        if self._bars:
            self._bars.stop()

    def say(self, line: str) -> None:
        """A line, above the bars where there are any."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def read(self, done: int, total: int) -> None:
        """`done` of `total` images have been read."""
        self._images("read", "read", done, total)

    def simulate(self, done: int, total: int) -> None:
        """`done` of `total` images have been simulated."""
        self._images("images", "simulated", done, total)

    def _images(self, name: str, verb: str, done: int, total: int) -> None:
        seconds = max(time.monotonic() - self._start, 1e-9)
        self._show(name, done, total, f"{done / seconds:.0f} images/s", "")
        if done == total and not self._bars:
            self.say(f"{verb} {total} images in {seconds:.1f} s")

    def counter(self, name: str, total: int) -> Callable[[], None]:
        """What is called when one more of `total` things, together called `name`, is done."""
        start = time.monotonic()
        done = itertools.count(1)

        def one_more() -> None:
            number = next(done)
            seconds = max(time.monotonic() - start, 1e-9)
            self._show(name, number, total, f"{number / seconds:.1f}/s", "")
            if number == total and not self._bars:
                self.say(f"{total} {name} in {seconds:.1f} s")

        return one_more

    def look(self, name: str, look: Look, steps: int) -> None:
        """The fit called `name`, of `steps` at most, was looked at."""
        one = name.split()[0]
        if one in self._looks and self._looks[one][0] != name:
            self._end(*self._looks.pop(one))
        looks = self._looks.setdefault(one, (name, []))[1]
        looks.append(look)
        rate = f"{look.step / max(look.seconds, 1e-9):.1f} steps/s"
        self._show(name, look.step, max(steps, look.step), rate, f"held-out {look.held_out:+.4g}")

    def _show(self, name: str, done: int, total: int, rate: str, state: str) -> None:
        if self._bars is None:
            return
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total, rate="", state="")
        self._bars.update(self._tasks[name], completed=done, total=total, rate=rate, state=state)

    def _end(self, name: str, looks: list[Look]) -> None:
        """A fit is over: most stop before their last step."""
        if self._bars:
            self._bars.update(self._tasks[name], total=looks[-1].step)
        else:
            best = max(looks, key=lambda look: look.held_out)
            self.say(
                f"{name}: {looks[-1].step} steps in {looks[-1].seconds:.1f} s, best at step"
                f" {best.step}"
            )
