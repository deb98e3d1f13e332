"""Gauss-Newton steps on the quadratic log-likelihood of each image."""

import torch
from torch import Tensor

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
        step = torch.linalg.solve(damped, right[..., None])[..., 0]
        trial = images.expand(reference, followed_by(best.z, step))
        up = _height(trial, precision) > _height(best, precision)
        damping = torch.where(up, damping / 10, (10 * damping).clamp(min=1.0))
        best = trial.or_else(best, up)
    return best


def _height(expansion: Expansion, precision: Tensor) -> Tensor:
    """log p + log prior "n", up to a constant."""
    return expansion.value - 0.5 * (expansion.z.square() * precision).sum(1)
