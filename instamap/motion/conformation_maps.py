"""Maps of conformations: which coordinates to show, the maps and half maps there, and what they are
worth.
"""

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from instamap.errors import DataError, OptionError
from instamap.files import replacing
from instamap.maps import fsc, mask, mrc
from instamap.motion import kept_maps, ring
from instamap.motion.kmeans import kmeans, means, nearest
from instamap.motion.motion_model import MotionModel
from instamap.progress import SILENT, Progress

# Quantiles of a single coordinate between which a path runs: beyond are the worst estimates.
END_QUANTILES = (0.02, 0.98)
PATH_CLUSTERS = 8  # through whose means a path in several coordinates runs
KMEANS_ROUNDS = 200  # at most
GOLD_STANDARD = 0.143  # FSC of half maps at the resolution
MASK_EDGE = 2  # pixels, of the largest sphere
MIN_LENGTH = 1e-12  # of a piece of a path, by which it is divided
COORDINATE = re.compile(r"z\d+")
TABLE = "states.csv"
PLAIN = ".mrc"  # end of the names of maps
PACKED = ".mrc.gz"  # of those that are compressed
RESOLUTION = "resolution"  # name of a state's resolution among what is kept of it


@dataclass(frozen=True)
class Conformation:
    """A conformation that was written. file: name of its map. z: its L coordinates.

    particles: how many are nearest to it. resolution: Å, or None (no half maps).
    """

    file: str
    z: tuple[float, ...]
    particles: int
    resolution: float | None


@dataclass(frozen=True)
class ConformationMaps:
    """The map "D D D" of a conformation, and half maps where there are two fits."""

    mean: Tensor
    halves: list[Tensor]

    def by_suffix(self) -> dict[str, Tensor]:
        """The maps by the ends of their files' names: "", "_half1", "_half2"."""
        named = {"": self.mean}
        for number, volume in enumerate(self.halves, 1):
            named[f"_half{number}"] = volume
        return named


def clusters(
    latents: Tensor,
    count: int,
    seed: int,
) -> Tensor:
    """Centres "K L" of `count` k-means clusters of the coordinates "n L", in order along the first
    principal axis. Raises OptionError.
    """
    different = len(latents.unique(dim=0))
    if not 1 <= count <= different:
        raise OptionError(
            f"kmeans is {count}; it must be from 1 to {different}, the number of different"
            " coordinates"
        )
    generator = torch.Generator().manual_seed(seed)
    centres = kmeans(latents, count, generator, KMEANS_ROUNDS)
    order = _principal(latents, centres).argsort()
    return centres[order]


def path(
    latents: Tensor,
    count: int,
    seed: int,
) -> Tensor:
    """`count` places "count L" along the coordinates "n L", at equal distances. Raises OptionError.

    One coordinate: from its 2nd to its 98th percentile. More: particles are put into 8 clusters by
    k-means of their places on the first principal axis, and the path leads, by straight lines,
    through the mean coordinates of each. Coordinates that close upon themselves: once around.
    """
    if count < 2:
        raise OptionError(f"path is {count}; it must be 2 states or more")
    if latents.shape[1] == 1:
        quantiles = torch.tensor(END_QUANTILES, dtype=latents.dtype)
        ends = torch.quantile(latents[:, 0], quantiles)
        return through(ends[:, None], count)
    if ring.closes(latents):
        return ring.around(count).to(latents)
    place = _principal(latents, latents)[:, None]
    generator = torch.Generator().manual_seed(seed)
    centres = kmeans(place, PATH_CLUSTERS, generator, KMEANS_ROUNDS)
    centres = centres.sort(dim=0).values
    near = nearest(place, centres)
    corners = means(latents, near, latents[: len(centres)])
    counts = torch.bincount(near, minlength=len(corners))
    return through(corners[counts > 0], count)


def _principal(latents: Tensor, points: Tensor) -> Tensor:
    """Places "m" of points "m L" on the first principal axis of the coordinates "n L", the largest
    component of which is positive.
    """
    centre = latents.mean(0)
    offset = latents - centre
    directions, _, _ = torch.linalg.svd(offset.mT @ offset)
    axis = directions[:, 0]
    largest = axis[axis.abs().argmax()]
    return (points - centre) @ (axis * largest.sign())


