"""States as nodes: representative maps along the motion, refined as a mixture that neighbours
share, and put in order by their likeness.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.motion import linear_subspace
from instamap.motion.kmeans import kmeans
from instamap.statistics import initial_map
from instamap.statistics.particle_statistics import ParticleStatistics, drop_small_shares

ROUNDS = 12  # of EM
WIDE = 2.0
NARROW = 0.5  # σ of what neighbours share, in steps between nodes: first, last
ORDERED = 8  # rounds at whose even ones the order is found anew


@dataclass(frozen=True)
class Nodes:
    """maps "K N N N"; z "K L": their coordinates, of unit root mean square, or for L = 1 the share
    of particles below, from -1 to 1.

    held_out: log p of held-out particles beyond the mean map, in nats per particle.
    """

    maps: Tensor
    z: Tensor
    held_out: float

    def shares(self, coarse: ParticleStatistics) -> Tensor:
        """How probably other particles "m K" are in each."""
        return torch.softmax(log_prob(coarse, self.maps), 1)


def log_prob(coarse: ParticleStatistics, maps: Tensor) -> Tensor:
    """log p "m K" of each particle given each of the maps, beyond an empty map."""
    gram, h = coarse.normal_equations(maps)
    return h - 0.5 * gram.diagonal(dim1=1, dim2=2)


def marginal(log_prob: Tensor) -> Tensor:
    """log p "m" of each particle, all nodes being equally probable beforehand."""
    return torch.logsumexp(log_prob, 1) - math.log(log_prob.shape[1])


def fit(
    coarse: ParticleStatistics,
    judge: ParticleStatistics,
    maps: Tensor,
    window: Tensor,
    count: int,
    latent: int,
    generator: torch.Generator,
) -> Nodes:
    """`count` nodes from a subspace's maps "q+1 N N N", refined, with `latent` coordinates; those
    of the likeliest round.
    """
    alone = float(log_prob(judge, maps[:1]).mean())
    nodes = _first(coarse, maps, count, generator)
    share = torch.softmax(log_prob(coarse, nodes), 1)
    best = None
    for i in range(ROUNDS):
        if i <= ORDERED and i % 2 == 0:
            place = embed(_apart(coarse, share, window), window, latent)
        width = WIDE * (NARROW / WIDE) ** (i / (ROUNDS - 1))
        weights = drop_small_shares(share @ neighbours(place, width))
        nodes = torch.stack(
            [
                initial_map.solve(coarse.statistics(w), window, start=v)
                for w, v in zip(weights.T, nodes, strict=True)
            ]
        )
        share = torch.softmax(log_prob(coarse, nodes), 1)
        held_out = float(marginal(log_prob(judge, nodes)).mean()) - alone
        if best is None or held_out > best[2]:
            best = (nodes, share, held_out, place)
    nodes, share, held_out, place = best
    z = scaled(place, share)
    order = z[:, 0].argsort()
    return Nodes(nodes[order], z[order], held_out)


def _apart(coarse: ParticleStatistics, share: Tensor, window: Tensor) -> Tensor:
    """Maps "K N N N" of each node's own particles alone: what neighbours share would make them
    alike, and a wrong order last.
    """
    return torch.stack(
        [
            initial_map.solve(coarse.statistics(weight), window)
            for weight in drop_small_shares(share).T
        ]
    )


def neighbours(place: Tensor, width: float) -> Tensor:
    """How much "K K" of a particle in one node (row) counts for each (columns sum it up; rows sum
    to 1).
    """
    distance = torch.cdist(place, place)
    step = distance.masked_fill(torch.eye(len(place), dtype=torch.bool), math.inf).amin(1).mean()
    shared = torch.exp(-0.5 * (distance / (width * step)) ** 2)
    return shared / shared.sum(1, keepdim=True)


def embed(maps: Tensor, window: Tensor, latent: int) -> Tensor:
    """Places "K latent" (float64) of maps by the lengths of paths over near neighbours (Isomap,
    Tenenbaum et al. 2000).

    Noise makes all maps differ: most of the least distance is taken off first. With one coordinate,
    places are ranks.
    """
    flat = (maps * window).flatten(1).double()
    distance = torch.cdist(flat, flat)
    distance = distance - 0.8 * distance[distance > 0].min()
    distance.fill_diagonal_(0)
    paths = _paths(distance, latent)
    squares = -0.5 * paths**2
    squares = squares - squares.mean(0) - squares.mean(1, keepdim=True) + squares.mean()
    values, vectors = torch.linalg.eigh(squares)
    place = vectors[:, -latent:].flip(1) * values[-latent:].flip(0).clamp(min=0).sqrt()
    return place.argsort(0).argsort(0).double() if latent == 1 else place


def scaled(place: Tensor, share: Tensor) -> Tensor:
    """Coordinates "K L" of places that particles have in the shares "m K": see `Nodes`."""
    mass = share.mean(0)
    if place.shape[1] == 1:
        order = place[:, 0].argsort()
        below = mass[order].cumsum(0) - 0.5 * mass[order]
        return (2 * below[order.argsort()] - 1)[:, None]
    centred = place - (mass[:, None] * place).sum(0)
    return centred / (mass[:, None] * centred.square()).sum(0).sqrt()


def _first(
    coarse: ParticleStatistics, maps: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    """Maps "K N N N" at the centres of clusters (k-means) of the particles' coordinates, in units
    of the maps' differences.
    """
    unit = maps[1:].flatten(1).norm(dim=1).double()
    points = linear_subspace.coordinates(coarse, maps) * unit
    centres = kmeans(points, count, generator)
    return maps[0] + torch.einsum("kj,jzyx->kzyx", (centres / unit).float(), maps[1:])


def _paths(distance: Tensor, latent: int) -> Tensor:
    """Lengths "K K" of the shortest paths over the fewest near neighbours (2 · latent at least)
    that join all.
    """
    for near in range(2 * latent, len(distance)):
        nearest = distance.argsort(1)[:, 1 : near + 1]
        paths = torch.full_like(distance, math.inf).scatter_(
            1, nearest, distance.gather(1, nearest)
        )
        paths = torch.minimum(paths, paths.T).fill_diagonal_(0)
        for via in range(len(paths)):
            paths = torch.minimum(paths, paths[:, via, None] + paths[via])
        if paths.isfinite().all():
            return paths
    return distance
