"""Maps as MRC files: cubic volumes [z, y, x] with a pixel size."""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from io import SEEK_CUR, BufferedIOBase
from pathlib import Path

import numpy as np
import torch
from mrcfile.dtypes import HEADER_DTYPE
from torch import Tensor

from instamap import mrc_format
from instamap.errors import DataError
from instamap.files import replacing
from instamap.mrc_format import Layout, MrcError, OpenFile, Unpacked

PIXEL_SIZE_TOLERANCE = (
    1e-3  # relative; headers hold the box's edge in float32, some programs round it
)


Origin = tuple[float, float, float]
"""Where the middle of a map's first voxel is, in Å along x, y, z, as a model has it."""

PACKED = ".gz"  # end of the names of files that are compressed
GZIP_LEVEL = 6
LABEL_BYTES = 80  # of a line of words in a header


def write(
    path: str | Path,
    density: Tensor | np.ndarray,
    pixel_size: float,
    *,
    origin: Origin = (0.0, 0.0, 0.0),
    label: str | None = None,
) -> None:
    """Write a map [z, y, x] as float32 (mode 2, space group 1) with voxels of `pixel_size` Å, start
    at zero; compressed by gzip where the name ends in .gz.

    label: what the map is, in up to 80 ASCII characters, after the program's own. Raises DataError
    for a map that is not a finite volume, OutputError where the file system refuses.
    """
    data = _volume(path, density)
    _check_voxels(path, pixel_size)
    # ChimeraX places a map by origin and start, RELION ignores both; zero is where they agree.
    header = mrc_format.header(data.shape, pixel_size, _statistics(path, data))
    if any(origin) or label is not None:
        header = _described(header, origin, label)
    packed = Path(path).suffix == PACKED
    with replacing(path) as sibling, _opened(sibling, packed) as file:
        file.write(header)
        *planes, last = data
        for plane in planes:
            if plane.any():
                file.write(plane.data)
            else:  # a hole, which takes no room on a disk: most of a large box is empty
                file.seek(plane.nbytes, SEEK_CUR)
        file.write(last.data)


@contextmanager
def _opened(path: Path, packed: bool) -> Iterator[BufferedIOBase]:
    """A file to write to, whose bytes are packed by gzip if that is asked for."""
    with path.open("wb") as file:
        if not packed:
            yield file
            return
        # without name and time: the same map is the same file
        with gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0) as packer:
            yield packer


def read(path: str | Path) -> tuple[Tensor, float]:
    """A map "D D D" [z, y, x] in float32 and its pixel size in Å; integers and float16 are
    converted, start and origin ignored.

    Files compressed by gzip or bzip2 are unpacked, machine stamps that are not by the book do not
    matter. Raises DataError for a file that is missing or no MRC file, and for a map that is not
    cubic, isotropic and finite.
    """
    try:
        layout, data = _load(Path(path))
    except FileNotFoundError:
        raise DataError(f"map '{path}' does not exist; check the path") from None
    except MrcError as error:
        remedy = error.remedy or "give an .mrc or .map file"
        raise DataError(f"map '{path}' cannot be read as MRC: {error.reason}; {remedy}") from error
    order = _order(path, layout.axes)
    values = np.array(data.transpose(order), dtype=np.float32, order="C")
    if not np.isfinite(values).all():
        raise DataError(
            f"map '{path}' has {_count_bad(values)} values that are not finite; mend it first"
        )
    return torch.from_numpy(values), _isotropic(path, layout.voxel_size)


def read_origin(path: str | Path) -> Origin:
    """Where a map is, by its header: the origin, or the start where the origin is zero, as ChimeraX
    has it.

    Raises DataError for a file that is missing or no MRC file.
    """
    try:
        header = _first_bytes(Path(path))
        layout = mrc_format.parse(header, None)
    except FileNotFoundError:
        raise DataError(f"map '{path}' does not exist; check the path") from None
    except MrcError as error:
        remedy = error.remedy or "give an .mrc or .map file"
        raise DataError(f"map '{path}' cannot be read as MRC: {error.reason}; {remedy}") from error
    fields = _fields(header)
    origin = [float(fields["origin"][axis]) for axis in "xyz"]
    if not any(origin) or not np.isfinite(origin).all():
        start = _starts(fields)
        origin = [step * size for step, size in zip(start, layout.voxel_size, strict=True)]
    x, y, z = origin
    return x, y, z


def _first_bytes(path: Path) -> bytes:
    """A file's header, unpacked. Raises MrcError."""
    file = OpenFile(path)
    if not file.is_packed():
        return file.read(mrc_format.HEADER_BYTES)
    return b"".join(Unpacked(file).pieces(mrc_format.HEADER_BYTES))


def _fields(header: bytes) -> np.ndarray:
    """The fields of a header, in the byte order in which its mode makes sense."""
    little = np.frombuffer(header, HEADER_DTYPE.newbyteorder("<"))[0]
    if 0 <= int(little["mode"]) <= 0xFFFF:
        return little
    return np.frombuffer(header, HEADER_DTYPE.newbyteorder(">"))[0]


def _starts(fields: np.ndarray) -> list[int]:
    """The first voxel along x, y, z; the file has it by columns, rows, sections."""
    stored = [int(fields[name]) for name in ("nxstart", "nystart", "nzstart")]
    axes = [int(fields[name]) for name in ("mapc", "mapr", "maps")]
    if sorted(axes) != [1, 2, 3]:
        return stored
    return [stored[axes.index(axis)] for axis in (1, 2, 3)]


