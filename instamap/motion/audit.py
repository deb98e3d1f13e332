"""Whether to believe a motion: how far material moves, what that does to space, and how far two
independent fits agree on it.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from instamap.errors import DataError
from instamap.geometry import grids, strain
from instamap.maps import mrc
from instamap.motion.conformation_maps import through
from instamap.motion.motion_model import Half, Motion
from instamap.motion.transport import CHUNK, TOLERANCE, carried

COUNT = 9  # states along a single coordinate
ENDS = (0.05, 0.95)  # quantiles between which they lie
REACH = 1.5  # standard deviations at which states of several coordinates lie
NEAR = 0.01  # share of the particles whose mean a state of several coordinates is
SOLID = (
    0.25  # of the way from the solvent to the highest density: what is above counts as the particle
)
SHARED = 0.5  # disagreement, relative to the motion, below which the motion of a voxel is believed
LEAST = 0.1  # Å: what moves less does not move
MAPS = ("displacement", "jacobian", "strain", "disagreement", "believed")


@dataclass(frozen=True)
class State:
    """One state z, seen from the reference. Lengths in Å; over the mask's voxels, and `weighted` by
    density where there is any.

    displacement: root mean square, and largest, of the mean of both fits' |d|. jacobian: det(1 +
    ∇u) of each fit's pull-back x + u(x; z) in the state: the least, the 1st percentile, and
    `folded`, the share of voxels where it is not above 0. strain: see `Audit`. disagreement: of |d₁
    - d₂|, None with one fit. inverse_error: the largest. lost: share of voxels where it is above
    0.01 Å, which count for no displacement.
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
    """d_h(y; z) = x - y: how far fit h moves the material at point y of the reference state to
    bring it to state z (see `inverse.carried`).

    Over all states, weighted by density (`solid`): motion_rms of |d|, d the mean of both fits' d_h;
    disagreement_rms of |d₁ - d₂|, half of which is the standard error of d; signal = Σ d₁·d₂ /
    √(Σ|d₁|² Σ|d₂|²), the share of the motion that both fits share; strain_rms of ‖½ (FᵀF - 1)‖, F =
    ∂x/∂y, at most 1000. believed: the share of Σ|d|² in voxels where the root mean square over
    states of |d₁ - d₂| is below half that of |d|, which itself exceeds 0.1 Å. disagreement_rms,
    signal and believed are None with one fit, the last two also where nothing moves.

    maps "D D D": displacement, strain, disagreement (root mean squares over states) and believed (0
    or 1) at y; jacobian at points of the states, the least of all states and fits. Outside the mask
    they are 0, the jacobian 1.
    """

    reference: tuple[float, ...]
    states: list[State]
    motion_rms: float
    strain_rms: float
    disagreement_rms: float | None
    signal: float | None
    believed: float | None
    maps: dict[str, Tensor]
    pixel_size: float

    @property
    def verdict(self) -> str:
        """In words, whether to believe the motion."""
        if max(self.motion_rms, self.disagreement_rms or 0.0) < LEAST:
            return f"nothing moves (less than {LEAST:g} Å rms)"
        if self.disagreement_rms is None:
            return "unknown: there is one fit, with which no other can disagree"
        if (self.believed or 0.0) < 0.5:
            return (
                f"not to be believed: the halves differ by {self.disagreement_rms:.3g} Å rms in a"
                f" motion of {self.motion_rms:.3g} Å rms"
            )
        folded = max(state.folded for state in self.states)
        return "to be believed where believed.mrc is 1" + (
            f", but space folds in up to {folded:.2%} of the mask" if folded else ""
        )

    def write(self, folder: Path) -> None:
        """Write the maps as MRC files and everything else as audit.json into an existing folder."""
        for name, map in self.maps.items():
            mrc.write(folder / f"{name}.mrc", map, self.pixel_size)
        said = {
            name: value
            for name, value in asdict(self).items()
            if name not in ("maps", "pixel_size")
        }
        worst = {
            "inverse_error": max(state.inverse_error for state in self.states),
            "lost": max(state.lost for state in self.states),
        }
        text = json.dumps({"verdict": self.verdict, **said, **worst}, indent=1)
        (folder / "audit.json").write_text(text + "\n", encoding="utf-8")


def reference(motion: Motion) -> Tensor:
    """The median "L" of the particles' coordinates, each for itself."""
    return motion.latents.median(0).values


def places(latents: Tensor) -> Tensor:
    """The states "S L" that are audited, different from one another.

    One coordinate: 9 at equal distances from the 5th to the 95th percentile. More: places on either
    side of the median, 1.5 standard deviations off along each coordinate; for each, the mean of the
    hundredth of the particles that are nearest, to be where particles are.
    """
    if latents.shape[1] == 1:
        ends = torch.quantile(latents[:, 0], torch.tensor(ENDS, dtype=latents.dtype))
        return through(ends[:, None], COUNT).unique(dim=0)
    spread = latents.std(0, unbiased=False).clamp(min=1e-12)
    middle = latents.median(0).values
    off = REACH * torch.eye(latents.shape[1]).to(latents)
    near = torch.cdist(torch.cat([-off, off]), (latents - middle) / spread).argsort(1)[
        :, : max(1, round(NEAR * len(latents)))
    ]
    return latents[near].mean(1).unique(dim=0)


