"""Populations: what share of the particles is in each conformation and region of a motion, how sure
that is, and the energy profile along a single coordinate.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instamap.errors import DataError
from instamap.files import replacing
from instamap.fitting.loop import FALSE_POSITIVE_RATE
from instamap.motion import mixing_weights
from instamap.motion.conformation_maps import coordinate_names
from instamap.motion.mixing_weights import FOLDS, STIFFNESS, MixingWeights, Smoothing
from instamap.motion.regions import Region, find_wells
from instamap.progress import SILENT, Progress

REPLICATES = 200  # of the particles, drawn with replacement
LEVEL = 0.95  # of intervals
NORMAL_QUANTILE = 1.959964  # of a standard error, to either side, at that level
GRID = 200  # pieces of a coordinate, of which the profile is made
MAX_ENERGY = 15.0  # kT above the lowest: what is rarer is told as that
CHANCE = math.log(1 / FALSE_POSITIVE_RATE)  # nats by which held-out particles differ without cause
TINY = torch.finfo(torch.float64).tiny
SHARE_COLUMNS = ("population", "low", "high", "log_population")
TABLE = "populations.csv"
PROFILE = "profile.csv"
STATES = "states.csv"
STATE_COLUMNS = ("population", "minus_log_population")


@dataclass(frozen=True)
class FitLikelihood:
    """What particles say of the conformations of one fit that they played no part in.

    nodes "K L": shared coordinates of the conformations, in the order of the first. place "K": how
    far each is along the motion, in `unit`. particle "m": numbers of particles. likelihood "m K":
    relative to the particle's largest.
    """

    name: str
    nodes: Tensor
    place: Tensor
    unit: str
    particle: Tensor
    likelihood: Tensor


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its 95 % interval, and what each fit says by itself."""

    value: float
    low: float
    high: float
    of_fits: tuple[float, ...]

    def record(self) -> dict[str, Any]:
        """As populations.json says it."""
        bounds = [self.low, self.high]
        return {"share": self.value, "interval": bounds, "by_half": list(self.of_fits)}


@dataclass(frozen=True)
class Profile:
    """A smoothed density of particles along a single coordinate.

    z "G+1" and distance "G+1": the coordinate, and how far along the motion that is, at the ends of
    pieces. cumulative "3 G+1": the share of particles below, and the bounds of its interval. energy
    "3 G": -log of the density over distance in each piece, in kT above the lowest, likewise.
    """

    z: Tensor
    distance: Tensor
    unit: str
    cumulative: Tensor
    energy: Tensor


@dataclass(frozen=True)
class Populations:
    """Populations of conformations and regions.

    weights: of each fit, with the nodes of its FitLikelihood. regions: with what share of the
    particles is there. profile: None of several coordinates. stiffness: of the profile, the largest
    that held-out particles do not speak against.
    """

    fits: list[FitLikelihood]
    weights: list[MixingWeights]
    intervals: list[list[Interval]]
    regions: list[tuple[Region, Interval]]
    profile: Profile | None
    stiffness: float | None
    particles: int

    def record(self) -> dict[str, Any]:
        """What populations.json says."""
        fits = {}
        for fit, weights in zip(self.fits, self.weights, strict=True):
            fits[fit.name] = {
                "conformations": len(fit.nodes),
                "particles": len(fit.particle),
                "gap": weights.gap,
            }
        regions = {}
        for region, share in self.regions:
            regions[region.name] = {"bounds": region.record(), **share.record()}
        return {
            "particles": self.particles,
            "fits": fits,
            "regions": regions,
            "stiffness": self.stiffness,
        }

    def write_tables(self, folder: Path) -> list[str]:
        """Writes populations.csv and, of a single coordinate, profile.csv into an existing folder.

        Returns their names.
        """
        names = coordinate_names(self.fits[0].nodes.shape[1])
        rows: list[list[object]] = [["half", *names, *SHARE_COLUMNS]]
        for fit, intervals in zip(self.fits, self.intervals, strict=True):
            for z, share in zip(fit.nodes.tolist(), intervals, strict=True):
                log = _log(share.value)
                rows.append([fit.name, *z, share.value, share.low, share.high, log])
        _write(folder / TABLE, rows)
        if self.profile is None:
            return [TABLE]
        _write(folder / PROFILE, _profile_rows(self.profile))
        return [TABLE, PROFILE]

    def nearest_to(self, z: Tensor) -> Tensor:
        """The share of the particles "S" to which each of the places "S L" is the nearest."""
        shares = torch.zeros(len(z), dtype=torch.float64)
        for fit, weights in zip(self.fits, self.weights, strict=True):
            nearest = torch.cdist(fit.nodes, z.double()).argmin(1)
            shares.index_add_(0, nearest, weights.weights / len(self.fits))
        return shares