def _described(header: bytes, origin: Origin, label: str | None) -> bytes:
    """The header with a place and a line of words."""
    fields = np.frombuffer(header, HEADER_DTYPE.newbyteorder("<")).copy()
    fields["origin"] = origin
    if label is not None:
        words = label.encode("ascii", "replace")
        fields["label"][0, 1] = words[:LABEL_BYTES]
        fields["nlabl"] = 2
    return fields.tobytes()


def _volume(path: str | Path, density: Tensor | np.ndarray) -> np.ndarray:
    """The values as they are in the file. Raises DataError where they are no map."""
    given = density.detach().cpu().numpy() if isinstance(density, Tensor) else np.asarray(density)
    if given.ndim != 3 or not given.size:
        raise DataError(f"map for '{path}' has shape {given.shape}; it must be [z, y, x]")
    if np.iscomplexobj(given):
        raise DataError(f"map for '{path}' holds complex numbers; give a map in real space")
    with np.errstate(over="ignore"):  # what float32 cannot hold is found below
        return np.ascontiguousarray(given, dtype="<f4")


def _check_voxels(path: str | Path, pixel_size: float) -> None:
    if not (pixel_size > 0 and np.isfinite(pixel_size)):
        raise DataError(
            f"map for '{path}' has voxels of {pixel_size:g} Å; give a size above 0 that is finite"
        )


def _statistics(path: str | Path, data: np.ndarray) -> tuple[float, float, float, float]:
    """Minimum, maximum, mean and standard deviation. Raises DataError where values are not finite.

    As numpy and mrcfile have them in float32, but without arrays as large as the map, which take a
    second for 512 voxels an edge.
    """
    values = torch.from_numpy(data if data.flags.writeable else data.copy())
    low, high = torch.aminmax(values)  # NaN where any value is
    if not bool(low.isfinite() & high.isfinite()):
        raise DataError(
            f"map for '{path}' has {_count_bad(data)} values that are not finite; it was not"
            " written"
        )
    with np.errstate(over="ignore", invalid="ignore"):  # values near the end of float32
        mean = float(data.mean(dtype=np.float32))
    squares = [(plane - mean).square().sum(dtype=torch.float64) for plane in values]
    deviation = (torch.stack(squares).sum() / values.numel()).sqrt()
    return float(low), float(high), mean, float(deviation)


def _load(path: Path) -> tuple[Layout, np.ndarray]:
    """What the header says, and the values as they are stored. Raises MrcError, and DataError for
    what is no cubic map.
    """
    file = OpenFile(path)
    if not file.is_packed():
        layout = mrc_format.parse(file.read(mrc_format.HEADER_BYTES), file.size)
        raw = _room(path, layout)
        file.read_into([raw], layout.offset, raw.nbytes)
        return layout, layout.decode(raw)
    unpacked = Unpacked(file)
    layout = unpacked.layout()
    raw = _room(path, layout)
    unpacked.skip(layout.offset - mrc_format.HEADER_BYTES)
    place = 0
    for piece in unpacked.pieces(layout.data_bytes):
        raw[place : place + len(piece)] = np.frombuffer(piece, np.uint8)
        place += len(piece)
    unpacked.check_end()
    return layout, layout.decode(raw)


def _room(path: Path, layout: Layout) -> np.ndarray:
    """An array for the bytes of a map's values. Raises DataError for what is no cubic map."""
    if layout.complex_type is not None:
        raise DataError(f"map '{path}' holds complex numbers; instamap needs a map in real space")
    shape = layout.shape
    if layout.depth > 1 and shape[0] > layout.depth:
        raise DataError(
            f"map '{path}' holds {shape[0] // layout.depth} volumes; instamap needs a file of one"
        )
    if len(set(shape)) != 1:
        said = shape[1:] if shape[0] == 1 else shape
        raise DataError(f"map '{path}' has shape {said}; instamap needs a cubic volume")
    try:
        return np.empty(layout.data_bytes, np.uint8)
    except MemoryError:
        needed = layout.data_bytes / 1e9
        raise DataError(
            f"map '{path}' has shape {shape}, which takes {needed:.3g} GB of memory; scale it down"
        ) from None


def _order(path: str | Path, axes: tuple[int, int, int]) -> tuple[int, ...]:
    """How to transpose stored axes to z, y, x."""
    if axes == (0, 0, 0):  # some programs leave the fields empty
        return 0, 1, 2
    if sorted(axes) != [1, 2, 3]:
        raise DataError(
            f"map '{path}' has axis order mapc, mapr, maps = {axes[::-1]}; it must be a permutation"
            " of 1, 2, 3"
        )
    return tuple(axes.index(axis) for axis in (3, 2, 1))


def _isotropic(path: str | Path, size: tuple[float, float, float]) -> float:
    low = min(size)
    high = max(size)
    if not low > 0 or not np.isfinite(size).all():
        raise DataError(
            f"map '{path}' has voxel size {low:g} Å in its header; set it to the true one"
        )
    if high - low > PIXEL_SIZE_TOLERANCE * high:
        raise DataError(
            f"map '{path}' has voxels of {size[0]:g} x {size[1]:g} x {size[2]:g} Å; instamap needs"
            " cubes"
        )
    return round(size[0], 6)  # undoes the float32 of the header: 1.06, not 1.0599999


def _count_bad(data: np.ndarray) -> int:
    return int(data.size - np.isfinite(data).sum())
