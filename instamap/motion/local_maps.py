"""Local resolution of conformations: how far the half maps of each agree around every voxel."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from instamap.maps import local_resolution, mrc
from instamap.motion.conformation_maps import Conformation
from instamap.progress import SILENT, Progress

SUFFIX = "_locres"
SHARES = (0.1, 0.5, 0.9)  # of the voxels inside the masks
LABEL = "local resolution in Angstrom"


@dataclass(frozen=True)
class LocalRange:
    """Å that a tenth, half and nine tenths of a conformation's voxels are better than."""

    best: float
    median: float
    worst: float


def write_local_resolution(
    folder: Path,
    written: Sequence[Conformation],
    progress: Progress = SILENT,
) -> list[LocalRange | None]:
    """Writes state_001_locres.mrc and so on (Å) beside the half maps of conformations in a folder.

    All are judged in one window, that of the coarsest of them, so that they can be compared. None
    of a conformation whose half maps have no resolution. Raises OptionError where the box is too
    small for a window.
    """
    resolutions = [one.resolution for one in written if one.resolution is not None]
    found: list[LocalRange | None] = []
    for number, one in enumerate(written, 1):
        if one.resolution is None:
            found.append(None)
            continue
        stem = one.file.removesuffix(".gz").removesuffix(".mrc")
        ending = one.file.removeprefix(stem)
        first, pixel_size = mrc.read(folder / f"{stem}_half1{ending}")
        second, _ = mrc.read(folder / f"{stem}_half2{ending}")
        bands = local_resolution.choose_bands(len(first), pixel_size, max(resolutions))
        local = local_resolution.estimate(first, second, pixel_size, bands)
        file = folder / f"{stem}{SUFFIX}{ending}"
        mrc.write(file, local.resolution, pixel_size, label=LABEL)
        inside = (first != 0) & (second != 0)
        found.append(_range(local.resolution[inside]))
        progress.counted("maps of local resolution", number, len(written))
    return found


def _range(values: Tensor) -> LocalRange:
    ordered = values.sort().values
    last = len(ordered) - 1
    best, median, worst = (float(ordered[round(share * last)]) for share in SHARES)
    return LocalRange(best, median, worst)
