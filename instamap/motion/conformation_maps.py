"""Maps of states: which coordinates to show, the maps and half maps there, and what they are worth."""

import csv
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from instamap.errors import DataError, OptionError
from instamap.files import replacing
from instamap.maps import fsc, mask, mrc
from instamap.motion.kmeans import kmeans, means, nearest
from instamap.motion.motion_model import Motion

ENDS = (
    0.02,
    0.98,
)  # quantiles of a single coordinate between which a path runs: beyond are the worst estimates
CORNERS = 8  # means through which a path in several coordinates runs
ROUNDS = 200  # of k-means at most


@dataclass(frozen=True)
class State:
    """One state. file: name of its map. z: L coordinates. particles: how many are nearest to it.
    resolution: Å, or None (no half maps).
    """

    file: str
    z: tuple[float, ...]
    particles: int
    resolution: float | None


def clusters(latents: Tensor, count: int, seed: int) -> Tensor:
    """Centres "K L" of `count` k-means clusters of the coordinates "n L", in order along the first
    principal axis. Raises OptionError.
    """
    different = len(latents.unique(dim=0))
    if not 1 <= count <= different:
        raise OptionError(
            f"kmeans is {count}; it must be from 1 to {different}, the number of different"
            " coordinates"
        )
    centres = kmeans(latents, count, torch.Generator().manual_seed(seed), ROUNDS)
    return centres[_principal(latents, centres).argsort()]


def path(latents: Tensor, count: int, seed: int) -> Tensor:
    """`count` states "count L" along the coordinates "n L", at equal distances. Raises OptionError.

    One coordinate: from its 2nd to its 98th percentile. More: particles are put into 8 clusters by
    k-means of their places on the first principal axis, and the path leads, by straight lines,
    through the mean coordinates of each.
    """
    if count < 2:
        raise OptionError(f"path is {count}; it must be 2 states or more")
    if latents.shape[1] == 1:
        ends = torch.tensor(ENDS, dtype=latents.dtype)
        return through(torch.quantile(latents[:, 0], ends)[:, None], count)
    place = _principal(latents, latents)[:, None]
    centres = kmeans(place, CORNERS, torch.Generator().manual_seed(seed), ROUNDS).sort(dim=0).values
    near = nearest(place, centres)
    corners = means(latents, near, latents[: len(centres)])
    return through(corners[torch.bincount(near, minlength=len(corners)) > 0], count)


def _principal(latents: Tensor, points: Tensor) -> Tensor:
    """Places "m" of points "m L" on the first principal axis of the coordinates "n L", the largest
    component of which is positive.
    """
    centre = latents.mean(0)
    axis = torch.linalg.svd((latents - centre).mT @ (latents - centre))[0][:, 0]
    return (points - centre) @ (axis * axis[axis.abs().argmax()].sign())


def through(corners: Tensor, count: int) -> Tensor:
    """`count` points "count L" at equal distances along the straight lines from each of `corners`
    "K L" to the next.
    """
    lengths = corners.diff(dim=0).norm(dim=1)
    at = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    wanted = torch.linspace(0, 1, count, dtype=at.dtype) * at[-1]
    piece = (torch.searchsorted(at, wanted, right=True) - 1).clamp(0, max(len(corners) - 2, 0))
    share = (
        ((wanted - at[piece]) / lengths[piece].clamp(min=1e-12)).clamp(0, 1)[:, None]
        if len(lengths)
        else torch.zeros(count, 1)
    )
    return torch.lerp(
        corners[piece], corners[(piece + 1).clamp(max=len(corners) - 1)], share.to(corners)
    )


def read(file: str | Path, latent: int) -> Tensor:
    """States "K latent" (float64) of a CSV file: rows of `latent` numbers, or with a header the
    columns z1, z2, ... Raises DataError.
    """
    head, values = read_csv(file)
    wanted = [f"z{i + 1}" for i in range(latent)]
    if head is None:
        if values.shape[1] != latent:
            raise DataError(
                f"'{file}' has {values.shape[1]} numbers a row, but particles have {latent}"
                f" coordinates; give {latent} a row"
            )
        return values
    named = [name for name in head if re.fullmatch(r"z\d+", name)]
    if sorted(named) != sorted(wanted):
        raise DataError(
            f"'{file}' has coordinates {', '.join(named) or 'nowhere'}, particles have"
            f" {', '.join(wanted)}; give these"
        )
    found = values[:, [head.index(name) for name in wanted]]
    if not found.isfinite().all():
        raise DataError(
            f"row {int((~found.isfinite()).any(1).int().argmax()) + 1} of '{file}' has a coordinate"
            " that is no number; mend it"
        )
    return found


