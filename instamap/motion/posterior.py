"""Coordinates of particles under a fitted motion: the likeliest state, then a Gauss-Newton step in
closed form.
"""

import torch
from torch import Tensor

from instamap.model import Model
from instamap.motion.state_mixture import marginal
from instamap.statistics.particle_statistics import ParticleStatistics


@torch.no_grad()
def states(model: Model, z: Tensor) -> Tensor:
    """Maps "K N N N" of the states z "K L" of a model whose scene is that of the coarse images."""
    return torch.stack([model.raster(some[None]) for some in z])


def posterior(coarse: ParticleStatistics, maps: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates "m L", shares "m K" of the states `maps` "K N N N" at z "K L", and log p "m" with
    the state summed out.

    The coordinates are the mean over states of where a Gauss-Newton step from each leads, V(z)
    being taken as linear towards the state's neighbours: δ = (Jᵀ G J + S⁻¹)⁻¹ Jᵀ (h - G e_k), with
    J the differences of maps, S the spacing of the states.
    """
    gram, h = coarse.normal_equations(maps)
    prob = h - 0.5 * gram.diagonal(dim1=1, dim2=2)
    share = torch.softmax(prob, 1)
    slopes = _slopes(z)
    apart = spacing(z) if len(z) > 1 else 1.0
    moved = torch.zeros(len(h), z.shape[1], dtype=torch.float64)
    for k, slope in enumerate(slopes):
        on = (share[:, k] > 0.01).nonzero()[:, 0]
        curve = slope.mT @ gram[on] @ slope + torch.eye(z.shape[1], dtype=torch.float64) / apart**2
        right = (h[on] - gram[on][:, :, k]) @ slope
        step = torch.linalg.solve(curve, right[..., None])[..., 0].clamp(-apart, apart)
        moved.index_add_(0, on, share[on, k, None] * (z[k].double() + step))
    return moved / (share * (share > 0.01)).sum(1, keepdim=True), share, marginal(prob)


def spacing(z: Tensor) -> float:
    """Mean distance of states at z "K L" to the nearest other."""
    return float(
        torch.cdist(z, z).masked_fill(torch.eye(len(z), dtype=torch.bool), torch.inf).amin(1).mean()
    )


def _slopes(z: Tensor) -> list[Tensor]:
    """For each state the weights "K L" with which all maps make the derivative of V at its
    coordinates: a plane through near neighbours.
    """
    z = z.double()
    distance = torch.cdist(z, z)
    count = 2 * z.shape[1]
    slopes = []
    for k in range(len(z)):
        near = distance[k].argsort()[: count + 1]
        plane = torch.linalg.pinv(z[near] - z[near].mean(0), rcond=1e-6)  # "L near": least squares
        weights = torch.zeros(len(z), z.shape[1], dtype=torch.float64)
        weights[near] = (plane - plane.mean(1, keepdim=True)).mT
        slopes.append(weights)
    return slopes
