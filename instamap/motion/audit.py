"""Whether to believe a motion: how far material moves, what that does to space, and how far two
independent fits agree on it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from instamap.errors import DataError
from instamap.geometry import grids, strain
from instamap.maps import mrc
from instamap.motion import ring
from instamap.motion.conformation_maps import through
from instamap.motion.motion_model import HalfModel, MotionModel
from instamap.motion.transport import POINTS_AT_ONCE, TOLERANCE, transport
from instamap.progress import SILENT, Progress

COUNT = 9  # conformations along a single coordinate
END_QUANTILES = (0.05, 0.95)  # between which they lie
REACH = 1.5  # standard deviations at which conformations of several coordinates lie
NEAR_SHARE = 0.01  # of the particles, whose mean a conformation of several coordinates is
MIN_SPREAD = 1e-12
# Of the way from the solvent to the highest density: what is above counts as the particle.
SOLID_RISE = 0.25
TOP_QUANTILE = 0.999  # of the density that counts as the highest
# Disagreement, relative to the motion, below which the motion of a voxel is believed.
MAX_DISAGREEMENT = 0.5
MIN_MOTION = 0.1  # Å: what moves less does not move
MIN_BELIEVED = 0.5  # share of the motion
MIN_WINDOW = 0.5  # of a mask, where material is followed
MAX_SQUARED_STRAIN = 1e6
LOW_QUANTILE = 0.01  # of Jacobian determinants
MIN_DIVISOR = 1e-30
MAPS = ("displacement", "jacobian", "strain", "disagreement", "believed")
LABELS = {
    "displacement": "displacement in Angstrom, root mean square over conformations",
    "jacobian": "least Jacobian determinant; space folds where it is not above 0",
    "strain": "strain, root mean square over conformations",
    "disagreement": "difference of the halves' displacements in Angstrom, rms",
    "believed": "1 where the motion is to be believed",
    "reference": "conformation from which the motion is seen",
    "local_resolution": "local resolution of the reference in Angstrom",
    "verdict": "0 nothing, 1 map alone, 2 map at rest, 3 map and motion",
}
"""What the maps of an audit and of its verdict are, in the words of their files' headers."""


@dataclass(frozen=True)
class ConformationAudit:
    """One conformation z, seen from the reference. Lengths in Å; over the mask's voxels, and
    `weighted` by density where there is any.

    displacement: root mean square, and largest, of the mean of both fits' |d|. jacobian: det(1 +
    ∇u) of each fit's pull-back x + u(x; z) in the conformation: the least, the 1st percentile, and
    `folded`, the share of the conformation's density where it is not above 0: where domains pass
    each other, solvent folds, and nobody minds. strain: see `Audit`. disagreement: of |d₁ - d₂|,
    None with one fit. inverse_error: the largest. lost: share of voxels where it is above 0.01 Å,
    which count for no displacement.
    """

    z: tuple[float, ...]
    displacement_rms: float
    displacement_max: float
    displacement_weighted: float
    jacobian_min: float
    jacobian_p1: float
    folded: float
    strain_rms: float
    disagreement_rms: float | None
    inverse_error: float
    lost: float


