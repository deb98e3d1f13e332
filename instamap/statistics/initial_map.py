"""A first map, straight from the statistics: it says where the particle is and how dense."""

import torch
from torch import Tensor

from instamap.maps import mask
from instamap.statistics.statistics import Statistics


def least_squares(
    statistics: Statistics, window: Tensor, steps: int = 3, start: Tensor | None = None
) -> Tensor:
    """A map "D D D" inside `window` "D D D" after a few steps of conjugate gradients on K∗V = b
    from zero, or from the map `start`.

    Few steps regularise.
    """
    volume = torch.zeros_like(statistics.b) if start is None else start
    residual = window * (statistics.b if start is None else statistics.b - statistics.apply(start))
    direction = residual.clone()
    square = residual.square().sum()
    for _ in range(steps):
        if not square > 0:
            break  # solved, or nothing is known
        curved = window * statistics.apply(direction)
        length = square / (direction * curved).sum()
        volume = volume + length * direction
        residual = residual - length * curved
        before = square
        square = residual.square().sum()
        direction = residual + square / before * direction
    return volume


def find_mask(volume: Tensor, pixel_size: float) -> Tensor:
    """The automatic mask around the particle in a first map: see `maps.mask.from_map`. Raises
    DataError where the map is flat.
    """
    return mask.from_map(volume, pixel_size, threshold=0.2, extend=2, edge=2)


def scale(volume: Tensor, window: Tensor) -> float:
    """The density that a field of order one stands for: a tenth of the standard deviation of a
    first map inside the mask.

    The floor of a model starts that far below zero: a lower scale makes it bind, which held-out
    images favour (docs/decisions/0001).
    """
    return 0.1 * float((volume * window).square().sum().div(window.sum()).sqrt().clamp(min=1e-12))
