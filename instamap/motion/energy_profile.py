"""The energy profile of a single coordinate: -log of the smoothed density of particles along it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.fitting.loop import FALSE_POSITIVE_RATE
from instamap.motion import intervals, mixing_weights
from instamap.motion.mixing_weights import FOLDS, STIFFNESS, Smoothing

GRID = 200  # pieces of a coordinate, of which the profile is made
MAX_ENERGY = 15.0  # kT above the lowest: what is rarer is told as that
# Nats by which held-out particles may be less likely under a stiffer energy, as chance has it.
HELD_OUT_TOLERANCE = math.log(1 / FALSE_POSITIVE_RATE)
TINY = torch.finfo(torch.float64).tiny


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
class Line:
    """A single coordinate, as far as all fits know it: the ends z "G+1" of the pieces of its
    profile, how far along the motion these are, `distance`, in all fits on average, and `stiffness`
    of the energy.
    """

    z: Tensor
    distance: Tensor
    unit: str
    stiffness: float

    @staticmethod
    def through(fits: Sequence[FitLikelihood], generator: torch.Generator) -> "Line":
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
        borne_out = gain >= gain.max() - HELD_OUT_TOLERANCE
        stiffest = int(borne_out.nonzero().max())
        return Line(z, distance, fits[0].unit, STIFFNESS[stiffest])

    def smoothing(self, fit: FitLikelihood) -> Smoothing:
        """How the energy at the conformations of a fit is smoothed."""
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


def profile(line: Line, below: Tensor, drawn: Tensor) -> Profile:
    """The profile of the shares "F G+1" below each end that fits give, and "B F G+1" of draws."""
    cumulative = intervals.bounds(below, drawn)
    energies = line.energy(below)
    centre, low, high = intervals.bounds(energies, line.energy(drawn))
    middle = line.energy(below.mean(0))
    rows = torch.stack([middle, middle + (low - centre), middle + (high - centre)])
    above = rows - middle.min()
    return Profile(
        line.z,
        line.distance,
        line.unit,
        cumulative.clamp(0, 1),
        above.clamp(max=MAX_ENERGY),
    )
