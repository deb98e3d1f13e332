"""A first map, straight from the statistics: it says where the particle is and how dense."""

import torch
from torch import Tensor

from instamap.maps import mask
from instamap.statistics.solve import conjugate_gradients
from instamap.statistics.statistics import Statistics

FIELD_OF_ONE = 0.1  # density of a field of order one, in standard deviations inside the mask
LEAST_DENSITY = 1e-12


def solve(
    statistics: Statistics,
    window: Tensor,
    steps: int = 3,
    start: Tensor | None = None,
) -> Tensor:
    """A map "D D D" inside `window` "D D D" after a few steps of conjugate gradients on K∗V = b
    from zero, or from the map `start`; empty outside the cube of the statistics.
    """
    cube = statistics.cube
    inside = cube.of(window)

    def apply(volume: Tensor) -> Tensor:
        return inside * statistics.apply(volume)

    if start is None:
        first = torch.zeros_like(statistics.b)
        residual = inside * statistics.b
    else:
        first = cube.of(start)
        residual = inside * (statistics.b - statistics.apply(first))
    solved = conjugate_gradients(apply, first, residual, steps)
    return cube.whole_map(solved)


def find_mask(volume: Tensor, pixel_size: float, box: int | None = None) -> Tensor:
    """The automatic mask "D D D" around the particle in a first map "D D D" of `pixel_size` Å,
    which may be the middle of a larger `box`: see `maps.mask.from_map`. Raises DataError where the
    map is flat.
    """
    return mask.from_map(volume, pixel_size, threshold=0.2, extend=2, edge=2, box=box)


def density_scale(volume: Tensor, window: Tensor) -> float:
    """The density that a field of order one stands for: a tenth of the standard deviation of a
    first map inside the mask.

    The floor of a model starts that far below zero: a lower scale makes it bind, which held-out
    images favour (docs/decisions/0001).
    """
    square = (volume * window).square()
    variance = square.sum().div(window.sum())
    deviation = variance.sqrt().clamp(min=LEAST_DENSITY)
    return FIELD_OF_ONE * float(deviation)
