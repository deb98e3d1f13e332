"""Images of MRC stacks, read when asked for, in the order in which a STAR file names them
(N@stack); and new stacks.
"""

import copy
import errno
import functools
import os
import resource
import stat
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from instamap import files, mrc_format
from instamap.errors import DataError, OutputError
from instamap.mrc_format import Layout, MrcError, OpenFile, Unpacked

_MOST_OPEN_FILES = 256  # kept at once, where the system allows a process four times as many
_SHARE_OF_OPEN_FILES = 4  # of what the system allows, one in so many is for stacks
_BUFFERS_A_CALL = 1024  # that a system fills at once (IOV_MAX)
_BYTES_DECODED = 1 << 20  # at once: what is read is still in the processor's cache
_ROWS_NAMED = 10  # of those that are wrong
_MOST_DIGITS = 18  # of an image's number


@dataclass(frozen=True)
class _Stack:
    """One file of images: its place and header, whether it is compressed, and the size, time and
    number by which it is told from another.
    """

    path: Path
    layout: Layout
    is_packed: bool
    stamp: tuple[int, int, int]


class Stacks:
    """The images that `names` ("N@path", N from 1) call for, which are square.

    star: the file that names them; a relative path starts at its folder, or at one of that folder's
    parents (RELION names files from the project's root); it must fit one file alone. With `datadir`
    it is datadir/path instead, or datadir/file name where only one path has that file name. Every
    stack is looked at once, here, and only its header; images are read when asked for. Those that
    gzip or bzip2 compressed are unpacked to a temporary file then. Raises DataError.
    """

    def __init__(self, names: list[str], star: Path, datadir: Path | None = None):
        self.names = names
        self.star = star
        self._stacks: list[_Stack] = []
        self._sources: OrderedDict[int, _Source] = OrderedDict()
        self._unpacked: dict[int, int] = {}  # where in the temporary file the images begin
        self._scratch = _Scratch()
        self._lock = threading.Lock()
        self._stack = np.empty(len(names), np.int64)
        self._index = np.empty(len(names), np.int64)
        places = _places(star, datadir)
        known: dict[str, int] = {}
        by_file_name: dict[str, tuple[str, bool]] = {}
        for row, name in enumerate(names):
            number, path = self._split(row, name)
            if path not in known:
                where = f"row {row + 1} of '{star}'"
                file = _find(path, places, datadir, where)
                if datadir is not None:
                    _check_file_name(by_file_name, path, file, datadir, where)
                known[path] = len(self._stacks)
                self._stacks.append(_look_at(file))
            self._stack[row] = known[path]
            self._index[row] = self._check(row, number, self._stacks[known[path]])

    @property
    def box(self) -> int:
        """Pixels along an edge of the largest image."""
        return int(self.boxes.max())

    @functools.cached_property
    def boxes(self) -> np.ndarray:
        """Pixels along an edge of each image "n"."""
        of_stacks = np.array([stack.layout.shape[-1] for stack in self._stacks])
        return of_stacks[self._stack]

    def by_box(self, rows: np.ndarray) -> list[np.ndarray]:
        """Places in `rows` of the images of each box, in order."""
        boxes = self.boxes[rows]
        return [np.flatnonzero(boxes == box) for box in np.unique(boxes)]

    def _box_of(self, rows: np.ndarray) -> int:
        """Pixels along an edge of the images of `rows`, which are of one box."""
        if not len(rows):
            return self.box
        first = int(self.boxes[rows[0]])
        assert (self.boxes[rows] == first).all(), "images of several boxes are read box by box"
        return first

    @property
    def files(self) -> list[Path]:
        """Every stack."""
        return [stack.path for stack in self._stacks]

    @property
    def header_pixel_sizes(self) -> list[tuple[Path, float]]:
        """Every stack, and Å per pixel along x as its header has it."""
        return [(stack.path, stack.layout.voxel_size[0]) for stack in self._stacks]

    @functools.cached_property
    def identity(self) -> np.ndarray:
        """For each name a number that it shares with those of the same image of the same file,
        however they are spelt.
        """
        paths = [stack.path.resolve() for stack in self._stacks]
        numbers = {path: number for number, path in enumerate(dict.fromkeys(paths))}
        file = np.array([numbers[path] for path in paths])
        image = file[self._stack] * (int(self._index.max()) + 1) + self._index
        _, identity = np.unique(image, return_inverse=True)
        return identity.reshape(-1)

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: np.ndarray) -> "Stacks":
        """The images of some rows, in the order given, from the same open files."""
        taken = copy.copy(self)
        for name in ("boxes", "identity"):  # of the rows before
            taken.__dict__.pop(name, None)
        taken.names = [self.names[row] for row in rows.tolist()]
        taken._stack = self._stack[rows]
        taken._index = self._index[rows]
        return taken

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Images "B D D" of `rows`, all of one box, in that order, as float32; each stack is read
        once, from front to back.

        Raises DataError for a stack that changed since it was looked at, and for images that are
        not finite.
        """
        box = self._box_of(rows)
        images = np.empty((len(rows), box, box), np.float32)
        order = np.lexsort((self._index[rows], self._stack[rows]))
        stacks = self._stack[rows][order]
        for places in np.split(order, np.flatnonzero(np.diff(stacks)) + 1):
            if len(places):
                self._read_stack(rows[places], images, places)
        self._check_finite(images, rows)
        return images

    def middle_lines(self, rows: np.ndarray) -> np.ndarray:
        """The middle line "B D" (float32) of the images of `rows`, all of one box, without the rest
        of them.

        Raises DataError for a stack that changed since it was looked at.
        """
        lines = np.empty((len(rows), self._box_of(rows)), np.float32)
        order = np.lexsort((self._index[rows], self._stack[rows]))
        stacks = self._stack[rows][order]
        for places in np.split(order, np.flatnonzero(np.diff(stacks)) + 1):
            if not len(places):
                continue
            number = int(self._stack[rows[places[0]]])
            with self._readable(number, int(rows[places[0]])):
                lines[places] = self._open(number).middle_lines(self._index[rows[places]])
        return lines

    def _read_stack(self, rows: np.ndarray, images: np.ndarray, places: np.ndarray) -> None:
        """Fill `images` at `places` with those of `rows`, all of one stack and in its order."""
        number = int(self._stack[rows[0]])
        index = self._index[rows]
        with self._readable(number, int(rows[0])):
            source = self._open(number)
            source.read(index, images, places)

    @contextmanager
    def _readable(self, number: int, row: int) -> Iterator[None]:
        """Says of a stack that can't be read, or changed meanwhile, where it is named."""
        stack = self._stacks[number]
        try:
            yield
            _check_unchanged(stack)
        except FileNotFoundError:
            raise DataError(
                f"stack '{stack.path}' has vanished since row {row + 1} of '{self.star}' was"
                " looked up in it; put it back and start again"
            ) from None
        except MrcError as error:
            remedy = error.remedy or "copy it again"
            raise DataError(
                f"stack '{stack.path}' can't be read any more from image {self._index[row] + 1}"
                f" (row {row + 1} of '{self.star}'): {error.reason}; {remedy}"
            ) from error

    def _open(self, number: int) -> "_Source":
        """A stack to read from; the one that was used longest ago makes room for it. Several
        threads read at once.
        """
        with self._lock:
            if number not in self._sources:
                self._sources[number] = self._new_source(number)
            self._sources.move_to_end(number)
            return self._sources[number]

    def _new_source(self, number: int) -> "_Source":
        stack = self._stacks[number]
        while len(self._sources) >= _most_open_files():
            self._sources.popitem(last=False)
        try:
            file = OpenFile(stack.path)
        except MrcError as error:
            if not (self._sources and _is_about_open_files(error)):
                raise
            self._sources.clear()  # others hold more files than was thought
            file = OpenFile(stack.path)
        if file.stamp != stack.stamp:
            raise _changed(stack.stamp, file.stamp)
        if not stack.is_packed:
            return _Source(file, stack.layout, stack.layout.offset)
        if number not in self._unpacked:
            self._unpacked[number] = self._scratch.add(file, stack)
        return self._scratch.source(stack, self._unpacked[number])

    def _check_finite(self, images: np.ndarray, rows: np.ndarray) -> None:
        """Name all rows whose images have pixels that are no numbers."""
        with np.errstate(over="ignore", invalid="ignore"):
            sums = images.reshape(len(images), images.shape[-1] ** 2).sum(1)
        if np.isfinite(sums).all():
            return
        finite = np.isfinite(images).all((1, 2))
        bad = np.unique(rows[~finite])
        if not len(bad):
            return
        first = f"image '{self.names[bad[0]]}' of row {bad[0] + 1} of '{self.star}'"
        raise DataError(
            f"{first} has pixels that are not finite{_and_rows(bad[1:])}; remove that row or"
            " extract the image again"
        )

    def _split(self, row: int, name: str) -> tuple[int | None, str]:
        """N, or None where the name is that of a file alone, and the path."""
        if "@" not in name:
            return None, name
        number, _, path = name.partition("@")
        is_number = number.isdecimal() and len(number) <= _MOST_DIGITS
        if not is_number or int(number) < 1 or not path:
            raise DataError(
                f"rlnImageName of row {row + 1} of '{self.star}' is '{name}'; write N@stack with N"
                " from 1"
            )
        return int(number), path

    def _check(self, row: int, number: int | None, stack: _Stack) -> int:
        """Index from 0 into the stack."""
        count = stack.layout.shape[0]
        if number is None and count > 1:
            raise DataError(
                f"rlnImageName of row {row + 1} of '{self.star}' is '{self.names[row]}', a stack of"
                f" {count} images; say which one: N@stack"
            )
        if (number or 1) > count:
            raise DataError(
                f"row {row + 1} of '{self.star}' asks for image {number or 1} of '{stack.path}',"
                f" which has {count}; use the stack that was written with this STAR file"
            )
        return (number or 1) - 1


