"""Coordinates of particles from scratch, for one set of images: mean map, linear subspace, nodes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.fit.start import least_squares
from instamap.maps import mask
from instamap.motion import nodes, subspace
from instamap.motion.coarse import Coarse

SAMPLE = 20000  # particles, at most, in which coordinates are found; all others are then placed by them
LEAST = 100  # particles of each node
AUTO = (1, 2, 3)  # numbers of coordinates that are tried


@dataclass(frozen=True)
class Found:
    """subspace: held-out gain in nats per particle over the mean map by dimensions; nodes; tried: the nodes' gain by coordinates."""

    mean: Tensor
    subspace: list[float]
    nodes: nodes.Nodes
    tried: dict[int, float]


def find(coarse: Coarse, judge: Coarse, window: Tensor | None, latent: int | str, per_coordinate: int, dimensions: int,
         generator: torch.Generator) -> Found:  # fmt: skip
    """`latent` coordinates, or as many of `AUTO` as make held-out particles likeliest."""
    inner = mask.sphere(coarse.box, coarse.pixel_size, (coarse.box // 2 - 0.5) * coarse.pixel_size, 0.0)
    mean = least_squares(coarse.statistics(torch.ones(coarse.count, dtype=torch.float64)), inner if window is None else window, 5)
    if window is None:
        window = mask.from_map(mean, coarse.pixel_size, threshold=0.15, extend=3, edge=2)
    mean = mean * (window > 0)
    linear = subspace.fit(coarse, judge, mean, window, dimensions, generator)
    maps = linear.maps if len(linear.maps) > 1 else subspace.grown(coarse, mean[None], window, generator)
    count = lambda n: max(3, min(round(per_coordinate * n**1.5), coarse.count // LEAST))
    found = {
        n: nodes.fit(coarse, judge, maps, window, count(n), n, generator) for n in (AUTO if latent == "auto" else (latent,))
    }  # fmt: skip
    best = max(found, key=lambda n: found[n].held_out)
    return Found(mean, linear.held_out, found[best], {n: some.held_out for n, some in found.items()})
