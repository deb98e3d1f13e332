"""What a run keeps while it is under way, so that one that was stopped goes on where it was.

A workflow is carried out again from its start; each step that has kept something goes on from
there, or ends at once with what it had found: the outcome is that of an unbroken run.
"""

import re
import shutil
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instamap.errors import OutputError
from instamap.progress import ForwardingProgress, Progress
from instamap.statistics.statistics import Statistics
from instamap.toml_text import read_toml, write_toml

FOLDER = ".instamap-kept"
RECORD = "settings.toml"


class KeptProgress(ForwardingProgress):
    """A listener that gives each step a file in a folder, and passes all it is told to another."""

    def __init__(self, folder: Path, listener: Progress) -> None:
        super().__init__(listener)
        self._folder = folder
        self._calls: Counter[str] = Counter()
        self._lock = threading.Lock()

    def kept(self, what: str) -> Path:
        with self._lock:
            self._calls[what] += 1
            number = self._calls[what]
        words = re.sub(r"[^A-Za-z0-9]+", "-", what)
        return self._folder / f"{words}-{number}.npz"


class KeptStatistics:
    """The statistics of sets that are gathered, kept as progress says; see `accumulate`."""

    def __init__(self, names: list[str], progress: Progress) -> None:
        self._files = {name: progress.kept(f"statistics {name}") for name in names}

    def load(self) -> dict[str, Statistics]:
        """What was kept of each set, by name. Raises DataError for a damaged file."""
        files = {name: file for name, file in self._files.items() if file is not None}
        return {name: Statistics.load(file) for name, file in files.items() if file.exists()}

    def save(self, name: str, statistics: Statistics) -> None:
        """Keeps the statistics of a set's first rows, if anything is kept."""
        file = self._files[name]
        if file is not None:
            statistics.save(file)


def keep_in(out: Path, asked: Mapping[str, Any], resume: bool, listener: Progress) -> KeptProgress:
    """A listener that keeps the state of steps in the output folder `out`.

    asked: plain settings, on which all that is kept depends. resume: go on from what an earlier run
    with the same settings has kept there. Raises OutputError where there is nothing to go on from,
    or it is of other settings.
    """
    folder = out / FOLDER
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write_toml(folder / RECORD, asked)
        return KeptProgress(folder, listener)
    if not (folder / RECORD).exists():
        raise OutputError(
            f"'{out}' has nothing to go on from: no run was stopped there; leave out --resume"
        )
    kept = read_toml(folder / RECORD)
    for name in dict.fromkeys([*kept, *asked]):
        if kept.get(name) != asked.get(name):
            raise OutputError(
                f"the run that was stopped in '{out}' had {name} = {kept.get(name)}, not"
                f" {asked.get(name)}; give the same settings, or leave out --resume to begin anew"
            )
    return KeptProgress(folder, listener)


def forget(out: Path) -> None:
    """Removes what a run has kept in its output folder, once it has ended."""
    shutil.rmtree(out / FOLDER, ignore_errors=True)


def forget_unless_something_is_kept(out: Path) -> bool:
    """Removes what a run has kept if that is nothing but its settings; says if there is more."""
    folder = out / FOLDER
    if folder.exists() and any(path.name != RECORD for path in folder.iterdir()):
        return True
    forget(out)
    return False
