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

from instamap.geometry import grids

# Cells that one point reaches along an axis: 5 x (complex + real) is 15 floats, one row of 16 in
# `gridding_numba`.
WIDTH = 5
# Shape β of the window; best at this width for a grid 1.5 (1.25 to 2.5) times as fine as the
# lattice.
SHAPE = 2.0 * WIDTH
MARGIN = 3  # m: cells around the grid
# Subdivisions of a cell in the table of the window; interpolating it linearly errs by 1e-6.
STEPS = 512
# Position of a grid's cell x = 0, less how far a point reaches to its left.
FIRST_CELL = MARGIN + 1 - 0.5 * WIDTH


def grid_size(lattice: int, oversampling: float) -> int:
    """The least even number M ≥ oversampling · lattice that has no prime factor above 5."""
    return grids.fast_edge(lattice * oversampling)


def window(distance: Tensor) -> Tensor:
    """The Kaiser-Bessel window I0(β sqrt(1 - (2d/w)²)) / I0(β) at distances d "*" in cells; 0
    beyond w/2.
    """
    relative = 2 * distance / WIDTH
    inside = (1 - relative**2).clamp(min=0)
    root = inside.sqrt()
    beta = torch.tensor(SHAPE, dtype=distance.dtype)
    # I0(s) = exp(s) i0e(s): only the difference of exponents is ever raised.
    fall = torch.exp(beta * (root - 1))
    height = torch.special.i0e(beta * root)
    return fall * height / torch.special.i0e(beta)


def window_transform(x: Tensor) -> Tensor:
    """Fourier transform of `window` at x "*" cycles per cell: w sinh(s) / (s I0(β)), s² = β² -
    (π w x)² > 0.
    """
    phase = math.pi * WIDTH * x
    s = torch.sqrt(SHAPE**2 - phase**2)
    beta = torch.tensor(SHAPE, dtype=x.dtype)
    transform = WIDTH * torch.sinh(s) / s
    return transform / torch.special.i0(beta)


def taps() -> Tensor:
    """Table "STEPS+2 WIDTH" of the window on the cells that a point reaches, by the fraction of a
    cell at which it lies; float64.
    """
    step = torch.arange(STEPS + 2, dtype=torch.float64)
    fraction = step / STEPS
    cell = torch.arange(WIDTH)
    from_first = 0.5 * WIDTH - 1 + fraction
    return window(from_first[:, None] - cell)


def first_cells(
    frames: Tensor,
    plane: Tensor,
    half: int,
) -> tuple[Tensor, Tensor]:
    """Coordinates "V P 3" (x, y, z) in cells, whose whole part is the first cell that a point
    reaches, and the sign "V P 1" it got.

    frames "V 2 3": the axes of the planes, in cells; plane "P 2": points; half: M/2. Points of the
    other half of the grid are replaced by their opposites, which has the sign -1 and makes their
    data conjugate.
    """
    q = plane @ frames
    left = q[..., :1] < 0
    sign = torch.where(left, -1.0, 1.0).to(q)
    origin = q.new_tensor([0, half, half])
    at = q * sign + origin + FIRST_CELL
    return at, sign


def footprint(
    at: Tensor,
    table: Tensor,
    shape: tuple[int, ...],
) -> tuple[Tensor, Tensor]:
    """Cells that points reach, "P WIDTH³" in a flat grid of `shape` (z, y, x), and their weights.

    at "P 3": coordinates from `first_cells`. table: `taps`.
    """
    first = at.long()
    weights = _weights(at - first, table)
    along = torch.arange(WIDTH, device=at.device)
    z, y, x = torch.meshgrid(
        along,
        along,
        along,
        indexing="ij",
    )
    within = _flat_index(z, y, x, shape)
    x, y, z = first.unbind(1)
    corner = _flat_index(z, y, x, shape)
    cells = corner[:, None] + within.reshape(-1)
    return cells, weights


def _weights(fraction: Tensor, table: Tensor) -> Tensor:
    """Weights "P WIDTH³" of the cells that points at fractions "P 3" of a cell reach."""
    position = fraction * STEPS
    low = position.long()
    share = (position - low)[..., None]
    below = table[low]
    above = table[low + 1]
    along = below + share * (above - below)
    wx, wy, wz = along.unbind(1)
    across = wz[:, :, None] * wy[:, None]
    product = across[..., None] * wx[:, None, None]
    return product.flatten(1)


def _flat_index(
    z: Tensor,
    y: Tensor,
    x: Tensor,
    shape: tuple[int, ...],
) -> Tensor:
    """Index of the cell z, y, x in a flat grid of `shape`."""
    _, height, width = shape
    line = z * height + y
    return line * width + x