def _log(share: float) -> float:
    return math.log(share) if share > 0 else -math.inf


def _profile_rows(profile: Profile) -> list[list[object]]:
    names = ["energy", "energy_low", "energy_high"]
    below = ["share_below", "share_below_low", "share_below_high"]
    rows: list[list[object]] = [["z1", "distance", *names, *below]]
    middle = (profile.z[1:] + profile.z[:-1]) / 2
    along = (profile.distance[1:] + profile.distance[:-1]) / 2
    cumulative = (profile.cumulative[:, 1:] + profile.cumulative[:, :-1]) / 2
    columns = torch.stack([middle, along, *profile.energy, *cumulative], 1)
    rows.extend(columns.tolist())
    return rows


def _write(file: Path, rows: list[list[object]]) -> None:
    with (
        replacing(file) as sibling,
        sibling.open("w", newline="", encoding="utf-8") as text,
    ):
        writer = csv.writer(text, lineterminator="\n")
        for row in rows:
            cells = [f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row]
            writer.writerow(cells)


def add_to_states(file: Path, populations: Populations) -> None:
    """Gives a table of states columns of the share of the particles that are nearest to each, and
    of its -log; those of an earlier call are replaced.

    A state that no conformation with particles is nearest to has no logarithm. Raises DataError,
    OutputError.
    """
    names = coordinate_names(populations.fits[0].nodes.shape[1])
    with file.open(newline="", encoding="utf-8") as text:
        rows = list(csv.DictReader(text))
    if not rows or not set(names) <= set(rows[0]):
        raise DataError(
            f"'{file}' has no columns {', '.join(names)}; write it again with `instamap states`, or"
            " give another folder with -o"
        )
    places = [[float(row[name]) for name in names] for row in rows]
    shares = populations.nearest_to(torch.tensor(places, dtype=torch.float64))
    kept = [name for name in rows[0] if name not in STATE_COLUMNS]
    table: list[list[object]] = [[*kept, *STATE_COLUMNS]]
    for row, share in zip(rows, shares.tolist(), strict=True):
        energy = -math.log(share) if share > 0 else ""
        table.append([*(row[name] for name in kept), share, energy])
    _write(file, table)


@dataclass(frozen=True)
class _Draw:
    """What one set of particles says: the weights "K" of each fit, and if there is a profile, the
    smooth energy "K" of each and the share of the particles "G+1" below each end of its pieces.
    """

    weights: list[MixingWeights]
    energies: list[Tensor]
    below: list[Tensor]


