"""Conformations as a mixture: representative maps along the motion, refined with what neighbours
share, and put in order by their likeness.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from instamap.motion import linear_subspace
from instamap.motion.kmeans import kmeans
from instamap.statistics import initial_map
from instamap.statistics.particle_images import BASIS_MAPS, ParticleImages
from instamap.statistics.particle_statistics import drop_small_shares
from instamap.statistics.statistics import Statistics

ROUNDS = 12  # of EM
EM_BASIS = 10  # maps that particles are held against in its rounds
FIRST_WIDTH = 2.0  # σ of what neighbours share in the first round, in steps between conformations
LAST_WIDTH = 0.5
LAST_ORDERED_ROUND = 8  # in the even rounds up to it, the order is found anew
NOISE_SHARE = 0.8  # of the least distance between maps, which noise alone brings about


@dataclass(frozen=True)
class StateMixture:
    """maps "K N N N" of conformations and their coordinates z "K L".

    Coordinates have unit root mean square, or are for L = 1 the share of particles below, from -1
    to 1. held_out: log p of held-out particles beyond the mean map, in nats per particle.
    """

    maps: Tensor
    z: Tensor
    held_out: float

    def shares(self, particles: ParticleImages) -> Tensor:
        """How probably particles "m K" are in each conformation."""
        return torch.softmax(log_prob(particles, self.maps), 1)


def log_prob(particles: ParticleImages, maps: Tensor, basis: int = BASIS_MAPS) -> Tensor:
    """log p "m K" of each particle given each of the maps, beyond an empty map.

    basis: see `ParticleImages.normal_equations`.
    """
    parts = []
    for some in particles.in_chunks():
        gram, h = some.normal_equations(maps, basis)
        curvature = gram.diagonal(dim1=1, dim2=2)
        parts.append(h - 0.5 * curvature)
    return torch.cat(parts)


def marginal(log_prob: Tensor) -> Tensor:
    """log p "m" of each particle, all conformations being equally probable beforehand."""
    count = log_prob.shape[1]
    return torch.logsumexp(log_prob, 1) - math.log(count)


@dataclass(frozen=True)
class _Round:
    """What a round of EM left: maps, the particles' shares of them, and the places of maps."""

    maps: Tensor
    share: Tensor
    place: Tensor
    held_out: float


def fit_mixture(
    particles: ParticleImages,
    validation: ParticleImages,
    subspace: Tensor,
    window: Tensor,
    count: int,
    latent: int,
    generator: torch.Generator,
    rounds: int = ROUNDS,
    held: bool = False,
) -> StateMixture:
    """`count` conformations from a subspace's maps "q+1 N N N", refined in `rounds` of EM, in
    `latent` coordinates.

    held: whether all have the subspace's first map outside the window, or nothing. The round in
    which the held-out particles `validation` are likeliest is taken.
    """
    of_mean = log_prob(validation, subspace[:1])
    mean_only = validation.mean(of_mean)
    maps = _first_maps(particles, subspace, count, generator)
    share = torch.softmax(log_prob(particles, maps, EM_BASIS), 1)
    place = torch.zeros(count, latent)
    rest = subspace[0] if held else None
    best: _Round | None = None
    for i in range(rounds):
        own = _own_statistics(particles, share)
        if i <= LAST_ORDERED_ROUND and i % 2 == 0:
            place = embed(_separate_maps(own, window, rest), window, latent)
        maps = _update(own, neighbours(place, _width(i, rounds)), maps, window)
        share = torch.softmax(log_prob(particles, maps, EM_BASIS), 1)
        of_conformations = marginal(log_prob(validation, maps))
        held_out = validation.mean(of_conformations) - mean_only
        if best is None or held_out > best.held_out:
            best = _Round(maps, share, place, held_out)
    assert best is not None  # there is a round
    z = scaled(best.place, best.share, particles.weight)
    order = z[:, 0].argsort()
    return StateMixture(best.maps[order], z[order], best.held_out)


def _width(number: int, rounds: int) -> float:
    """σ of what neighbours share in a round, in steps between conformations."""
    done = number / (rounds - 1)
    return FIRST_WIDTH * (LAST_WIDTH / FIRST_WIDTH) ** done


def _own_statistics(particles: ParticleImages, share: Tensor) -> list[Statistics]:
    """The statistics of each conformation's own particles, by their shares "m K"."""
    weights = drop_small_shares(share)
    return [particles.statistics(weight) for weight in weights.T]


