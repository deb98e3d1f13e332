"""The most memory a process held at once, watched from a thread.

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
    """A context in which the peaks of process `pid` are watched; rss and anonymous in bytes, None
    where the system has no /proc.
    """

    def __init__(self, pid: int | str = "self"):
        self.rss: int | None = None
        self.anonymous: int | None = None
        self._status = Path(f"/proc/{pid}/status")
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
        try:
            lines = self._status.read_text().splitlines()
        except OSError:  # no such system, or the process has ended
            return
        size = {
            name: 1024 * int(rest.split()[0])
            for name, _, rest in (x.partition(":") for x in lines)
            if rest.endswith("kB")
        }
        if "RssAnon" in size:
            self.rss = max(self.rss or 0, size["VmRSS"])
            self.anonymous = max(self.anonymous or 0, size["RssAnon"] + size["RssShmem"])