@dataclass(frozen=True)
class Audit:
    """d_h(y; z) = x - y: how far fit h moves the material at point y of the reference to bring it
    to conformation z (see `transport`).

    Over all conformations, weighted by density (`solid`): motion_rms of |d|, d the mean of both
    fits' d_h; disagreement_rms of |d₁ - d₂|, half of which is the standard error of d; signal = Σ
    d₁·d₂ / √(Σ|d₁|² Σ|d₂|²), the share of the motion that both fits share; strain_rms of ‖½ (FᵀF -
    1)‖, F = ∂x/∂y, at most 1000. believed: the share of Σ|d|² in voxels where the root mean square
    over conformations of |d₁ - d₂| is below half that of |d|, which itself exceeds 0.1 Å.
    disagreement_rms, signal and believed are None with one fit, the last two also where nothing
    moves.

    maps "D D D": displacement, strain, disagreement (root mean squares over conformations) and
    believed (0 or 1) at y; jacobian at points of the conformations, the least of all conformations
    and fits. Outside the mask they are 0, the jacobian 1.
    """

    reference: tuple[float, ...]
    conformations: list[ConformationAudit]
    motion_rms: float
    strain_rms: float
    disagreement_rms: float | None
    signal: float | None
    believed: float | None
    maps: dict[str, Tensor]
    pixel_size: float

    @property
    def verdict(self) -> str:
        """Whether to believe the motion, in words that name the file of an audit's folder."""
        return self.verdict_where("believed.mrc is 1")

    def verdict_where(self, place: str) -> str:
        """Whether to believe the motion, in words; `place`: where the map `believed` is shown."""
        if max(self.motion_rms, self.disagreement_rms or 0.0) < MIN_MOTION:
            return f"nothing moves (less than {MIN_MOTION:g} Å rms)"
        if self.disagreement_rms is None:
            return "unknown: there is one fit, with which no other can disagree"
        if (self.believed or 0.0) < MIN_BELIEVED:
            return (
                f"not to be believed: the halves differ by {self.disagreement_rms:.3g} Å rms in a"
                f" motion of {self.motion_rms:.3g} Å rms"
            )
        believed = f"to be believed where {place}"
        folded = max(one.folded for one in self.conformations)
        if not folded:
            return believed
        return f"{believed}, but space folds in up to {folded:.2%} of the density"

    def record(self) -> dict[str, object]:
        """What audit.json says."""
        values = asdict(self)
        del values["maps"]
        del values["pixel_size"]
        values["states"] = values.pop("conformations")
        inverse_error = max(one.inverse_error for one in self.conformations)
        lost = max(one.lost for one in self.conformations)
        worst = {"inverse_error": inverse_error, "lost": lost}
        return {"verdict": self.verdict, **values, **worst}

    def write_maps(self, folder: Path) -> None:
        """Writes the maps as MRC files into an existing folder."""
        for name, volume in self.maps.items():
            mrc.write(folder / f"{name}.mrc", volume, self.pixel_size, label=LABELS.get(name))


def reference(motion: MotionModel) -> Tensor:
    """The median "L" of the particles' coordinates, each for itself; of those that close upon
    themselves the point (1, 0).
    """
    if ring.closes(motion.latents):
        return ring.first_of(motion.latents)
    return motion.latents.median(0).values


def conformations(latents: Tensor) -> Tensor:
    """The conformations "S L" that are audited, different from one another.

    One coordinate: 9 at equal distances from the 5th to the 95th percentile. More: places on either
    side of the median, 1.5 standard deviations off along each coordinate; for each, the mean of the
    hundredth of the particles that are nearest, to be where particles are.
    """
    size = latents.shape[1]
    if size == 1:
        quantiles = torch.tensor(END_QUANTILES, dtype=latents.dtype)
        ends = torch.quantile(latents[:, 0], quantiles)
        return through(ends[:, None], COUNT).unique(dim=0)
    spread = latents.std(0, unbiased=False).clamp(min=MIN_SPREAD)
    middle = latents.median(0).values
    offset = REACH * torch.eye(size).to(latents)
    places = torch.cat([-offset, offset])
    wanted = round(NEAR_SHARE * len(latents))
    count = max(1, wanted)
    relative = (latents - middle) / spread
    distance = torch.cdist(places, relative)
    nearest = distance.argsort(1)[:, :count]
    return latents[nearest].mean(1).unique(dim=0)


def audit(
    motion: MotionModel,
    start: Tensor,
    places: Tensor,
    progress: Progress = SILENT,
    every: int = 1,
) -> Audit:
    """The motion from the conformation `start` "L" to each of those at `places` "S L", inside the
    mask of all fits.

    every: voxels along each axis of which one is looked at (`lattice`); in the maps others are
    as outside the mask.
    """
    scene = motion.scene
    halves = motion.halves
    centres = grids.voxel_centres(scene.box, scene.pixel_size)
    centres = centres.reshape(-1, 3)
    chosen = torch.zeros(scene.box, scene.box, scene.box, dtype=torch.bool)
    lattice(chosen, every).fill_(True)
    inside = _inside_all(halves, centres) & chosen.flatten()
    weight = solid(halves, start).flatten()[inside]
    sums = _Sums(centres[inside])
    rows = []
    for number, z in enumerate(places, 1):
        pulls = [_pull(half, sums.points, start, z) for half in halves]
        dense = _dense(halves, z, inside)
        rows.append(_audit_conformation(pulls, z, weight, dense, sums))
        progress.counted("conformations", number, len(places))
    maps = _maps(sums, len(halves), inside, scene.box)
    believed = maps["believed"].flatten()
    return _total(start, rows, sums, weight, maps, believed[inside], motion)


def lattice(volume: Tensor, every: int) -> Tensor:
    """A view "M M M" of one in `every` voxels along each axis of a volume "D D D", its centre among
    them.
    """
    start = len(volume) // 2 % every
    return volume[start::every, start::every, start::every]


