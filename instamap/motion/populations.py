"""Populations: what share of the particles is in each conformation and region of a motion, how sure
that is, and the energy profile along a single coordinate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from instamap.motion import energy_profile, intervals, mixing_weights
from instamap.motion.energy_profile import FitLikelihood, Line, Profile
from instamap.motion.intervals import Interval
from instamap.motion.mixing_weights import MixingWeights
from instamap.motion.regions import Region, find_wells
from instamap.progress import SILENT, Progress

REPLICATES = 200  # of the particles, drawn with replacement


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

    def __repr__(self) -> str:
        shares = [f"{region.name} {share}" for region, share in self.regions]
        if not shares:
            shares = [f"{len(fit.nodes)} conformations of {fit.name}" for fit in self.fits]
        return f"<Populations of {self.particles} particles: {', '.join(shares)}>"

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

    def nearest_to(self, z: Tensor) -> Tensor:
        """The share of the particles "S" to which each of the places "S L" is the nearest."""
        shares = torch.zeros(len(z), dtype=torch.float64)
        for fit, weights in zip(self.fits, self.weights, strict=True):
            nearest = torch.cdist(fit.nodes, z.double()).argmin(1)
            shares.index_add_(0, nearest, weights.weights / len(self.fits))
        return shares


@dataclass(frozen=True)
class Draw:
    """What one set of particles says: the weights "K" of each fit, and if there is a profile, the
    smooth energy "K" of each and the share of the particles "G+1" below each end of its pieces.
    """

    weights: list[MixingWeights]
    energies: list[Tensor]
    below: list[Tensor]


@dataclass(frozen=True)
class Drawn:
    """What all particles say, and draws from them, by which intervals are made."""

    fits: list[FitLikelihood]
    whole: Draw
    draws: list[Draw]

    def below(self) -> Tensor:
        """The share "F G+1" of particles below each end of the profile's pieces, of each fit."""
        return torch.stack(self.whole.below)

    def below_of_draws(self) -> Tensor:
        """The same of the draws: "B F G+1"."""
        return torch.stack([torch.stack(one.below) for one in self.draws])

    def share_in(self, region: Region) -> Interval:
        """The share of the particles that are in a region."""
        inside = [region.contains(fit.nodes) for fit in self.fits]
        return self.share_inside(inside)

    def share_inside(self, inside: Sequence[Tensor]) -> Interval:
        """The share of the particles in the conformations "K" of each fit that are `inside`."""
        values = _summed(self.whole, inside)
        drawn = [_summed(draw, inside) for draw in self.draws]
        return intervals.of_share(values, torch.stack(drawn))

    def shares_of_conformations(self) -> list[list[Interval]]:
        """The share of each conformation of each fit, whose intervals are those of draws alone."""
        found = []
        for number, weights in enumerate(self.whole.weights):
            drawn = torch.stack([draw.weights[number].weights for draw in self.draws])
            shares = []
            for value, some in zip(weights.weights, drawn.T, strict=True):
                shares.append(intervals.of_share(value[None], some[:, None]))
            found.append(shares)
        return found


def _summed(draw: Draw, inside: Sequence[Tensor]) -> Tensor:
    """The share "F" of the particles in the conformations of each fit that are inside."""
    shares = []
    for weights, chosen in zip(draw.weights, inside, strict=True):
        shares.append(weights.weights[chosen].sum())
    return torch.stack(shares)


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
    line = Line.through(fits, generator) if latent == 1 else None
    whole = _draw(fits, line)
    draws = []
    count = 1 + max(int(fit.particle.max()) for fit in fits)
    for number in range(replicates):
        counts = _resampled(count, generator)
        draws.append(_draw(fits, line, counts, whole))
        progress.counted("replicates", number + 1, replicates)
    drawn = Drawn(list(fits), whole, draws)
    profile = None
    found = [(region, drawn.share_in(region)) for region in regions]
    if line is not None:
        profile = energy_profile.profile(line, drawn.below(), drawn.below_of_draws())
        found = found or _wells(line, drawn)
    return Populations(
        fits=list(fits),
        weights=whole.weights,
        intervals=drawn.shares_of_conformations(),
        regions=found,
        profile=profile,
        stiffness=None if line is None else line.stiffness,
        particles=len(torch.cat([fit.particle for fit in fits]).unique()),
    )


def _resampled(count: int, generator: torch.Generator) -> Tensor:
    """How often each of `count` particles is drawn, with replacement, in as many draws."""
    drawn = torch.randint(count, (count,), generator=generator)
    return torch.bincount(drawn, minlength=count).double()


def _draw(
    fits: Sequence[FitLikelihood],
    line: Line | None,
    counts: Tensor | None = None,
    start: Draw | None = None,
) -> Draw:
    """What particles say that count so often, by default once each.

    start: from whose energies those of few other particles are sought.
    """
    drawn = Draw([], [], [])
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


def _wells(line: Line, drawn: Drawn) -> list[tuple[Region, Interval]]:
    """The wells of the profile, with what share of the particles is in each.

    Coordinates of the fits are the same but for their errors, which matter at a barrier: each fit
    is parted where its own profile is highest between the wells.
    """
    below = drawn.below()
    energies = line.energy(below)
    of_draws = line.energy(drawn.below_of_draws())

    def sure_height(start: int, barrier: int, end: int) -> float:
        values = _height(energies, start, barrier, end)
        drawn_values = _height(of_draws, start, barrier, end)
        _, low, _ = intervals.bounds(values[:, None], drawn_values[..., None])
        return float(low)

    found = find_wells(line.energy(below.mean(0)), sure_height)
    own_ends = [_own_ends(line, energy, found.wells) for energy in energies]
    barriers = [line.middle(barrier) for barrier in found.barriers]
    ends = [-math.inf, *barriers, math.inf]
    shares = []
    for number, (low, high) in enumerate(pairwise(ends)):
        inside = []
        for fit, own in zip(drawn.fits, own_ends, strict=True):
            well = Region("", ((own[number], own[number + 1]),))
            inside.append(well.contains(fit.nodes))
        region = Region(f"well {number + 1}", ((low, high),))
        shares.append((region, drawn.share_inside(inside)))
    return shares


def _height(energy: Tensor, start: int, barrier: int, end: int) -> Tensor:
    """How high energies "* G" are at a barrier above the shallower of the wells on both sides."""
    before = energy[..., start : barrier + 1].amin(-1)
    after = energy[..., barrier:end].amin(-1)
    return energy[..., barrier] - torch.maximum(before, after)


def _own_ends(line: Line, energy: Tensor, wells: Sequence[int]) -> list[float]:
    """Coordinates of the barriers that part wells in the energy "G" of one fit, and both ends."""
    ends = [-math.inf]
    for before, after in pairwise(wells):
        highest = before + _highest(energy[before : after + 1])
        ends.append(line.middle(highest))
    return [*ends, math.inf]


def _highest(energy: Tensor) -> int:
    """The middle one of the places where an energy is highest."""
    (places,) = torch.nonzero(energy >= energy.max(), as_tuple=True)
    return int(places[len(places) // 2])