def audit(
    motion: Motion, start: Tensor, states: Tensor, watch: Callable[[], None] = lambda: None
) -> Audit:
    """The motion from the state `start` "L" to each of `states` "S L", inside the mask of all fits.
    watch() is told of each state.
    """
    scene = motion.scene
    halves = motion.halves
    centres = grids.voxel_centres(scene.box, scene.pixel_size).reshape(-1, 3)
    with torch.no_grad():
        inside = torch.stack([half.model.window(centres) for half in halves]).amin(0) > 0.5
    y = centres[inside]
    weight = solid(halves, start).flatten()[inside]
    sums = {
        name: y.new_zeros(len(y))
        for name in ("d", "apart", "strain", "count", "one", "two", "both")
    }
    sums["det"], rows = y.new_full((len(y),), torch.inf), []
    for z in states:
        rows.append(_state(halves, y, start, z, weight, sums))
        watch()
    maps = _maps(sums, len(halves), inside, scene.box)

    def total(name, where=1.0):
        return float((weight * sums[name] * where).double().sum())

    def mean(name):
        return (total(name) / max(total("count"), 1e-30)) ** 0.5

    two = len(halves) == 2
    moves = total("d") > 0
    norm = (total("one") * total("two")) ** 0.5
    return Audit(
        tuple(start.tolist()),
        rows,
        mean("d"),
        mean("strain"),
        mean("apart") if two else None,
        total("both") / norm if two and norm > 0 else None,
        total("d", maps["believed"].flatten()[inside]) / total("d") if two and moves else None,
        maps,
        scene.pixel_size,
    )


def solid(halves: list[Half], z: Tensor) -> Tensor:
    """Weights "D D D": the least density of all fits in state z, above the solvent; 0 where it is
    not well above it in all of them.

    The solvent's level is the median inside the mask; well above it is a quarter of the way to the
    99.9th percentile. Raises DataError where no voxel is.
    """
    found = []
    for half in halves:
        map = half.state(z)
        within = map[map != 0].sort().values
        if not len(within) or within[0] == within[-1]:
            raise DataError(
                "the density of a fit is flat in the reference state: there is nothing whose motion"
                " could be told"
            )
        low = within[len(within) // 2]
        high = within[int(0.999 * (len(within) - 1))]
        rise = (map - low) / (high - low).clamp(min=1e-30)
        found.append(rise * (rise > SOLID) * (map != 0))
    weight = torch.stack(found).amin(0)
    if not weight.any():
        raise DataError(
            "the fits' maps of the reference state have no density in common; their motions cannot"
            " be compared"
        )
    return weight


def _state(
    halves: list[Half], y: Tensor, start: Tensor, z: Tensor, weight: Tensor, sums: dict[str, Tensor]
) -> State:
    """The row of one state, and what it adds to the sums over states in each voxel."""
    each = [_one(half, y, start, z) for half in halves]
    d, left, det, square = (torch.stack([some[i] for some in each]) for i in range(4))
    good = (left.amax(0) <= TOLERANCE).to(y)
    mean = d.mean(0)
    apart = (d[0] - d[-1]).square().sum(1)
    sums["det"] = torch.minimum(sums["det"], det.amin(0))
    added = {
        "d": mean.square().sum(1),
        "apart": apart,
        "strain": square.mean(0),
        "one": d[0].square().sum(1),
        "two": d[-1].square().sum(1),
        "both": (d[0] * d[-1]).sum(1),
        "count": torch.ones_like(good),
    }
    for name, value in added.items():
        sums[name] += torch.where(good > 0, value, 0.0)

    def rms(value, w):
        return float(((value * w).double().sum() / w.double().sum().clamp(min=1e-30)).sqrt())

    return State(
        tuple(z.tolist()),
        rms(added["d"], good),
        float((mean.norm(dim=1) * good).amax()),
        rms(added["d"], good * weight),
        float(det.min()),
        float(det.flatten().kthvalue(max(1, round(0.01 * det.numel()))).values),
        float((det <= 0).double().mean()),
        rms(added["strain"], good * weight),
        rms(apart, good * weight) if len(halves) == 2 else None,
        float(left.max()),
        1.0 - float(good.mean()),
    )


def _one(half: Half, y: Tensor, start: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of one fit: d "P 3", what the inverse left "P", det(1 + ∇u) "P" at these points of state z,
    ‖½ (FᵀF - 1)‖² "P" of the motion.
    """
    x, left = carried(half, y, start, z)
    there = torch.linalg.solve_ex(slopes(half, x, z), slopes(half, y, start))[
        0
    ]  # F = ∂x/∂y, by way of the common density
    square = strain.green_lagrange(there).square().sum((1, 2)).nan_to_num(torch.inf).clamp(max=1e6)
    return x - y, left, torch.linalg.det(slopes(half, y, z)), square


@torch.no_grad()
def slopes(half: Half, x: Tensor, z: Tensor) -> Tensor:
    """1 + ∇u(x; z) "P 3 3" at points "P 3" of state z, by differences over half a voxel."""

    def moved(at):
        return half.displaced(at, z)

    return torch.cat(
        [
            strain.jacobian(moved, some, moved(some), 0.5 * half.model.scene.pixel_size)
            for some in x.split(CHUNK)
        ]
    )


def _maps(sums: dict[str, Tensor], fits: int, inside: Tensor, box: int) -> dict[str, Tensor]:
    """See `Audit`."""
    count = sums["count"].clamp(min=1)
    rms = {name: (sums[name] / count).sqrt() for name in ("d", "strain", "apart")}
    believed = (
        (rms["apart"] < SHARED * rms["d"]) & (rms["d"] > LEAST)
        if fits == 2
        else torch.zeros_like(count)
    )
    maps = {}
    for name, value in zip(
        MAPS, (rms["d"], sums["det"], rms["strain"], rms["apart"], believed), strict=True
    ):
        map = torch.full((box**3,), 1.0 if name == "jacobian" else 0.0)
        map[inside] = value.float()
        maps[name] = map.reshape(box, box, box)
    return maps
