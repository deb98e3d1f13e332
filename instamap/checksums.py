"""Checksums (SHA-256), by which damaged files are noticed: of files, of plain values, of arrays;
and the list of those of a folder's files, as `sha256sum` writes and checks it.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instamap.errors import DataError
from instamap.files import replacing

if TYPE_CHECKING:
    import numpy as np

LIST = "SHA256SUMS"  # in a run's folder: `sha256sum -c SHA256SUMS` checks it too
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\0]{1,255})")


def of_file(path: Path) -> str:
    """The checksum of a file's bytes. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_values(values: Mapping[str, Any]) -> str:
    """The checksum of plain values, in whatever order they are."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def of_arrays(arrays: "Mapping[str, np.ndarray[Any, Any]]") -> str:
    """The checksum of named arrays: names, types, shapes and values, in whatever order they are."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        head = json.dumps([name, array.dtype.str, list(array.shape)])
        digest.update(head.encode())
        if array.size:  # the buffer of an empty one cannot be had
            digest.update(array.reshape(-1).view("u1").data)
    return digest.hexdigest()


def write_list(folder: Path) -> None:
    """Writes the list of the files of a folder, which must be complete."""
    names = sorted(path.name for path in folder.iterdir() if path.name != LIST)
    with ThreadPoolExecutor() as pool:  # sums are taken without Python's lock
        sums = pool.map(of_file, [folder / name for name in names])
    lines = [f"{digest}  {name}\n" for digest, name in zip(sums, names, strict=True)]
    with replacing(folder / LIST) as sibling:
        sibling.write_text("".join(lines), encoding="utf-8")


def read_list(folder: Path) -> dict[str, str]:
    """The checksums by name of file; none where the folder has no list. Raises DataError."""
    path = folder / LIST
    if not path.exists():
        return {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = [""]
    found = [_LINE.fullmatch(line) for line in lines]
    if not all(found):
        raise _damaged(path)
    return {match[2]: match[1] for match in found if match}


def check(folder: Path, names: Iterable[str]) -> None:
    """Raises DataError for the first of a folder's files that is not as its list says.

    Files that are not there, and those that the list does not have, are passed over.
    """
    sums = read_list(folder)
    for name in names:
        path = folder / name
        if name in sums and not _is_as_listed(path, sums[name]):
            raise _damaged(path)


def _is_as_listed(path: Path, expected: str) -> bool:
    try:
        return of_file(path) == expected
    except FileNotFoundError:
        return True
    except OSError:  # also names that are too long
        return False


def _damaged(path: Path) -> DataError:
    return DataError(
        f"'{path}' is not as the run wrote it (its checksum differs): it is damaged; copy the whole"
        " folder again, or repeat the run"
    )
