"""The most memory a process and those that it started held at once, watched from a thread.

Two numbers, since they answer two questions. `rss` is all that was resident. `anonymous` leaves out
the pages of mapped files (RssFile): image stacks are mapped, their pages are the system's cache and
are dropped as soon as another program wants the room, so with much free memory `rss` grows with the
file and says nothing of what the program needs. Programs that read instead of mapping keep the same
cache, but it is not counted as theirs: compare `anonymous`.
"""

import threading
from pathlib import Path

INTERVAL = 0.02  # seconds; a peak that lasts less can be missed


class Memory:
    """A context in which the peaks of process `pid` and of all its descendants together are
    watched; rss and anonymous in bytes, None where the system has no /proc.

    Pages that two of them share count twice.
    """

    def __init__(self, pid: int | str = "self"):
        self.rss: int | None = None
        self.anonymous: int | None = None
        self._process = Path(f"/proc/{pid}")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Memory":
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL):
            self._look()

    def _look(self) -> None:
        sizes = [_sizes(process) for process in _tree(self._process)]
        known = [size for size in sizes if "RssAnon" in size]
        if known:
            rss = sum(size["VmRSS"] for size in known)
            anonymous = sum(size["RssAnon"] + size["RssShmem"] for size in known)
            self.rss = max(self.rss or 0, rss)
            self.anonymous = max(self.anonymous or 0, anonymous)


def _tree(process: Path) -> list[Path]:
    """The folders in /proc of a process and of its descendants, as far as they still run."""
    found = [process]
    for one in found:  # grows meanwhile
        for children in one.glob("task/*/children"):
            found += [process.parent / pid for pid in _text(children).split()]
    return found


def _sizes(process: Path) -> dict[str, int]:
    """Bytes by the name that the system gives them; none of a process that has ended."""
    lines = _text(process / "status").splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name: 1024 * int(rest.split()[0]) for name, _, rest in pairs if rest.endswith("kB")}


def _text(file: Path) -> str:
    """What is in the file, nothing where there is no such system or the process has ended."""
    try:
        return file.read_text()
    except OSError:
        return ""