def audited(motion: MotionModel) -> Tensor:
    """Which voxels "D D D" an audit looks at: those inside the mask of every fit."""
    scene = motion.scene
    centres = grids.voxel_centres(scene.box, scene.pixel_size)
    inside = _inside_all(motion.halves, centres.reshape(-1, 3))
    return inside.reshape(centres.shape[:-1])


@torch.no_grad()
def _inside_all(halves: Sequence[HalfModel], points: Tensor) -> Tensor:
    """Which of the points "P 3" are inside the mask of every fit."""
    windows = [half.window(points) for half in halves]
    return torch.stack(windows).amin(0) > MIN_WINDOW


def _total(
    start: Tensor,
    rows: list[ConformationAudit],
    sums: "_Sums",
    weight: Tensor,
    maps: dict[str, Tensor],
    believed: Tensor,
    motion: MotionModel,
) -> Audit:
    """The audit of all conformations, from sums over them."""

    def total(name: str) -> float:
        weighted = weight * sums.of[name]
        return float(weighted.double().sum())

    def mean(name: str) -> float:
        square = total(name) / max(total("count"), MIN_DIVISOR)
        return square**0.5

    disagreement = None
    signal = None
    share = None
    if len(motion.halves) == 2:
        disagreement = mean("disagreement")
        norm = (total("first") * total("second")) ** 0.5
        moved = total("displacement")
        if norm > 0:
            signal = total("both") / norm
        if moved > 0:
            counted = weight * sums.of["displacement"] * believed
            share = float(counted.double().sum()) / moved
    return Audit(
        reference=tuple(start.tolist()),
        conformations=rows,
        motion_rms=mean("displacement"),
        strain_rms=mean("strain"),
        disagreement_rms=disagreement,
        signal=signal,
        believed=share,
        maps=maps,
        pixel_size=motion.scene.pixel_size,
    )


def solid(halves: Sequence[HalfModel], z: Tensor) -> Tensor:
    """Weights "D D D": the least density of all fits at z, above the solvent; 0 where it is not
    well above it in all of them.

    The solvent's level is the median inside the mask; well above it is a quarter of the way to the
    99.9th percentile. Raises DataError where no voxel is.
    """
    rises = [_solid_rise(half.conformation(z)) for half in halves]
    weight = torch.stack(rises).amin(0)
    if not weight.any():
        raise DataError(
            "the fits' maps of the reference have no density in common; their motions cannot be"
            " compared"
        )
    return weight


def _dense(halves: Sequence[HalfModel], z: Tensor, inside: Tensor) -> Tensor:
    """Weights "P" of the voxels inside the mask by the density at z: see `solid`. All count alike
    where the fits have no density in common.
    """
    try:
        weight = solid(halves, z).flatten()[inside]
    except DataError:
        weight = torch.zeros(int(inside.sum()))
    return weight if weight.any() else torch.ones_like(weight)


