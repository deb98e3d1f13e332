"""The MRC format: headers as programs in the wild write them, and files that are read at any place.

Header: 1024 bytes, an extended header of `nsymbt` bytes, then sections, rows, columns (MRC2014;
Cheng et al., J. Struct. Biol. 192, 2015). Nothing here names files: whoever reads one knows whether
it is a map or a stack, and turns an `MrcError` into a line for people.
"""

import bz2
import errno
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

from instamap import files

ByteOrder = Literal["<", ">"]

HEADER_BYTES = 1024
_TYPES: dict[int, np.dtype[Any]] = {  # modes of real values; 4-bit values (101) become bytes
    0: np.dtype("i1"),
    1: np.dtype("i2"),
    2: np.dtype("f4"),
    6: np.dtype("u2"),
    12: np.dtype("f2"),
    101: np.dtype("u1"),
}
_COMPLEX: dict[int, np.dtype[Any]] = {3: np.dtype("i2,i2"), 4: np.dtype("c8")}
_FOUR_BIT = 101
_FLOAT32 = 2
_STAMPS: dict[bytes, ByteOrder] = {b"\x44\x44": "<", b"\x44\x41": "<", b"\x11\x11": ">"}
_IMOD_STAMP = 1146047817  # "IMOD", in the header's bytes 152 to 155
_IMOD_SIGNED = 1  # bit of the flags that follow it: bytes are signed
_VOLUME_STACKS = range(401, 631)  # space groups that mean a stack of volumes
_MOST_DEFLATED = 1032  # deflate packs at most so many bytes into one
_GZIP = b"\x1f\x8b"
_BZIP2 = b"BZh"
_FOREIGN = {  # how files of other formats begin
    b"\xfd7zXZ": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"PK\x03\x04": "a zip archive",
    b"\x89HDF": "an HDF5 file",
    b"II*\x00": "a TIFF file",
    b"MM\x00*": "a TIFF file",
}
_GZIP_FRAME = 31  # zlib's word for data with gzip's header and checksum
_REMEDIES = {  # where the system does not let a file be read
    errno.EACCES: "make it readable",
    errno.EPERM: "make it readable",
    errno.ELOOP: "check the path",
    errno.ENOTDIR: "check the path",
    errno.ENAMETOOLONG: "check the path",
    errno.EIO: "check the disk",
    errno.ESTALE: "mount its file system again",
    errno.EMFILE: "raise the limit (ulimit -n)",
    errno.ENFILE: "end other programs",
    errno.ENOMEM: "end other programs",
}
_PIECE = 1 << 20  # bytes that are unpacked at once
UNKNOWN_STATISTICS = (0.0, -1.0, -2.0, -1.0)  # minimum, maximum, mean, deviation (MRC2014)


class MrcError(Exception):
    """Why a file cannot be read as MRC, and what helps where that is known."""

    def __init__(self, reason: str, remedy: str | None = None):
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


