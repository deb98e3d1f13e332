"""Maps as MRC files: cubic volumes [z, y, x] with a pixel size."""

from pathlib import Path

import mrcfile
import numpy as np
import torch
from torch import Tensor

from instamap.errors import DataError
from instamap.files import replacing

PIXEL_SIZE_TOLERANCE = (
    1e-3  # relative; headers hold the box's edge in float32, some programs round it
)


def write(path: str | Path, map: Tensor | np.ndarray, pixel_size: float) -> None:
    """Write a map [z, y, x] as float32 (mode 2, space group 1) with voxels of `pixel_size` Å,
    origin and start at zero.

    Raises DataError for a map that is not a finite volume, OutputError where the file system
    refuses.
    """
    data = map.detach().cpu().numpy() if isinstance(map, Tensor) else map
    with np.errstate(over="ignore"):  # what float32 cannot hold is found below
        data = np.ascontiguousarray(data, dtype=np.float32)
    if data.ndim != 3:
        raise DataError(f"map for '{path}' has shape {data.shape}; it must be [z, y, x]")
    if not np.isfinite(data).all():
        raise DataError(
            f"map for '{path}' has {_count_bad(data)} values that are not finite; it was not"
            " written"
        )
    with replacing(path) as sibling, mrcfile.new(sibling) as mrc:
        mrc.set_data(data)
        mrc.set_volume()
        mrc.voxel_size = pixel_size
        # ChimeraX places a map by origin and start, RELION ignores both; zero is where they agree.
        mrc.header.origin, mrc.nstart = (0, 0, 0), 0
        mrc.header.label[0] = (
            b"instamap"  # mrcfile's own label has the time in it: equal maps shall be equal files
        )


def read(path: str | Path) -> tuple[Tensor, float]:
    """A map "D D D" [z, y, x] in float32 and its pixel size in Å; integers and float16 are
    converted, start and origin ignored.

    Raises DataError for a file that is missing or no MRC file, and for a map that is not cubic,
    isotropic and finite.
    """
    data, pixel_size, axes = _load(Path(path))
    if np.iscomplexobj(data):
        raise DataError(f"map '{path}' holds complex numbers; instamap needs a map in real space")
    if data.ndim != 3 or len(set(data.shape)) != 1:
        raise DataError(f"map '{path}' has shape {data.shape}; instamap needs a cubic volume")
    data = np.array(data.transpose(_order(path, axes)), dtype=np.float32, order="C")
    if not np.isfinite(data).all():
        raise DataError(
            f"map '{path}' has {_count_bad(data)} values that are not finite; mend it first"
        )
    return torch.from_numpy(data), _isotropic(path, pixel_size)


def _load(path: Path) -> tuple[np.ndarray, tuple, tuple]:
    """Data as stored, voxel size (x, y, z) and the axes (1 is x, 2 is y, 3 is z) of sections, rows
    and columns.
    """
    try:
        with mrcfile.open(path) as mrc:
            header = mrc.header
            size = mrc.voxel_size
            return (
                mrc.data,
                (float(size.x), float(size.y), float(size.z)),
                (int(header.maps), int(header.mapr), int(header.mapc)),
            )
    except FileNotFoundError:
        raise DataError(f"map '{path}' does not exist; check the path") from None
    except (ValueError, OSError, EOFError) as error:
        raise DataError(
            f"map '{path}' cannot be read as MRC: {error}; give an .mrc or .map file"
        ) from error


def _order(path: str | Path, axes: tuple) -> tuple:
    """How to transpose stored axes to z, y, x."""
    if axes == (0, 0, 0):  # some programs leave the fields empty
        return 0, 1, 2
    if sorted(axes) != [1, 2, 3]:
        raise DataError(
            f"map '{path}' has axis order mapc, mapr, maps = {axes[::-1]}; it must be a permutation"
            " of 1, 2, 3"
        )
    return tuple(axes.index(axis) for axis in (3, 2, 1))


def _isotropic(path: str | Path, size: tuple) -> float:
    low = min(size)
    high = max(size)
    if not low > 0 or not np.isfinite(high):
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