def read_csv(file: str | Path) -> tuple[list[str] | None, Tensor]:
    """The header of a CSV file (None where the first row is of numbers) and its rows "K C"; below a
    header nan is what is no number.

    Raises DataError for a file that can't be read, is empty, or has rows of different widths or,
    without a header, no number.
    """
    try:
        with Path(file).open(newline="", encoding="utf-8-sig") as text:
            rows = [
                [cell.strip() for cell in row]
                for row in csv.reader(text)
                if any(cell.strip() for cell in row)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"'{file}' can't be read ({error}); give a CSV file") from None
    values = [[_number(cell) for cell in row] for row in rows]
    head = rows[0] if rows and not all(math.isfinite(v) for v in values[0]) else None
    values = values[1:] if head else values
    if not values:
        raise DataError(f"'{file}' has no row of numbers; write one for each point")
    for number, row in enumerate(values, 1):
        if len(row) != len(head or values[0]):
            raise DataError(
                f"row {number} of '{file}' has {len(row)} values, others {len(head or values[0])};"
                " make them equal"
            )
        if head is None and not all(math.isfinite(v) for v in row):
            raise DataError(f"row {number} of '{file}' has a value that is no number; mend it")
    return head, torch.tensor(values, dtype=torch.float64)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def maps(motion: Motion, z: Tensor) -> dict[str, Tensor]:
    """Maps "D D D" of the state z "L" by the ends of their files' names: "", and "_half1", "_half2"
    where there are two fits.
    """
    each = [half.state(z) for half in motion.halves]
    halves = {f"_half{number}": map for number, map in enumerate(each, 1)} if len(each) == 2 else {}
    return {"": torch.stack(each).mean(0), **halves}


def write(
    motion: Motion, z: Tensor, folder: Path, watch: Callable[[], None] = lambda: None
) -> list[State]:
    """Write state_001.mrc and so on with their half maps for the states z "K L", and states.csv.
    watch() is told of each state.
    """
    latents = motion.latents.to(z)
    number = torch.bincount(nearest(latents, z), minlength=len(z)).tolist()
    done = []
    for k, place in enumerate(z):
        found = maps(motion, place)
        name = f"state_{k + 1:03d}"
        for end, map in found.items():
            mrc.write(folder / f"{name}{end}.mrc", map, motion.scene.pixel_size)
        done.append(
            State(f"{name}.mrc", tuple(place.tolist()), number[k], resolution(motion, found))
        )
        watch()
    _table(folder / "states.csv", done)
    return done


def write_morph(
    motion: Motion, z: Tensor, folder: Path, watch: Callable[[], None] = lambda: None
) -> list[Path]:
    """Write morph_001.mrc and so on for the coordinates z "K L", and return the files. watch() is
    told of each.
    """
    files = [folder / f"morph_{k + 1:03d}.mrc" for k in range(len(z))]
    for file, place in zip(files, z, strict=True):
        mrc.write(file, motion.state(place), motion.scene.pixel_size)
        watch()
    return files


def resolution(motion: Motion, found: dict[str, Tensor]) -> float | None:
    """Å where the half-map FSC inside the mask, corrected by phase randomisation, falls to 0.143;
    None without two maps of something.
    """
    if "_half1" not in found or not all(map.any() for map in found.values()):
        return None
    scene, masks = motion.scene, [half.model.scene.mask for half in motion.halves]
    whole = mask.sphere(scene.box, scene.pixel_size, scene.radius, 2 * scene.pixel_size)
    window = torch.stack([whole if one is None else one for one in masks]).amax(0)
    generator = torch.Generator().manual_seed(0)  # the same question has the same answer
    curve = fsc.phase_randomised(found["_half1"], found["_half2"], window, generator=generator)
    return fsc.resolution(curve, scene.box, scene.pixel_size, 0.143)


def _table(file: Path, done: list[State]) -> None:
    with replacing(file) as sibling, sibling.open("w", newline="", encoding="utf-8") as text:
        table = csv.writer(text, lineterminator="\n")
        table.writerow(
            [
                "state",
                "file",
                *[f"z{i + 1}" for i in range(len(done[0].z))],
                "particles",
                "resolution",
            ]
        )
        for number, state in enumerate(done, 1):
            found = "" if state.resolution is None else f"{state.resolution:.2f}"
            table.writerow(
                [number, state.file, *[f"{v:.6g}" for v in state.z], state.particles, found]
            )
