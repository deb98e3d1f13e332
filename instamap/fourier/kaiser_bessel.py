"""The compact kernel between a Fourier grid and arbitrary frequencies: the Kaiser-Bessel window
(Jackson 1991), its transform, its weights.

The grid is oversampled: M cells stand for a lattice of fewer points, so that what the kernel does
to the lattice can be undone there by dividing by its transform. Half of the grid is kept (x ≥ 0),
the other half being its mirror image, with a margin around it: cell (x, y, z) is at [z + M/2 + m, y
+ M/2 + m, x + m], and nobody has to wrap an index.
"""

import math

import torch
from torch import Tensor

# cells that one point reaches along an axis: 5 x (complex + real) is 15 floats, one row of 16 in
# `fit.gridding_numba`
WIDTH = 5
SHAPE = (
    2.0 * WIDTH
)  # of the window; best at this width for a grid 1.5 (1.25 to 2.5) times as fine as the lattice
MARGIN = 3  # m: cells around the grid
STEPS = (
    512  # subdivisions of a cell in the table of the window; interpolating it linearly errs by 1e-6
)


def grid_size(lattice: int, oversampling: float) -> int:
    """The least even number M ≥ oversampling · lattice that has no prime factor above 5."""
    size = 2 * math.ceil(lattice * oversampling / 2)
    while _largest_factor(size) > 5:
        size += 2
    return size


def _largest_factor(n: int) -> int:
    for p in (2, 3, 5):
        while n % p == 0:
            n //= p
    return max(n, 2)


def window(distance: Tensor) -> Tensor:
    """The Kaiser-Bessel window I0(β sqrt(1 - (2d/w)²)) / I0(β) at distances d in cells; 0 beyond
    w/2.
    """
    inside = (1 - (2 * distance / WIDTH) ** 2).clamp(min=0)
    beta = torch.tensor(SHAPE, dtype=distance.dtype)
    return (
        torch.exp(beta * (inside.sqrt() - 1))
        * torch.special.i0e(beta * inside.sqrt())
        / torch.special.i0e(beta)
    )


def window_transform(x: Tensor) -> Tensor:
    """Fourier transform of `window` at x cycles per cell: w sinh(s) / (s I0(β)), s² = β² - (π w x)²
    > 0.
    """
    s = torch.sqrt(SHAPE**2 - (math.pi * WIDTH * x) ** 2)
    return WIDTH * torch.sinh(s) / s / torch.special.i0(torch.tensor(SHAPE, dtype=x.dtype))


def taps() -> Tensor:
    """Table "STEPS+2 WIDTH" of the window on the cells that a point reaches, by the fraction of a
    cell at which it lies; float64.
    """
    fraction = torch.arange(STEPS + 2, dtype=torch.float64) / STEPS
    return window(0.5 * WIDTH - 1 + fraction[:, None] - torch.arange(WIDTH))


def first_cells(frames: Tensor, plane: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """Coordinates "V P 3" (x, y, z) in cells, whose whole part is the first cell that a point
    reaches, and the sign "V P 1" it got.

    frames "V 2 3": the axes of the planes, in cells; plane "P 2": points; half: M/2. Points of the
    other half of the grid are replaced by their opposites, which has the sign -1 and makes their
    data conjugate.
    """
    q = plane @ frames
    sign = torch.where(q[..., :1] < 0, -1.0, 1.0).to(q)
    return q * sign + q.new_tensor([0, half, half]) + (MARGIN + 1 - 0.5 * WIDTH), sign


def footprint(at: Tensor, table: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Of points `at` "P 3" (from `first_cells`) the cells they reach, "P WIDTH³" in a flat grid of
    `shape` (z, y, x), and the weights.
    """
    z, y, x = torch.meshgrid(*[torch.arange(WIDTH, device=at.device)] * 3, indexing="ij")

    def flat(z, y, x):
        return (z * shape[1] + y) * shape[2] + x

    cell = at.long()
    step = (at - cell) * STEPS
    low = step.long()
    wx, wy, wz = (table[low] + (step - low)[..., None] * (table[low + 1] - table[low])).unbind(1)
    weights = (wz[:, :, None, None] * wy[:, None, :, None] * wx[:, None, None, :]).flatten(1)
    return flat(*cell.flip(1).T)[:, None] + flat(z, y, x).reshape(-1), weights