def _update(
    own: Sequence[Statistics],
    counts: Tensor,
    maps: Tensor,
    window: Tensor,
) -> Tensor:
    """Maps "K N N N" from the last ones on, where particles in one conformation count for each as
    much as `counts` "K K" has in their row.

    Statistics add, so that no image is touched again.
    """
    b = torch.stack([one.b for one in own])
    kernel = torch.stack([one.kernel for one in own])
    updated = []
    for number, volume in enumerate(maps):
        weight = counts[:, number].to(b.dtype)
        shared = replace(
            own[number],
            b=torch.tensordot(weight, b, 1),
            kernel=torch.tensordot(weight, kernel, 1),
        )
        updated.append(initial_map.solve(shared, window, start=volume))
    return torch.stack(updated)


def _separate_maps(own: Sequence[Statistics], window: Tensor, rest: Tensor | None) -> Tensor:
    """Maps "K N N N" of each conformation's own particles alone, begun from nothing or the map
    `rest` "N N N", which is held outside the window.

    What neighbours share would make them alike, and a wrong order last.
    """
    return torch.stack([initial_map.solve(one, window, start=rest) for one in own])


def neighbours(place: Tensor, width: float) -> Tensor:
    """How much "K K" of a particle in one conformation (row) counts for each.

    Columns sum it up; rows sum to 1.
    """
    distance = torch.cdist(place, place)
    itself = torch.eye(len(place), dtype=torch.bool)
    nearest = distance.masked_fill(itself, math.inf).amin(1)
    sigma = width * nearest.mean()
    shared = torch.exp(-0.5 * (distance / sigma) ** 2)
    return shared / shared.sum(1, keepdim=True)


def embed(
    maps: Tensor,
    window: Tensor,
    latent: int,
) -> Tensor:
    """Places "K latent" (float64) of maps by the lengths of paths over near neighbours (Isomap,
    Tenenbaum et al. 2000).

    Noise makes all maps differ: most of the least distance is taken off first. With one coordinate,
    places are ranks.
    """
    flat = (maps * window).flatten(1).double()
    distance = torch.cdist(flat, flat)
    least = distance[distance > 0].min()
    distance = distance - NOISE_SHARE * least
    distance.fill_diagonal_(0)
    paths = _paths(distance, latent)
    squares = -0.5 * paths**2
    row_means = squares.mean(1, keepdim=True)
    centred = squares - squares.mean(0) - row_means + squares.mean()
    values, vectors = torch.linalg.eigh(centred)
    largest = values[-latent:].flip(0)
    axes = vectors[:, -latent:].flip(1)
    place = axes * largest.clamp(min=0).sqrt()
    if latent == 1:
        return place.argsort(0).argsort(0).double()
    return place


def scaled(place: Tensor, share: Tensor, weight: Tensor | None = None) -> Tensor:
    """Coordinates "K L" of places that particles of weights "m" (None for 1) have in the shares "m
    K": see `StateMixture`.
    """
    mass = share.mean(0) if weight is None else weight @ share / weight.sum()
    if place.shape[1] == 1:
        order = place[:, 0].argsort()
        ordered = mass[order]
        below = ordered.cumsum(0) - 0.5 * ordered
        ranked = below[order.argsort()]
        return (2 * ranked - 1)[:, None]
    of_node = mass[:, None]
    centred = place - (of_node * place).sum(0)
    variance = (of_node * centred.square()).sum(0)
    return centred / variance.sqrt()


def _first_maps(
    particles: ParticleImages,
    subspace: Tensor,
    count: int,
    generator: torch.Generator,
) -> Tensor:
    """Maps "K N N N" at the centres of clusters (k-means) of the particles' coordinates.

    Coordinates are in units of the maps' differences.
    """
    mean = subspace[0]
    components = subspace[1:]
    unit = components.flatten(1).norm(dim=1).double()
    points = linear_subspace.coordinates(particles, subspace) * unit
    centres = kmeans(points, count, generator, weight=particles.weight)
    z = (centres / unit).float()
    return mean + torch.einsum("kj,jzyx->kzyx", z, components)


def _paths(distance: Tensor, latent: int) -> Tensor:
    """Lengths "K K" of the shortest paths over the fewest near neighbours (2 · latent at least)
    that join all.
    """
    for count in range(2 * latent, len(distance)):
        order = distance.argsort(1)
        nearest = order[:, 1 : count + 1]
        steps = torch.full_like(distance, math.inf)
        steps.scatter_(1, nearest, distance.gather(1, nearest))
        paths = torch.minimum(steps, steps.T).fill_diagonal_(0)
        for via in range(len(paths)):
            first = paths[:, via, None]
            detour = first + paths[via]
            paths = torch.minimum(paths, detour)
        if paths.isfinite().all():
            return paths
    return distance
