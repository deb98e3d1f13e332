"""Files of a saved result that are not read back, but saved again with it."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from instamap import checksums
from instamap.errors import DataError
from instamap.workflows.result import Artefact


@dataclass(frozen=True)
class KeptFiles(Artefact):
    """Files of a folder, by name, which are copied as they are."""

    folder: Path
    names: tuple[str, ...]

    def files(self) -> list[str]:
        return list(self.names)

    def write(self, folder: Path) -> None:
        """Raises DataError for a file that is no longer where it was."""
        for name in self.names:
            before = self.folder / name
            if not before.is_file():
                raise DataError(
                    f"'{before}' is gone, of which the result that was loaded is to be saved again;"
                    " put it back, or copy the folder instead"
                )
            shutil.copyfile(before, folder / name)

    @staticmethod
    def matching(folder: Path, patterns: Sequence[str]) -> "KeptFiles":
        """Those that the run in a folder wrote, of names of these patterns."""
        listed = checksums.read_list(folder) or [path.name for path in folder.iterdir()]
        found = []
        for name in sorted(listed):
            if any(fnmatch(name, pattern) for pattern in patterns):
                found.append(name)
        return KeptFiles(folder.absolute(), tuple(found))