def estimate(
    fits: Sequence[FitLikelihood],
    regions: Sequence[Region] = (),
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Populations:
    """The populations of conformations and of regions; without any, of a coordinate's wells."""
    latent = fits[0].nodes.shape[1]
    generator = torch.Generator().manual_seed(seed)
    line = _Line.through(fits, generator) if latent == 1 else None
    whole = _draw(fits, line)
    draws = []
    count = 1 + max(int(fit.particle.max()) for fit in fits)
    for number in range(replicates):
        counts = _resampled(count, generator)
        draws.append(_draw(fits, line, counts, whole))
        progress.counted("replicates", number + 1, replicates)
    combine = _Combination(whole, draws)
    profile = None if line is None else _profile(line, combine)
    if line is not None and not regions:
        found = _wells(fits, line, combine)
    else:
        found = [(region, _share_of(fits, region, combine)) for region in regions]
    return Populations(
        fits=list(fits),
        weights=whole.weights,
        intervals=_of_nodes(fits, combine),
        regions=found,
        profile=profile,
        stiffness=None if line is None else line.stiffness,
        particles=len(torch.cat([fit.particle for fit in fits]).unique()),
    )


def _resampled(count: int, generator: torch.Generator) -> Tensor:
    """How often each of `count` particles is drawn, with replacement, in as many draws."""
    drawn = torch.randint(count, (count,), generator=generator)
    return torch.bincount(drawn, minlength=count).double()


@dataclass(frozen=True)
class _Line:
    """A single coordinate, as far as all fits know it: the ends z "G+1" of the pieces of its
    profile, how far along the motion these are, `distance`, in all fits on average, and `stiffness`
    of the energy.
    """

    z: Tensor
    distance: Tensor
    unit: str
    stiffness: float

    @staticmethod
    def through(fits: Sequence[FitLikelihood], generator: torch.Generator) -> "_Line":
        """The line along which all fits have conformations."""
        gain = torch.zeros(len(STIFFNESS), dtype=torch.float64)
        for fit in fits:
            folds = torch.randint(FOLDS, (len(fit.particle),), generator=generator)
            gain += mixing_weights.held_out_gain(fit.likelihood, fit.place, folds)
        low = max(float(fit.nodes[0]) for fit in fits)
        high = min(float(fit.nodes[-1]) for fit in fits)
        z = torch.linspace(low, high, GRID + 1, dtype=torch.float64)
        distances = [_interpolate(z, fit.nodes[:, 0], fit.place) for fit in fits]
        distance = torch.stack(distances).mean(0)
        borne_out = gain >= gain.max() - CHANCE
        stiffest = int(borne_out.nonzero().max())
        return _Line(z, distance, fits[0].unit, STIFFNESS[stiffest])

    def smoothing(self, fit: FitLikelihood) -> Smoothing:
        return Smoothing(fit.place, mixing_weights.cells(fit.place), self.stiffness)

    def energy(self, below: Tensor) -> Tensor:
        """-log of the density "* G" over distance, relative to an even one, in each piece, of the
        shares "* G+1" below its ends.
        """
        length = self.distance.diff().clamp(min=TINY)
        share = length / length.sum()
        return -torch.log((below.diff(dim=-1) / share).clamp(min=TINY))

    def middle(self, piece: int) -> float:
        """The coordinate in the middle of a piece."""
        return float(self.z[piece] + self.z[piece + 1]) / 2

    def below(self, fit: FitLikelihood, energy: Tensor) -> Tensor:
        """The share of particles "G+1" below each end, of the energy "K" of a fit.

        The density is linear between conformations, so that each has the share that it had.
        """
        nodes = fit.nodes[:, 0]
        z = torch.cat([self.z, nodes]).unique()
        place = _interpolate(z, nodes, fit.place)
        density = _interpolate(place, fit.place, torch.exp(energy.min() - energy))
        mean = (density[1:] + density[:-1]) / 2
        mass = (mean * place.diff()).cumsum(0)
        below = torch.cat([mass.new_zeros(1), mass]) / mass[-1]
        return below[torch.searchsorted(z, self.z)]


def _interpolate(x: Tensor, known: Tensor, values: Tensor) -> Tensor:
    """Values at x by straight lines between those that are known, in order; constant beyond."""
    after = torch.searchsorted(known, x).clamp(1, len(known) - 1)
    start = known[after - 1]
    length = (known[after] - start).clamp(min=TINY)
    part = ((x - start) / length).clamp(0, 1)
    return values[after - 1] + part * (values[after] - values[after - 1])


def _draw(
    fits: Sequence[FitLikelihood],
    line: _Line | None,
    counts: Tensor | None = None,
    start: _Draw | None = None,
) -> _Draw:
    """What particles say that count so often, by default once each.

    start: from whose energies those of few other particles are sought.
    """
    drawn = _Draw([], [], [])
    for number, fit in enumerate(fits):
        of_fit = None if counts is None else counts[fit.particle]
        drawn.weights.append(mixing_weights.maximise(fit.likelihood, of_fit))
        if line is None:
            continue
        first = None if start is None else start.energies[number]
        energy = mixing_weights.smooth(fit.likelihood, line.smoothing(fit), of_fit, first)
        drawn.energies.append(energy)
        drawn.below.append(line.below(fit, energy))
    return drawn


@dataclass(frozen=True)
class _Combination:
    """Estimates of all particles, and of draws from them, by which intervals are made."""

    whole: _Draw
    draws: list[_Draw]

    def interval(self, values: Tensor, drawn: Tensor) -> Tensor:
        """The mean over fits of values "F S", and the bounds of its interval: "3 S".

        drawn "B F S": of the draws. Quantiles of the drawn means give the interval; where fits
        differ by more than draws make them, it becomes wider: half the difference of two fits is
        the standard error of their mean.
        """
        mean = values.mean(0)
        means = drawn.mean(1)
        levels = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
        low, high = torch.quantile(means, levels, dim=0)
        excess = _excess(values, drawn)
        below = ((mean - low).clamp(min=0).square() + excess).sqrt()
        above = ((high - mean).clamp(min=0).square() + excess).sqrt()
        return torch.stack([mean, mean - below, mean + above])

    def share(self, values: Tensor, drawn: Tensor) -> Interval:
        """The interval of a share, of values "F" and "B F"."""
        value, low, high = self.interval(values[:, None], drawn[..., None])[:, 0].tolist()
        return Interval(value, max(low, 0.0), min(high, 1.0), tuple(values.tolist()))


def _excess(values: Tensor, drawn: Tensor) -> Tensor:
    """The square "S" of what the difference of two fits adds to half the width of an interval."""
    if len(values) < 2:
        return torch.zeros_like(values[0])
    half = (values[0] - values[1]) / 2
    by_chance = ((drawn[:, 0] - drawn[:, 1]) / 2).var(0)
    return NORMAL_QUANTILE**2 * (half.square() - by_chance).clamp(min=0)


def _of_nodes(fits: Sequence[FitLikelihood], combine: _Combination) -> list[list[Interval]]:
    """The share of each conformation of each fit, by the draws alone."""
    found = []
    for number in range(len(fits)):
        weights = combine.whole.weights[number].weights
        drawn = torch.stack([one.weights[number].weights for one in combine.draws])
        shares = []
        for value, some in zip(weights, drawn.T, strict=True):
            shares.append(combine.share(value[None], some[:, None]))
        found.append(shares)
    return found


def _share_of(fits: Sequence[FitLikelihood], region: Region, combine: _Combination) -> Interval:
    """The share of the particles that are in a region."""
    inside = [region.contains(fit.nodes).double() for fit in fits]
    return _share_inside(inside, combine)


def _share_inside(inside: Sequence[Tensor], combine: _Combination) -> Interval:
    """The share of the particles in the conformations "K" of each fit that are `inside`."""

    def shares(draw: _Draw) -> Tensor:
        each = zip(draw.weights, inside, strict=True)
        return torch.stack([weights.weights @ chosen for weights, chosen in each])

    drawn = torch.stack([shares(draw) for draw in combine.draws])
    return combine.share(shares(combine.whole), drawn)


def _profile(line: _Line, combine: _Combination) -> Profile:
    whole = torch.stack(combine.whole.below)
    drawn = torch.stack([torch.stack(one.below) for one in combine.draws])
    cumulative = combine.interval(whole, drawn)
    middle = line.energy(whole.mean(0))
    _, low, high = combine.interval(line.energy(whole), line.energy(drawn))
    centre = line.energy(whole).mean(0)
    bounds = torch.stack([middle, middle + (low - centre), middle + (high - centre)])
    above = (bounds - middle.min()).clamp(max=MAX_ENERGY)
    return Profile(line.z, line.distance, line.unit, cumulative.clamp(0, 1), above)


def _wells(
    fits: Sequence[FitLikelihood], line: _Line, combine: _Combination
) -> list[tuple[Region, Interval]]:
    """The wells of the profile, with what share of the particles is in each.

    Coordinates of the fits are the same but for their errors, which matter at a barrier: each fit
    is parted where its own profile is highest between the wells.
    """
    below = torch.stack(combine.whole.below)
    middle = line.energy(below.mean(0))
    energies = line.energy(below)
    drawn = line.energy(torch.stack([torch.stack(one.below) for one in combine.draws]))

    def height(energy: Tensor, start: int, barrier: int, end: int) -> Tensor:
        before = energy[..., start : barrier + 1].amin(-1)
        after = energy[..., barrier:end].amin(-1)
        return energy[..., barrier] - torch.maximum(before, after)

    def sure_height(start: int, barrier: int, end: int) -> float:
        values = height(energies, start, barrier, end)
        of_draws = height(drawn, start, barrier, end)
        _, low, _ = combine.interval(values[:, None], of_draws[..., None])[:, 0].tolist()
        return float(low)

    found = find_wells(middle, sure_height)
    own_ends = []
    for energy in energies:
        ends = [-math.inf]
        for before, after in pairwise(found.wells):
            highest = before + _highest(energy[before : after + 1])
            ends.append(line.middle(highest))
        own_ends.append([*ends, math.inf])
    ends = [-math.inf, *(line.middle(barrier) for barrier in found.barriers), math.inf]
    shares = []
    for number in range(len(found.wells)):
        inside = []
        for fit, own in zip(fits, own_ends, strict=True):
            z = fit.nodes[:, 0]
            chosen = (z >= own[number]) & (z < own[number + 1])
            inside.append(chosen.double())
        region = Region(f"well {number + 1}", ((ends[number], ends[number + 1]),))
        shares.append((region, _share_inside(inside, combine)))
    return shares


def _highest(energy: Tensor) -> int:
    """The middle one of the places where an energy is highest."""
    (places,) = torch.nonzero(energy >= energy.max(), as_tuple=True)
    return int(places[len(places) // 2])