class _Source:
    """Images of one layout, from `offset` of an open file."""

    def __init__(self, file: OpenFile, layout: Layout, offset: int):
        self._file = file
        self._layout = layout
        self._offset = offset
        self._is_plain = layout.dtype == np.dtype(np.float32)

    def read(self, index: np.ndarray, images: np.ndarray, places: np.ndarray) -> None:
        """Fill `images` at `places` with those of `index`, which is ordered. Raises MrcError."""
        if self._is_plain:
            self._read_bytes(index, [images[place] for place in places.tolist()])
            return
        at_once = max(1, _BYTES_DECODED // self._layout.section_bytes)
        for first in range(0, len(index), at_once):
            part = slice(first, first + at_once)
            raw = np.empty((len(index[part]), self._layout.section_bytes), np.uint8)
            self._read_bytes(index[part], list(raw))
            for place, image in zip(places[part], self._layout.decode(raw), strict=True):
                images[place] = image

    def middle_lines(self, index: np.ndarray) -> np.ndarray:
        """The middle lines "n D" of the images of `index`. Raises MrcError."""
        _, rows, columns = self._layout.shape
        line_bytes = self._layout.section_bytes // rows
        first = self._offset + rows // 2 * line_bytes
        raw = np.empty((len(index), line_bytes), np.uint8)
        for line, number in zip(raw, index.tolist(), strict=True):
            place = first + number * self._layout.section_bytes
            self._file.read_into([line], place, line_bytes)
        layout = replace(self._layout, shape=(len(index), 1, columns))
        return layout.decode(raw)[:, 0]

    def _read_bytes(self, index: np.ndarray, buffers: list[np.ndarray]) -> None:
        """Fill a buffer for each image; neighbours in one call."""
        size = self._layout.section_bytes
        offsets = (self._offset + index * size).tolist()
        ends = (np.flatnonzero(np.diff(index) != 1) + 1).tolist()
        start = 0
        for end in [*ends, len(index)]:
            for first in range(start, end, _BUFFERS_A_CALL):
                last = min(first + _BUFFERS_A_CALL, end)
                wanted = (last - first) * size
                self._file.read_into(buffers[first:last], offsets[first], wanted)
            start = end


class _Scratch:
    """What compressed stacks hold, one after the other in a temporary file that has no name: it is
    gone when nobody holds it, however that comes about.
    """

    def __init__(self) -> None:
        self._file: OpenFile | None = None
        self._end = 0

    def add(self, packed: OpenFile, stack: _Stack) -> int:
        """Unpack the images of a stack; where they begin. Raises MrcError, OutputError."""
        start = self._end
        unpacked = Unpacked(packed)
        layout = unpacked.layout()
        unpacked.skip(layout.offset - mrc_format.HEADER_BYTES)
        place = start
        for piece in unpacked.pieces(layout.data_bytes):
            self._write(piece, place, stack)
            place += len(piece)
        unpacked.check_end()
        self._end = place
        return start

    def source(self, stack: _Stack, offset: int) -> _Source:
        """The images that begin at `offset`."""
        assert self._file is not None
        return _Source(self._file, stack.layout, offset)

    def _write(self, piece: bytes, place: int, stack: _Stack) -> None:
        try:
            if self._file is None:
                self._file = _temporary_file()
            self._file.write(piece, place)
        except OSError as error:
            reason, _ = files.refusal(error)
            folder = tempfile.gettempdir()
            raise OutputError(
                f"stack '{stack.path}' of {stack.layout.data_bytes} bytes cannot be unpacked in"
                f" '{folder}': {reason}; set TMPDIR to another folder or unpack it yourself"
            ) from error


def _temporary_file() -> OpenFile:
    """A new file without a name."""
    descriptor, name = tempfile.mkstemp(prefix="instamap-")
    os.unlink(name)
    return OpenFile.of(descriptor)


class ImageStackWriter:
    """A new stack of square images in float32, which are written and read again in any order."""

    def __init__(self, file: OpenFile, box: int):
        self._file = file
        self._box = box

    def write(self, start: int, images: np.ndarray) -> None:
        """Put images "n D D" at number `start` (from 0) and those that follow."""
        values = np.ascontiguousarray(images, np.dtype("<f4"))
        self._file.write(values.data.cast("B"), self._place(start))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Images "n D D" from number `start` to before `stop`."""
        images = np.empty((stop - start, self._box, self._box), np.dtype("<f4"))
        self._file.read_into([images], self._place(start), images.nbytes)
        return images.astype(np.float32, copy=False)

    def _place(self, number: int) -> int:
        return mrc_format.HEADER_BYTES + number * self._box**2 * 4


@contextmanager
def new_stack(
    path: str | Path, count: int, box: int, pixel_size: float
) -> Iterator[ImageStackWriter]:
    """A writer of a stack that is whole at the end of the block, or absent if that fails.

    The room that it takes is reserved before anything is computed: no memory map, so that a full
    disk is an error and not a signal. Raises OutputError.
    """
    size = mrc_format.HEADER_BYTES + count * box**2 * 4
    with files.replacing(path) as sibling:
        file = OpenFile.of(os.open(sibling, os.O_RDWR | os.O_CLOEXEC))
        _reserve(file, size, path)
        file.write(mrc_format.stack_header(count, box, pixel_size), 0)
        yield ImageStackWriter(file, box)


def _reserve(file: OpenFile, size: int, path: str | Path) -> None:
    try:
        file.reserve(size)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        free = file.free_bytes()
        raise OutputError(
            f"'{path}' cannot be written: it takes {size} bytes, of which {free} are free, and no"
            " space is left on its disk; make room or choose another place"
        ) from error


def _places(star: Path, datadir: Path | None) -> list[Path]:
    folder = star.absolute().parent
    return [folder, *folder.parents] if datadir is None else [Path(datadir)]


def _find(path: str, places: list[Path], datadir: Path | None, row: str) -> Path:
    """The file that a path means. Raises DataError where there is none, or more than one."""
    candidates = [place / path for place in places]
    if datadir is not None:
        candidates.append(Path(datadir) / Path(path).name)
    candidates = list(dict.fromkeys(candidates))
    found = _distinct_files(candidates)
    if datadir is not None:
        found = found[:1]
    if len(found) > 1:
        raise DataError(
            f"stack '{path}' of {row} may be '{found[0]}' or '{found[1]}', which are different"
            f" files; give the folder of the right one, as --datadir '{_base(found[0], path)}'"
        )
    if found:
        return found[0]
    looked = ", ".join(f"'{candidate}'" for candidate in candidates)
    what = next((kind for candidate in candidates if (kind := _kind(candidate))), None)
    if what is not None:
        raise DataError(f"stack '{path}' of {row} is {what}, not a file; looked for {looked}")
    raise DataError(
        f"stack '{path}' of {row} is missing (looked for {looked}); give the folder of the stacks"
        " with --datadir"
    )


def _base(found: Path, path: str) -> Path:
    """The folder from which a relative path leads to the file."""
    return Path(*found.parts[: len(found.parts) - len(Path(path).parts)])


def _stat(path: Path) -> os.stat_result | None:
    """What the system says of a path; None where nothing is, or may be looked at."""
    try:
        return path.stat()
    except (OSError, ValueError):
        return None


def _kind(path: Path) -> str | None:
    """What is at a path where it is no file, in words."""
    found = _stat(path)
    return None if found is None else files.kind(found.st_mode)


def _distinct_files(paths: list[Path]) -> list[Path]:
    """The paths that lead to files, each to one that no earlier path leads to."""
    known: dict[tuple[int, int], Path] = {}
    for path in paths:
        found = _stat(path)
        if found is not None and stat.S_ISREG(found.st_mode):
            known.setdefault((found.st_dev, found.st_ino), path)
    return list(known.values())


def _check_file_name(
    known: dict[str, tuple[str, bool]], path: str, file: Path, datadir: Path, row: str
) -> None:
    """Refuse two paths of one file name where one was found by that name alone: which of them it is
    cannot be told.

    known: for each file name the first path, and whether it was found by its name alone; it grows.
    """
    name = Path(path).name
    alone = Path(datadir) / name
    is_found_by_name = file == alone and Path(path) != Path(name)
    first, first_by_name = known.setdefault(name, (path, is_found_by_name))
    if Path(first) != Path(path) and (is_found_by_name or first_by_name):
        raise DataError(
            f"stacks '{first}' and '{path}' of {row} have one file name, and '{alone}' in the"
            " folder given by --datadir may be either; keep the folders of their paths there"
        )


def _look_at(path: Path) -> _Stack:
    """What the header of a file says. Raises DataError unless it holds square images of real
    numbers.
    """
    try:
        file = OpenFile(path)
        is_packed = file.is_packed()
        if is_packed:
            layout = Unpacked(file).layout()
        else:
            layout = mrc_format.parse(file.read(mrc_format.HEADER_BYTES), file.size)
    except FileNotFoundError:
        raise DataError(f"stack '{path}' has vanished; put it back") from None
    except MrcError as error:
        remedy = error.remedy or "copy it again"
        raise DataError(
            f"stack '{path}' can't be read as MRC ({error.reason}); {remedy}"
        ) from error
    _check_layout(path, layout)
    return _Stack(path, layout, is_packed, file.stamp)


def _check_layout(path: Path, layout: Layout) -> None:
    if layout.complex_type is not None:
        raise DataError(
            f"stack '{path}' holds {layout.complex_type} data; write a stack of real images"
        )
    if layout.depth > 1:
        raise DataError(
            f"stack '{path}' holds volumes of {layout.depth} sections, data of 4 dimensions; write"
            " a stack of real images"
        )
    _, height, width = layout.shape
    if height != width:
        raise DataError(f"images of '{path}' are {width} x {height} pixels; extract square ones")


def _check_unchanged(stack: _Stack) -> None:
    """Raise MrcError where the file is not the one whose header was read."""
    try:
        found = os.stat(stack.path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise mrc_format.unreadable(error) from error
    stamp = mrc_format.stamp(found)
    if stamp != stack.stamp:
        raise _changed(stack.stamp, stamp)


def _changed(before: tuple[int, int, int], after: tuple[int, int, int]) -> MrcError:
    size = f"it had {before[0]} bytes and has {after[0]}" if before[0] != after[0] else "it is new"
    return MrcError(
        f"the file was changed while it was in use ({size})",
        "let nothing write to it, and start again",
    )


def _most_open_files() -> int:
    """Files that may stay open at once: the system's limit is for all of a process."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _MOST_OPEN_FILES
    return max(1, min(_MOST_OPEN_FILES, soft // _SHARE_OF_OPEN_FILES))


def _is_about_open_files(error: MrcError) -> bool:
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE)


def _and_rows(rows: np.ndarray) -> str:
    """Further rows (from 0) in words: the first of them, and how many there are."""
    if not len(rows):
        return ""
    named = ", ".join(str(row + 1) for row in rows[: _ROWS_NAMED - 1])
    rest = len(rows) - (_ROWS_NAMED - 1)
    more = f" and {rest} more" if rest > 0 else ""
    return f", as have those of rows {named}{more}"
