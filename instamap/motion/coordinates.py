"""Coordinates of particles from scratch, for one set of images: mean map, linear subspace, states."""

from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.maps import mask
from instamap.motion import linear_subspace, state_mixture
from instamap.statistics import initial_map
from instamap.statistics.particle_statistics import ParticleStatistics

SAMPLE = (
    20000  # particles, at most, in which coordinates are found; all others are then placed by them
)
LEAST = 100  # particles of each state
AUTO = (1, 2, 3)  # numbers of coordinates that are tried


@dataclass(frozen=True)
class Found:
    """mean "N N N" and the mask "N N N" around it; maps "q+1 N N N" of the subspace, with one
    dimension at least.

    gain: of held-out particles over the mean map in nats per particle, by the number of dimensions
    that were tried.
    """

    mean: Tensor
    window: Tensor
    maps: Tensor
    gain: list[float]


def find(
    coarse: ParticleStatistics,
    judge: ParticleStatistics,
    window: Tensor | None,
    dimensions: int,
    generator: torch.Generator,
) -> Found:
    """The subspace of at most so many dimensions, inside the mask `window` or one that is found."""
    inner = mask.sphere(
        coarse.box, coarse.pixel_size, (coarse.box // 2 - 0.5) * coarse.pixel_size, 0.0
    )
    mean = initial_map.solve(
        coarse.statistics(coarse.unit_weights()), inner if window is None else window, 5
    )
    if window is None:
        window = mask.from_map(mean, coarse.pixel_size, threshold=0.15, extend=3, edge=2)
    mean = mean * (window > 0)
    linear = linear_subspace.fit(coarse, judge, mean, window, dimensions, generator)
    maps = (
        linear.maps
        if len(linear.maps) > 1
        else linear_subspace.grown(coarse, mean[None], window, generator)
    )
    return Found(mean, window, maps, linear.held_out)


def states(
    coarse: ParticleStatistics,
    judge: ParticleStatistics,
    found: Found,
    per_coordinate: int,
    latent: int,
    generator: torch.Generator,
) -> state_mixture.Nodes:
    """States in the subspace, in `latent` coordinates: as many as particles bear out, but enough to
    span the coordinates.
    """
    count = max(2 * latent + 1, min(round(per_coordinate * latent**1.5), coarse.count // LEAST))
    return state_mixture.fit(coarse, judge, found.maps, found.window, count, latent, generator)
