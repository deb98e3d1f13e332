"""Gauss-Newton steps on the quadratic log-likelihood of each image."""

import torch
from torch import Tensor

from instamap.poses.batched import solve
from instamap.poses.correction import followed_by
from instamap.poses.expansion import Expansion, PoseImages, ReferenceMap
from instamap.poses.pose_prior import PosePrior


def refine(
    images: PoseImages, reference: ReferenceMap, z: Tensor, prior: PosePrior, steps: int
) -> Expansion:
    """The expansion where log p + log prior is highest after so many steps from z "n 5".

    A step that leads down is taken back, and the next one from there is shorter (Levenberg,
    Marquardt).
    """
    precision = prior.precision
    damping = torch.zeros(len(z), dtype=torch.float64)
    best = images.expand(reference, z)
    for _ in range(steps):
        whole = best.curvature + torch.diag(precision)
        diagonal = torch.diag_embed(whole.diagonal(dim1=1, dim2=2))
        damped = whole + damping[:, None, None] * diagonal
        right = best.gradient - best.z * precision
        step = solve(damped, right)
        tried_z = followed_by(best.z, step)
        tried = images.expand(reference, tried_z)
        height = _height(tried, precision)
        is_up = height > _height(best, precision)
        longer = damping / 10
        shorter = (10 * damping).clamp(min=1.0)
        damping = torch.where(is_up, longer, shorter)
        best = tried.or_else(best, is_up)
    return best


def _height(expansion: Expansion, precision: Tensor) -> Tensor:
    """log p + log prior "n", up to a constant."""
    square = expansion.z.square()
    penalty = (square * precision).sum(1)
    return expansion.value - 0.5 * penalty
