"""Coordinates of particles under a fitted motion: the likeliest conformation, then a Gauss-Newton
step in closed form.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.model import Model
from instamap.motion.state_mixture import marginal
from instamap.statistics.particle_images import ParticleImages

MIN_SHARE = 0.01  # of a particle in a conformation: from those below, no step is taken
RELATIVE_WIDTH = 0.5  # σ of the weights of conformations, in their mean distance to each other
RELATIVE_CUTOFF = 1e-6  # of singular values: directions in which neighbours do not differ


@dataclass(frozen=True)
class Posterior:
    """Coordinates z "m L" of particles and their shares "m K" of the conformations.

    log_prob "m": of each particle, the conformation summed out.
    """

    z: Tensor
    share: Tensor
    log_prob: Tensor


@torch.no_grad()
def conformations(model: Model, z: Tensor) -> Tensor:
    """Maps "K N N N" of the conformations z "K L" of a model in the box of its scene."""
    maps = [model.raster(one[None]) for one in z]
    return torch.stack(maps)


def infer(
    particles: ParticleImages,
    maps: Tensor,
    z: Tensor,
    occupancies: int = 0,
) -> Posterior:
    """The posterior of particles under conformations with `maps` "K N N N" at z "K L".

    The coordinates are the mean over conformations of where a Gauss-Newton step from each leads,
    V(z) being taken as linear towards the neighbours: δ = (Jᵀ G J + S⁻¹)⁻¹ Jᵀ (h - G e_k), with J
    the differences of maps, S the spacing of the conformations. No step is taken in the last
    coordinates, as many as `occupancies`, which are 0 or 1 in conformations: particles have the
    probability of 1 there.
    """
    slopes = _slopes(z, occupancies)
    parts = [_infer(some, maps, z, slopes) for some in particles.in_chunks()]
    return Posterior(
        torch.cat([one.z for one in parts]),
        torch.cat([one.share for one in parts]),
        torch.cat([one.log_prob for one in parts]),
    )


def _infer(
    particles: ParticleImages,
    maps: Tensor,
    z: Tensor,
    slopes: Sequence[Tensor],
) -> Posterior:
    """The posterior of some particles, given the derivatives of V at all conformations."""
    gram, h = particles.normal_equations(maps)
    curvature = gram.diagonal(dim1=1, dim2=2)
    log_prob = h - 0.5 * curvature
    share = torch.softmax(log_prob, 1)
    apart = spacing(z) if len(z) > 1 else 1.0
    latent = z.shape[1]
    unit = torch.eye(latent, dtype=torch.float64)
    prior = unit / apart**2
    summed = torch.zeros(
        len(h),
        latent,
        dtype=torch.float64,
    )
    counts = share > MIN_SHARE
    for k, slope in enumerate(slopes):
        (near,) = counts[:, k].nonzero(as_tuple=True)
        near_gram = gram[near]
        residual = h[near] - near_gram[:, :, k]
        right = residual @ slope
        precision = slope.mT @ near_gram @ slope + prior
        step = torch.linalg.solve(precision, right[..., None])
        step = step[..., 0].clamp(-apart, apart)
        moved = z[k].double() + step
        weight = share[near, k, None]
        summed.index_add_(0, near, weight * moved)
    counted = (share * counts).sum(1, keepdim=True)
    return Posterior(summed / counted, share, marginal(log_prob))


def spacing(z: Tensor) -> float:
    """The mean distance of conformations at z "K L" to the nearest other."""
    distance = torch.cdist(z, z)
    itself = torch.eye(len(z), dtype=torch.bool)
    nearest = distance.masked_fill(itself, torch.inf).amin(1)
    return float(nearest.mean())


def weights_between(nodes: Tensor, z: Tensor) -> Tensor:
    """The weights "n K" of conformations at `nodes` "K L" in what is at z "n L".

    Gaussian, with half their mean distance to each other as σ.
    """
    if len(nodes) == 1:
        return z.new_ones(len(z), 1)
    width = RELATIVE_WIDTH * spacing(nodes)
    distance = torch.cdist(z, nodes)
    return torch.softmax(-0.5 * (distance / width) ** 2, 1)


def _slopes(z: Tensor, occupancies: int) -> list[Tensor]:
    """For each conformation the weights "K L" with which all maps make the derivative of V there.

    It is that of a plane through near neighbours, which have the same occupancies, and vanishes for
    these.
    """
    z = z.double()
    moving = z.shape[1] - occupancies
    if moving == 0:
        return [torch.zeros_like(z) for _ in z]
    present = z[:, moving:]
    differs = (present[:, None] != present).any(2)
    distance = torch.cdist(z, z).masked_fill(differs, torch.inf)
    count = min(2 * moving, int((~differs).sum(1).min()) - 1)
    slopes = []
    for distances in distance:
        order = distances.argsort()
        near = order[: count + 1]
        places = z[near]
        offset = places - places.mean(0)
        plane = torch.linalg.pinv(offset, rcond=RELATIVE_CUTOFF)  # "L near": least squares
        weights = torch.zeros_like(z)
        mean = plane.mean(1, keepdim=True)
        weights[near] = (plane - mean).mT
        slopes.append(weights)
    return slopes