def _solid_rise(volume: Tensor) -> Tensor:
    """The density of a map above the solvent, relative to the highest, where it is well above."""
    within = volume[volume != 0].sort().values
    if not len(within) or within[0] == within[-1]:
        raise DataError(
            "the density of a fit is flat in the reference: there is nothing whose motion could be"
            " told"
        )
    low = within[len(within) // 2]
    last = len(within) - 1
    high = within[int(TOP_QUANTILE * last)]
    range_above = (high - low).clamp(min=MIN_DIVISOR)
    rise = (volume - low) / range_above
    return rise * (rise > SOLID_RISE) * (volume != 0)


@dataclass(frozen=True)
class _Pull:
    """What one fit says of points y "P 3" of the reference, brought to a conformation.

    displacement "P 3"; left "P": of the inverse. determinant "P": det(1 + ∇u) at these points of
    the conformation. strain "P": ‖½ (FᵀF - 1)‖² of the motion.
    """

    displacement: Tensor
    left: Tensor
    determinant: Tensor
    strain: Tensor


class _Sums:
    """Sums over conformations at points "P 3", and the least determinant "P" of all."""

    def __init__(self, points: Tensor) -> None:
        self.points = points
        self.determinant = points.new_full((len(points),), torch.inf)
        names = ("displacement", "disagreement", "strain", "count", "first", "second", "both")
        self.of = {name: points.new_zeros(len(points)) for name in names}

    def add(self, values: dict[str, Tensor], good: Tensor) -> None:
        """Adds what was found at points that could be followed."""
        followed = good > 0
        for name, value in values.items():
            self.of[name] += torch.where(followed, value, 0.0)


def _pull(
    half: HalfModel,
    y: Tensor,
    start: Tensor,
    z: Tensor,
) -> _Pull:
    x, left = transport(half, y, start, z)
    # F = ∂x/∂y, by way of the common density.
    to_common = slopes(half, y, start)
    from_common = slopes(half, x, z)
    gradient, _ = torch.linalg.solve_ex(from_common, to_common)
    square = strain.green_lagrange(gradient).square().sum((1, 2))
    bounded = square.nan_to_num(torch.inf).clamp(max=MAX_SQUARED_STRAIN)
    determinant = torch.linalg.det(slopes(half, y, z))
    return _Pull(x - y, left, determinant, bounded)


@torch.no_grad()
def slopes(
    half: HalfModel,
    x: Tensor,
    z: Tensor,
) -> Tensor:
    """1 + ∇u(x; z) "P 3 3" at points "P 3" of the conformation z, by differences over half a
    voxel.
    """
    step = 0.5 * half.model.scene.pixel_size

    def pull_back(points: Tensor) -> Tensor:
        return half.pull_back(points, z)

    each = []
    for chunk in x.split(POINTS_AT_ONCE):
        image = pull_back(chunk)
        each.append(strain.jacobian(pull_back, chunk, image, step))
    return torch.cat(each)


def _audit_conformation(
    pulls: list[_Pull],
    z: Tensor,
    weight: Tensor,
    dense: Tensor,
    sums: _Sums,
) -> ConformationAudit:
    """The row of one conformation, which is added to the sums over all.

    weight "P": of the reference's density; dense "P": of the conformation's, at the same points.
    """
    left = torch.stack([one.left for one in pulls])
    determinant = torch.stack([one.determinant for one in pulls])
    displacements = torch.stack([one.displacement for one in pulls])
    strains = torch.stack([one.strain for one in pulls])
    good = (left.amax(0) <= TOLERANCE).to(weight)
    mean = displacements.mean(0)
    first = displacements[0]
    second = displacements[-1]
    values = {
        "displacement": mean.square().sum(1),
        "disagreement": (first - second).square().sum(1),
        "strain": strains.mean(0),
        "first": first.square().sum(1),
        "second": second.square().sum(1),
        "both": (first * second).sum(1),
        "count": torch.ones_like(good),
    }
    sums.determinant = torch.minimum(sums.determinant, determinant.amin(0))
    sums.add(values, good)
    weighted = good * weight
    disagreement = None
    if len(pulls) == 2:
        disagreement = _root_mean(values["disagreement"], weighted)
    return ConformationAudit(
        z=tuple(z.tolist()),
        displacement_rms=_root_mean(values["displacement"], good),
        displacement_max=float((mean.norm(dim=1) * good).amax()),
        displacement_weighted=_root_mean(values["displacement"], weighted),
        jacobian_min=float(determinant.min()),
        jacobian_p1=_low(determinant),
        folded=_share(determinant <= 0, dense),
        strain_rms=_root_mean(values["strain"], weighted),
        disagreement_rms=disagreement,
        inverse_error=float(left.max()),
        lost=1.0 - float(good.mean()),
    )


def _share(chosen: Tensor, weight: Tensor) -> float:
    """The share of the weights "P" of the points that each fit chose, "F P", on average."""
    total = weight.double().sum()
    of_fits = (chosen.double() @ weight.double()) / total
    return float(of_fits.mean())


def _root_mean(square: Tensor, weight: Tensor) -> float:
    """The root of the weighted mean of squares."""
    total = (square * weight).double().sum()
    count = weight.double().sum().clamp(min=MIN_DIVISOR)
    return float((total / count).sqrt())


def _low(values: Tensor) -> float:
    """The 1st percentile."""
    rank = max(1, round(LOW_QUANTILE * values.numel()))
    return float(values.flatten().kthvalue(rank).values)


def _maps(
    sums: _Sums,
    fits: int,
    inside: Tensor,
    box: int,
) -> dict[str, Tensor]:
    """The maps of an audit by name: see `Audit`."""
    count = sums.of["count"].clamp(min=1)
    displacement = (sums.of["displacement"] / count).sqrt()
    disagreement = (sums.of["disagreement"] / count).sqrt()
    believed = torch.zeros_like(count)
    if fits == 2:
        agrees = disagreement < MAX_DISAGREEMENT * displacement
        believed = agrees & (displacement > MIN_MOTION)
    values = {
        "displacement": displacement,
        "jacobian": sums.determinant,
        "strain": (sums.of["strain"] / count).sqrt(),
        "disagreement": disagreement,
        "believed": believed,
    }
    maps = {}
    for name in MAPS:
        outside = 1.0 if name == "jacobian" else 0.0
        volume = torch.full((box**3,), outside)
        volume[inside] = values[name].float()
        maps[name] = volume.reshape(box, box, box)
    return maps