def through(corners: Tensor, count: int) -> Tensor:
    """`count` points "count L" at equal distances along the straight lines from each of `corners`
    "K L" to the next.
    """
    lengths = corners.diff(dim=0).norm(dim=1)
    start = lengths.new_zeros(1)
    reached = torch.cat([start, lengths.cumsum(0)])
    relative = torch.linspace(0, 1, count, dtype=reached.dtype)
    wanted = relative * reached[-1]
    last = max(len(corners) - 2, 0)
    piece = torch.searchsorted(reached, wanted, right=True) - 1
    piece = piece.clamp(0, last)
    share = torch.zeros(count, 1)
    if len(lengths):
        length = lengths[piece].clamp(min=MIN_LENGTH)
        beyond = wanted - reached[piece]
        share = (beyond / length).clamp(0, 1)
        share = share[:, None]
    following = piece + 1
    following = following.clamp(max=len(corners) - 1)
    return torch.lerp(
        corners[piece],
        corners[following],
        share.to(corners),
    )


def read(file: str | Path, latent: int) -> Tensor:
    """Places "K latent" (float64) of a CSV file: rows of `latent` numbers, or with a header the
    columns z1, z2, ... Raises DataError.
    """
    header, values = read_csv(file)
    if header is None:
        if values.shape[1] != latent:
            raise DataError(
                f"'{file}' has {values.shape[1]} numbers a row, but particles have {latent}"
                f" coordinates; give {latent} a row"
            )
        return values
    wanted = coordinate_names(latent)
    named = [name for name in header if COORDINATE.fullmatch(name)]
    if sorted(named) != sorted(wanted):
        raise DataError(
            f"'{file}' has coordinates {', '.join(named) or 'nowhere'}, particles have"
            f" {', '.join(wanted)}; give these"
        )
    columns = [header.index(name) for name in wanted]
    places = values[:, columns]
    wrong = (~places.isfinite()).any(1)
    if wrong.any():
        number = 1 + int(wrong.int().argmax())
        raise DataError(f"row {number} of '{file}' has a coordinate that is no number; mend it")
    return places


def coordinate_names(latent: int) -> list[str]:
    """The names of coordinates in tables: z1, z2, ..."""
    return [f"z{number + 1}" for number in range(latent)]


def read_csv(file: str | Path) -> tuple[list[str] | None, Tensor]:
    """The header of a CSV file (None where the first row is of numbers) and its rows "K C"; below a
    header nan is what is no number.

    Raises DataError for a file that can't be read, is empty, or has rows of different widths or,
    without a header, no number.
    """
    rows = _cells(file)
    values = [[_number(cell) for cell in row] for row in rows]
    header = None
    if rows and not _all_finite(values[0]):
        header = rows[0]
        values = values[1:]
    if not values:
        raise DataError(f"'{file}' has no row of numbers; write one for each point")
    width = len(header or values[0])
    for number, row in enumerate(values, 1):
        if len(row) != width:
            raise DataError(
                f"row {number} of '{file}' has {len(row)} values, others {width}; make them equal"
            )
        if header is None and not _all_finite(row):
            raise DataError(f"row {number} of '{file}' has a value that is no number; mend it")
    return header, torch.tensor(values, dtype=torch.float64)


def _cells(file: str | Path) -> list[list[str]]:
    """The rows of a CSV file that are not empty."""
    try:
        with Path(file).open(newline="", encoding="utf-8-sig") as text:
            rows = [[cell.strip() for cell in row] for row in csv.reader(text)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"'{file}' can't be read ({error}); give a CSV file") from None
    return [row for row in rows if any(row)]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _all_finite(values: Sequence[float]) -> bool:
    return all(math.isfinite(value) for value in values)


def maps_at(motion: MotionModel, z: Tensor) -> ConformationMaps:
    """The maps of the conformation at z "L"."""
    each = [half.conformation(z) for half in motion.halves]
    mean = torch.stack(each).mean(0)
    return ConformationMaps(mean, each if len(each) == 2 else [])


