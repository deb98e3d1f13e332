"""Images of MRC stacks, read lazily, in the order in which a STAR file names them (N@stack)."""

import functools
import threading
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np

from instamap.errors import DataError

_OPEN = (
    256  # memory maps kept at once: each holds a file descriptor, of which a process often has 1024
)


@dataclass(frozen=True)
class _Header:
    """Where the images of one stack lie in its file: shape (count, box, box), type and offset in
    bytes.
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype
    offset: int

    def map(self) -> np.ndarray:
        return np.memmap(self.path, self.dtype, mode="r", offset=self.offset, shape=self.shape)


class Stacks:
    """The images that `names` ("N@path", N from 1) call for, all of one square box.

    star: the file that names them; a relative path starts at its folder, or at one of that folder's
    parents (RELION names files from the project's root). With `datadir` it is datadir/path or
    datadir/file name instead, and nothing else. Every stack is looked at once, here, and only its
    header; images are read when asked for. Raises DataError.
    """

    def __init__(self, names: list[str], star: Path, datadir: Path | None = None):
        self.names = names
        self.star = star
        places = _places(star, datadir)
        self._headers: list[_Header] = []
        self._maps: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()
        self._stack = np.empty(len(names), np.int64)
        self._index = np.empty(len(names), np.int64)
        known: dict[str, int] = {}
        for row, name in enumerate(names):
            number, path = self._split(row, name)
            if path not in known:
                known[path] = len(self._headers)
                self._headers.append(
                    _header(_find(path, places, datadir, f"row {row + 1} of '{star}'"))
                )
            self._stack[row] = known[path]
            self._index[row] = self._check(row, number, self._headers[known[path]])
        _same_box(self._headers)

    @property
    def box(self) -> int:
        """Pixels along an edge of every image."""
        return self._headers[0].shape[-1]

    @property
    def files(self) -> list[Path]:
        """Every stack."""
        return [header.path for header in self._headers]

    @functools.cached_property
    def identity(self) -> np.ndarray:
        """For each name a number that it shares with those of the same image of the same file,
        however they are spelt.
        """
        files = {
            path: i
            for i, path in enumerate(
                dict.fromkeys(header.path.resolve() for header in self._headers)
            )
        }
        file = np.array([files[header.path.resolve()] for header in self._headers])
        return np.unique(
            file[self._stack] * (int(self._index.max()) + 1) + self._index, return_inverse=True
        )[1].reshape(-1)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Images "B D D" of `rows` in that order, as float32; each stack is read once, from front
        to back.
        """
        images = np.empty((len(rows), self.box, self.box), np.float32)
        order = np.lexsort((self._index[rows], self._stack[rows]))
        stacks = self._stack[rows][order]
        for part in np.split(order, np.flatnonzero(np.diff(stacks)) + 1):
            if len(part):
                images[part] = self._map(int(self._stack[rows[part[0]]]))[self._index[rows[part]]]
        return images

    def _map(self, stack: int) -> np.ndarray:
        """The memory map of a stack; the one that was used longest ago makes room for it. Fits in
        several threads read at once.
        """
        with self._lock:
            if stack not in self._maps:
                if len(self._maps) == _OPEN:
                    self._maps.popitem(last=False)
                self._maps[stack] = self._headers[stack].map()
            self._maps.move_to_end(stack)
            return self._maps[stack]

    def _split(self, row: int, name: str) -> tuple[int | None, str]:
        """N, or None where the name is that of a file alone, and the path."""
        if "@" not in name:
            return None, name
        number, _, path = name.partition("@")
        if not number.isdecimal() or int(number) < 1 or not path:
            raise DataError(
                f"rlnImageName of row {row + 1} of '{self.star}' is '{name}'; write N@stack with N"
                " from 1"
            )
        return int(number), path

    def _check(self, row: int, number: int | None, header: _Header) -> int:
        """Index from 0 into the stack."""
        count = header.shape[0]
        if number is None and count > 1:
            raise DataError(
                f"rlnImageName of row {row + 1} of '{self.star}' is '{self.names[row]}', a stack of"
                f" {count} images; say which one: N@stack"
            )
        if (number or 1) > count:
            raise DataError(
                f"row {row + 1} of '{self.star}' asks for image {number or 1} of '{header.path}',"
                f" which has {count}; use the stack that was written with this STAR file"
            )
        return (number or 1) - 1


def _places(star: Path, datadir: Path | None) -> list[Path]:
    folder = star.absolute().parent
    return [folder, *folder.parents] if datadir is None else [Path(datadir)]


def _find(path: str, places: list[Path], datadir: Path | None, row: str) -> Path:
    candidates = [place / path for place in places]
    if datadir is not None:
        candidates.append(Path(datadir) / Path(path).name)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    looked = ", ".join(f"'{c}'" for c in dict.fromkeys(candidates))
    raise DataError(
        f"stack '{path}' of {row} is missing (looked for {looked}); give the folder of the stacks"
        " with --datadir"
    )


def _header(path: Path) -> _Header:
    """Shape and place of the images of one file. Raises DataError unless it holds square images of
    real numbers.
    """
    _check_extended(path)
    with warnings.catch_warnings(record=True) as caught:
        # Permissive reading warns of each oddity (old files without a map string, trailing bytes):
        # what matters is checked below.
        warnings.simplefilter("always")
        try:
            with mrcfile.mmap(path, mode="r", permissive=True) as mrc:
                data = mrc.data
                offset = mrc.header.nbytes + int(mrc.header.nsymbt)
        except (ValueError, OSError) as error:
            raise DataError(
                f"stack '{path}' can't be read as MRC ({error}); copy it again"
            ) from error
    if data is None:
        reason = "; ".join(str(w.message) for w in caught)
        raise DataError(
            f"stack '{path}' can't be read as MRC, or is shorter than its header says ({reason});"
            " copy it again"
        )
    if data.ndim not in (2, 3) or data.dtype.kind not in "fiu":
        raise DataError(
            f"stack '{path}' holds {data.dtype} data of {data.ndim} dimensions; write a stack of"
            " real images"
        )
    shape = (1, *data.shape) if data.ndim == 2 else data.shape
    if shape[1] != shape[2]:
        raise DataError(
            f"images of '{path}' are {shape[2]} x {shape[1]} pixels; extract square ones"
        )
    return _Header(path, shape, data.dtype, offset)


def _check_extended(path: Path) -> None:
    """Refuse a file that is too short for its extended header: one that is no MRC may claim
    gigabytes, which would be allocated.
    """
    try:
        with path.open("rb") as file:
            field = file.read(1024)[92:96]
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"stack '{path}' can't be read ({error}); make it readable") from error
    if 1024 + min(int.from_bytes(field, "little"), int.from_bytes(field, "big")) > size:
        raise DataError(
            f"stack '{path}' can't be read as MRC (it ends within its header); copy it again"
        )


def _same_box(headers: list[_Header]) -> None:
    first = headers[0]
    for other in headers:
        if other.shape[-1] != first.shape[-1]:
            raise DataError(
                f"images of '{first.path}' are {first.shape[-1]} pixels wide, those of"
                f" '{other.path}' {other.shape[-1]}; extract all with one box"
            )