@dataclass(frozen=True)
class Layout:
    """What a header says of the values.

    shape: sections, rows, columns. mode: MRC's number of the type. dtype: of values in the file.
    offset: bytes before them. voxel_size: Å along x, y, z. axes: of sections, rows, columns (1 is
    x, 2 is y, 3 is z). depth: sections of each volume in a stack of volumes, else 1.
    """

    shape: tuple[int, int, int]
    mode: int
    dtype: np.dtype
    offset: int
    voxel_size: tuple[float, float, float]
    axes: tuple[int, int, int]
    depth: int

    @property
    def complex_type(self) -> str | None:
        """The name of the values' type where they are complex, which no image or map is."""
        names = {3: "complex int16", 4: "complex64"}
        return names.get(self.mode)

    @property
    def section_bytes(self) -> int:
        """Bytes of one section in the file."""
        _, rows, columns = self.shape
        if self.mode == _FOUR_BIT:
            return rows * ((columns + 1) // 2)
        return rows * columns * self.dtype.itemsize

    @property
    def data_bytes(self) -> int:
        """Bytes of all sections in the file."""
        return self.shape[0] * self.section_bytes

    @property
    def file_bytes(self) -> int:
        """Bytes that a file with this header has at least."""
        return self.offset + self.data_bytes

    def decode(self, raw: np.ndarray) -> np.ndarray:
        """Values "n rows columns" of the bytes of n sections, as stored."""
        _, rows, columns = self.shape
        if self.mode != _FOUR_BIT:
            return raw.view(self.dtype).reshape(-1, rows, columns)
        pairs = raw.reshape(-1, rows, (columns + 1) // 2)
        values = np.empty((*pairs.shape, 2), np.uint8)
        values[..., 0] = pairs & 15  # the first of two pixels is in the lower bits
        values[..., 1] = pairs >> 4
        return values.reshape(len(pairs), rows, -1)[..., :columns]


def parse(head: bytes, size: int | None) -> Layout:
    """The layout that a file's first bytes describe. size: of the whole file, where it is known.

    Stamps that are not by the book do not matter: the byte order is that in which the header makes
    sense. Raises MrcError for what is no MRC file of real values, or is shorter than it should be.
    """
    _check_start(head)
    layouts = [layout for order in _byte_orders(head) if (layout := _layout(head, order))]
    if not layouts:
        header = _header(head, "<")
        raise MrcError(
            f"its header makes no sense: {_dimensions(header)}, mode {int(header['mode'])}"
        )
    if size is None:
        return layouts[0]
    for layout in layouts:
        if layout.file_bytes <= size:
            return layout
    needed = layouts[0].file_bytes
    raise MrcError(f"it has {size} bytes and is shorter than its header says, {needed}")


def header(shape: tuple[int, int, int], pixel_size: float, statistics: Sequence[float]) -> bytes:
    """The header of float32 values [z, y, x] of a volume with cubic voxels, origin and start at
    zero, without a time: equal maps are equal files.

    statistics: minimum, maximum, mean and standard deviation of the values.
    """
    sections, rows, columns = shape
    made = np.zeros((), HEADER_DTYPE.newbyteorder("<"))
    made["nx"], made["ny"], made["nz"] = columns, rows, sections
    made["mx"], made["my"], made["mz"] = columns, rows, sections
    made["mode"] = _FLOAT32
    made["cella"] = (pixel_size * columns, pixel_size * rows, pixel_size * sections)
    made["cellb"] = (90.0, 90.0, 90.0)
    made["mapc"], made["mapr"], made["maps"] = 1, 2, 3
    made["dmin"], made["dmax"], made["dmean"], made["rms"] = statistics
    made["ispg"] = 1
    made["nversion"] = 20141
    made["map"] = b"MAP "
    made["machst"] = (0x44, 0x44, 0, 0)
    made["nlabl"] = 1
    made["label"][0] = b"instamap"
    return made.tobytes()


def stack_header(count: int, box: int, pixel_size: float) -> bytes:
    """The header of a stack of square float32 images, whose statistics are left open."""
    made = np.frombuffer(
        header((count, box, box), pixel_size, UNKNOWN_STATISTICS),
        HEADER_DTYPE.newbyteorder("<"),
    ).copy()
    made["ispg"] = 0  # images, not a volume: each has its own cell of one pixel's depth
    made["mz"] = 1
    made["cella"]["z"] = pixel_size
    return made.tobytes()


class OpenFile:
    """A regular file, open at any place for several threads at once.

    size, stamp: as it was opened. It is closed when nobody holds it any more: a thread that reads
    is not disturbed by another that lets go. Raises MrcError for what is no file or cannot be read,
    FileNotFoundError for none.
    """

    def __init__(self, path: Path):
        self._descriptor = -1
        # Without O_NONBLOCK, opening a pipe waits for somebody who writes to it.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self._hold(os.open(path, flags))
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            raise unreadable(error) from error

    @classmethod
    def of(cls, descriptor: int) -> Self:
        """The file of an open descriptor, which is closed with it."""
        made = cls.__new__(cls)
        made._hold(descriptor)
        return made

    def _hold(self, descriptor: int) -> None:
        self._descriptor = descriptor
        found = os.fstat(descriptor)
        what = files.kind(found.st_mode)
        if what is not None:
            raise MrcError(f"it is {what}, not a file", "give a file")
        self.size = found.st_size
        self.stamp = stamp(found)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read_into(self, buffers: Sequence[Any], offset: int, wanted: int) -> None:
        """Fill contiguous arrays, one after the other, with the `wanted` bytes at `offset`."""
        try:
            got = os.preadv(self._descriptor, buffers, offset)
            if got < wanted:
                got = self._read_rest(buffers, offset, got)
        except OSError as error:
            raise unreadable(error) from error
        if got < wanted:
            end = os.fstat(self._descriptor).st_size
            needed = offset + wanted
            raise MrcError(f"it ends after {end} bytes and {needed} are needed: it was cut off")

    def _read_rest(self, buffers: Sequence[Any], offset: int, got: int) -> int:
        """Go on where a call stopped early, as calls beyond 2 GB do; bytes filled in the end."""
        start = 0
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            while start <= got < start + len(view):
                more = os.preadv(self._descriptor, [view[got - start :]], offset + got)
                if more == 0:
                    return got
                got += more
            start += len(view)
        return got

    def read(self, count: int, offset: int = 0) -> bytes:
        """At most `count` bytes from `offset`; fewer where the file ends."""
        try:
            return os.pread(self._descriptor, count, offset)
        except OSError as error:
            raise unreadable(error) from error

    def write(self, content: bytes | memoryview, offset: int) -> None:
        """Put bytes at a place. Raises OSError."""
        left = memoryview(content)
        while left:
            put = os.pwrite(self._descriptor, left, offset)
            offset += put
            left = left[put:]

    def reserve(self, size: int) -> None:
        """Take room on the disk, where the system knows how. Raises OSError where it is full."""
        if sys.platform != "linux":
            return
        try:
            os.posix_fallocate(self._descriptor, 0, size)
        except OSError as error:
            if error.errno not in files.NOT_SUPPORTED:
                raise

    def free_bytes(self) -> int:
        """Room on the file's disk."""
        found = os.fstatvfs(self._descriptor)
        return found.f_bavail * found.f_frsize

    def is_packed(self) -> bool:
        """Whether its content is compressed in a way that `Unpacked` undoes."""
        start = self.read(4)
        return start.startswith((_GZIP, _BZIP2))


class Unpacked:
    """The content of a file that gzip or bzip2 compressed, from front to back, never more of it
    than is asked for. What follows the compressed data does not matter. Raises MrcError where they
    are damaged.
    """

    def __init__(self, file: OpenFile):
        self._file = file
        self._place = 0
        self._input = b""
        self._is_gzip = file.read(2) == _GZIP
        self._name = "gzip" if self._is_gzip else "bzip2"
        self._magic = _GZIP if self._is_gzip else _BZIP2
        self._decoder = self._new_decoder()

    def layout(self) -> Layout:
        """What the header says; what follows is the extended header."""
        found = parse(self._start(), None)
        most = _MOST_DEFLATED * (self._file.size + 1)
        if self._is_gzip and found.file_bytes > most:
            raise MrcError(
                f"it can hold {most} bytes at most and is shorter than its header says,"
                f" {found.file_bytes}"
            )
        return found

    def pieces(self, count: int) -> Iterator[bytes]:
        """The next `count` bytes in pieces of bounded size. Raises MrcError where there are fewer,
        and where a checksum that follows them does not fit.
        """
        left = count
        while left:
            piece = self._next(min(left, _PIECE))
            if not piece:
                raise MrcError(
                    f"its {self._name} data end {left} bytes early: it is shorter than its header"
                    " says"
                )
            left -= len(piece)
            yield piece

    def check_end(self) -> None:
        """Raise MrcError where the checksum at the end does not fit, or the end is far: a few bytes
        beyond the values do not matter, many are not what the header says.
        """
        left = _PIECE
        while piece := self._next(left):
            left -= len(piece)
            if not left:
                raise MrcError(f"its {self._name} data are longer than its header says")

    def skip(self, count: int) -> None:
        """Pass over `count` bytes."""
        for _ in self.pieces(count):
            pass

    def _start(self) -> bytes:
        head = b""
        while len(head) < HEADER_BYTES:
            piece = self._next(HEADER_BYTES - len(head))
            if not piece:
                break
            head += piece
        return head

    def _new_decoder(self) -> Any:
        return zlib.decompressobj(_GZIP_FRAME) if self._is_gzip else bz2.BZ2Decompressor()

    def _next(self, most: int) -> bytes:
        """At most so many bytes; none at the end."""
        while True:
            is_fed = self._feed()
            if self._decoder.eof:
                if not self._input.startswith(self._magic):
                    return b""
                self._decoder = self._new_decoder()  # files may be put together
            elif not is_fed:
                raise MrcError(f"its {self._name} data are cut off")
            piece = self._decode(most)
            if piece:
                return piece

    def _feed(self) -> bool:
        """Have compressed bytes at hand; whether the decoder has something to go on with."""
        if len(self._input) < len(self._magic):
            more = self._file.read(_PIECE, self._place)
            self._place += len(more)
            self._input += more
        return bool(self._input) or not (self._is_gzip or self._decoder.needs_input)

    def _decode(self, most: int) -> bytes:
        try:
            piece = self._decoder.decompress(self._input, most)
        except (zlib.error, OSError, ValueError) as error:
            raise MrcError(f"its {self._name} data are damaged") from error
        if self._decoder.eof:
            self._input = self._decoder.unused_data
        else:
            self._input = self._decoder.unconsumed_tail if self._is_gzip else b""
        return piece


def stamp(status: os.stat_result) -> tuple[int, int, int]:
    """What differs between a file and what took its place: size, time of change, number."""
    return status.st_size, status.st_mtime_ns, status.st_ino


def unreadable(error: OSError | ValueError) -> MrcError:
    """Why the system does not let a file be read."""
    if not isinstance(error, OSError):  # a name with a zero byte
        return MrcError("no file can have its name", "check the path")
    reason, _ = files.refusal(error)
    return MrcError(reason, _REMEDIES.get(error.errno or 0, "check its file system"))


def _check_start(head: bytes) -> None:
    if not head:
        raise MrcError("it is empty")
    for start, what in _FOREIGN.items():
        if head.startswith(start):
            raise MrcError(f"it is {what}", "unpack or convert it to MRC")
    if len(head) < HEADER_BYTES:
        raise MrcError(f"it ends within its header, after {len(head)} of {HEADER_BYTES} bytes")


def _byte_orders(head: bytes) -> tuple[ByteOrder, ByteOrder]:
    """Both byte orders; first that of the machine stamp, or of most machines if it is not known."""
    first = _STAMPS.get(head[212:214], "<")
    return first, ">" if first == "<" else "<"


def _header(head: bytes, order: ByteOrder) -> np.ndarray:
    return np.frombuffer(head[:HEADER_BYTES], HEADER_DTYPE.newbyteorder(order))[0]


def _dimensions(header: np.ndarray) -> str:
    return f"{int(header['nx'])} x {int(header['ny'])} x {int(header['nz'])} values"


def _layout(head: bytes, order: ByteOrder) -> Layout | None:
    """The layout in one byte order; None where it makes no sense."""
    found = _header(head, order)
    shape = (int(found["nz"]), int(found["ny"]), int(found["nx"]))
    mode = int(found["mode"])
    extended = int(found["nsymbt"])
    types = _TYPES | _COMPLEX
    if min(shape) < 1 or extended < 0 or mode not in types:
        return None
    dtype = types[mode]
    if mode == 0 and _bytes_are_unsigned(head, order):
        dtype = np.dtype("u1")
    return Layout(
        shape,
        mode,
        dtype.newbyteorder(order),
        HEADER_BYTES + extended,
        _voxel_size(found),
        (int(found["maps"]), int(found["mapr"]), int(found["mapc"])),
        _depth(found),
    )


def _bytes_are_unsigned(head: bytes, order: ByteOrder) -> bool:
    """Whether IMOD wrote the file and does not say that bytes are signed; MRC2014 has them so."""
    stamp, flags = np.frombuffer(head[152:160], np.dtype("i4").newbyteorder(order))
    return int(stamp) == _IMOD_STAMP and not int(flags) & _IMOD_SIGNED


def _voxel_size(found: np.ndarray) -> tuple[float, float, float]:
    """Å along x, y, z. Where a program left the grid empty, it is that of the values."""
    sizes = []
    for axis in "xyz":
        grid = int(found[f"m{axis}"]) or int(found[f"n{axis}"])
        edge = float(found["cella"][axis])
        with np.errstate(over="ignore", under="ignore"):
            sizes.append(float(np.float32(edge / grid)))
    return sizes[0], sizes[1], sizes[2]


def _depth(found: np.ndarray) -> int:
    """Sections of each volume where the space group means a stack of them, else 1."""
    depth = int(found["mz"])
    is_stack = int(found["ispg"]) in _VOLUME_STACKS
    return depth if is_stack and depth > 1 else 1
