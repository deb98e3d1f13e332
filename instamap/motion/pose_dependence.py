"""Whether coordinates tell of motion or of pose: the variance that the view explains."""

import torch
from torch import Tensor

HARMONICS = 8
"""Spherical harmonics of degree 1 and 2, which are fitted beside a constant."""


def explained_by_view(latents: Tensor, rotation: Tensor) -> list[float | None]:
    """For each coordinate of "n L" the share of its variance that the direction of view explains.

    None where nothing varies or n < 10. R² of the least-squares fit of the 9 real spherical
    harmonics up to degree 2 of the direction (the third row of `rotation` "n 3 3"), less what
    chance explains: 1 - (1 - R²)(n - 1)/(n - 9), at least 0 (Ezekiel 1930). Molecules that tumble
    freely and coordinates that mean motion give about 0.
    """
    count = len(latents)
    if count < HARMONICS + 2:
        return [None] * latents.shape[1]
    direction = rotation[:, 2].double()
    basis = harmonics(direction)
    centred = latents.double() - latents.double().mean(0)
    fit = torch.linalg.lstsq(basis, centred, driver="gelsd")
    rest = centred - basis @ fit.solution
    unexplained = rest.square().sum(0).tolist()
    total = centred.square().sum(0).tolist()
    pairs = zip(unexplained, total, strict=True)
    return [_explained(left, whole, count) for left, whole in pairs]


def _explained(unexplained: float, total: float, count: int) -> float | None:
    """The adjusted share of the variance of `count` values that the harmonics explain."""
    if not total > 0:
        return None
    left = unexplained / total * (count - 1) / (count - 1 - HARMONICS)
    return max(0.0, 1 - left)


def harmonics(direction: Tensor) -> Tensor:
    """Real spherical harmonics "n 9" to degree 2 of unit vectors "n 3", without their factors."""
    x, y, z = direction.unbind(-1)
    columns = [
        torch.ones_like(x),
        x,
        y,
        z,
        x * y,
        y * z,
        z * x,
        x * x - y * y,
        3 * z * z - 1,
    ]
    return torch.stack(columns, -1)