def write(
    motion: MotionModel,
    z: Tensor,
    folder: Path,
    progress: Progress = SILENT,
    ending: str = PLAIN,
) -> list[Conformation]:
    """Writes state_001.mrc and so on with their half maps for the conformations z "K L", and
    states.csv. What progress has kept of a state is not computed again.

    ending: of the maps' names, `PLAIN` or `PACKED`.
    """
    near = nearest(motion.latents.to(z), z)
    counts = torch.bincount(near, minlength=len(z)).tolist()
    written = []
    for k, place in enumerate(z):
        maps, worth = _kept_or_made(motion, place, progress.kept("state"))
        name = f"state_{k + 1:03d}"
        label = f"conformation at {_words(place)}"
        for suffix, volume in maps.by_suffix().items():
            file = folder / f"{name}{suffix}{ending}"
            mrc.write(file, volume, motion.scene.pixel_size, label=label)
        found = Conformation(
            file=f"{name}{ending}",
            z=tuple(place.tolist()),
            particles=counts[k],
            resolution=worth,
        )
        written.append(found)
        progress.counted("maps", k + 1, len(z))
    _write_table(folder / TABLE, written)
    return written


def _words(z: Tensor) -> str:
    """Coordinates "L" in words."""
    names = coordinate_names(len(z))
    pairs = zip(names, z.tolist(), strict=True)
    return ", ".join(f"{name} = {value:.4g}" for name, value in pairs)


def _kept_or_made(
    motion: MotionModel, z: Tensor, file: Path | None
) -> tuple[ConformationMaps, float | None]:
    """The maps at z "L" and their resolution: as a file keeps them, or made and kept there."""
    kept = kept_maps.load(file)
    if kept is not None:
        found = kept.pop(RESOLUTION).tolist()
        mean = kept.pop("")
        return ConformationMaps(mean, list(kept.values())), found[0] if found else None
    maps = maps_at(motion, z)
    worth = resolution(motion, maps)
    numbers = [] if worth is None else [worth]
    number = torch.tensor(numbers, dtype=torch.float64)
    kept_maps.save(file, {**maps.by_suffix(), RESOLUTION: number})
    return maps, worth


def write_morph(
    motion: MotionModel,
    z: Tensor,
    folder: Path,
    progress: Progress = SILENT,
    ending: str = PLAIN,
) -> list[Path]:
    """Writes morph_001.mrc and so on for the coordinates z "K L", and returns the files.

    ending: of the maps' names, `PLAIN` or `PACKED`. A map that progress has kept is not computed
    again.
    """
    files = []
    for number, place in enumerate(z, 1):
        file = folder / f"morph_{number:03d}{ending}"
        kept = progress.kept("morph")
        found = kept_maps.load(kept)
        if found is None:
            found = {"map": motion.conformation(place)}
            kept_maps.save(kept, found)
        volume = found["map"]
        label = f"conformation at {_words(place)}"
        mrc.write(file, volume, motion.scene.pixel_size, label=label)
        files.append(file)
        progress.counted("maps of the morph", number, len(z))
    return files


def resolution(motion: MotionModel, maps: ConformationMaps) -> float | None:
    """Å where the half-map FSC inside the mask, corrected by phase randomisation, falls to 0.143;
    None without two maps of something.
    """
    if not maps.halves or not all(volume.any() for volume in (maps.mean, *maps.halves)):
        return None
    first, second = maps.halves
    scene = motion.scene
    size = scene.pixel_size
    edge = MASK_EDGE * size
    sphere = mask.sphere(scene.box, size, scene.radius, edge)
    windows = []
    for half in motion.halves:
        own = half.model.scene.mask
        windows.append(sphere if own is None else own)
    window = torch.stack(windows).amax(0)
    generator = torch.Generator().manual_seed(0)  # the same question has the same answer
    curve = fsc.phase_randomised(first, second, window, generator=generator)
    return fsc.resolution(curve, scene.box, size, GOLD_STANDARD)


def _write_table(file: Path, written: list[Conformation]) -> None:
    coordinates = coordinate_names(len(written[0].z))
    with replacing(file) as sibling, sibling.open("w", newline="", encoding="utf-8") as text:
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["state", "file", *coordinates, "particles", "resolution"])
        for number, one in enumerate(written, 1):
            z = [f"{value:.6g}" for value in one.z]
            worth = "" if one.resolution is None else f"{one.resolution:.2f}"
            table.writerow([number, one.file, *z, one.particles, worth])
