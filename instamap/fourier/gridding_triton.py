"""Spreading onto a Fourier grid and looking slices up in one, on graphics cards, by kernels that
Triton compiles: the fast form of `Grid.spread` and of `central_slices`.

The numbers of a row of WIDTH cells lie side by side, so a program works on a block of points, each
with a row of LANES numbers, row after row of the WIDTH² that a point reaches. Sums are float32.
Many points reach a cell at once, so what is spread is added in whatever order it comes, and repeats
to rounding.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from instamap.fourier.gridding import Grid
from instamap.fourier.kaiser_bessel import FIRST_CELL, STEPS, WIDTH, taps
from instamap.geometry.device_kernels import check_place, launching_on

POINTS = 64  # of a program
PARTS = 2  # of a complex number

_WIDTH = tl.constexpr(WIDTH)
_STEPS = tl.constexpr(STEPS)
_REACH = tl.constexpr(FIRST_CELL)
_LANES = tl.constexpr(16)  # the least power of two that holds three numbers for each cell of a row


def spread(grid: Grid, frames: Tensor, plane: Tensor, data: Tensor, power: Tensor) -> None:
    """Spreads like `Grid.spread`, for a float32 grid on a card."""
    values = torch.stack([data.real, data.imag, power], -1)
    scaled = frames * grid.cells_per_component
    _add(grid.cells, scaled, plane, values, grid.size // 2, values.shape[-1])


def scatter(grid: Tensor, frames: Tensor, plane: Tensor, values: Tensor, half: int) -> None:
    """Adds complex `values` "V P" to the cells "Z Y X 2", in place."""
    parts = torch.view_as_real(values.detach().resolve_conj().contiguous())
    _add(grid, frames, plane, parts, half, PARTS)


def gather(grid: Tensor, frames: Tensor, plane: Tensor, half: int) -> Tensor:
    """Values "V P" (complex64) of the cells "Z Y X 2"."""
    check_place(grid.device, grid.dtype)
    values = grid.new_empty(len(frames), len(plane), PARTS)
    count = len(frames) * len(plane)
    if count:
        with launching_on(grid.device):
            _gather[(triton.cdiv(count, POINTS),)](
                grid.detach().contiguous(),
                frames.float().contiguous(),
                plane.float().contiguous(),
                taps().to(grid),
                values,
                count,
                len(plane),
                half,
                grid.shape[1],
                grid.shape[2],
                BLOCK=POINTS,
            )
    return torch.view_as_complex(values)


def _add(
    cells: Tensor, frames: Tensor, plane: Tensor, values: Tensor, half: int, channels: int
) -> None:
    """Adds `values` "V P C" to the cells "Z Y X C", in place. frames: in cells."""
    check_place(cells.device, cells.dtype)
    count = len(frames) * len(plane)
    if not count:
        return
    with launching_on(cells.device):
        _spread[(triton.cdiv(count, POINTS),)](
            cells,
            frames.float().contiguous(),
            plane.float().contiguous(),
            taps().to(cells),
            values.float().contiguous(),
            count,
            len(plane),
            half,
            cells.shape[1],
            cells.shape[2],
            CHANNELS=channels,
            BLOCK=POINTS,
        )


@triton.jit
def _place(frames, plane, index, inside, in_plane, half):
    """Coordinates x, y, z in cells of points, whose whole part is the first cell that they reach,
    and their signs: see `kaiser_bessel.first_cells`.
    """
    view = index // in_plane
    point = index % in_plane
    first = tl.load(plane + point * 2, mask=inside, other=0.0)
    second = tl.load(plane + point * 2 + 1, mask=inside, other=0.0)
    frame = frames + view * 6
    x = first * tl.load(frame, mask=inside, other=0.0)
    y = first * tl.load(frame + 1, mask=inside, other=0.0)
    z = first * tl.load(frame + 2, mask=inside, other=0.0)
    x += second * tl.load(frame + 3, mask=inside, other=0.0)
    y += second * tl.load(frame + 4, mask=inside, other=0.0)
    z += second * tl.load(frame + 5, mask=inside, other=0.0)
    sign = tl.where(x < 0.0, -1.0, 1.0)
    return x * sign + _REACH, y * sign + half + _REACH, z * sign + half + _REACH, sign


@triton.jit
def _weight(table, at, cell, step, used):
    """The weight along one axis of the cell that lies `step` cells beyond the first, `cell`."""
    position = (at - cell) * _STEPS
    low = position.to(tl.int32)
    share = position - low
    place = table + low * _WIDTH + step
    below = tl.load(place, mask=used, other=0.0)
    above = tl.load(place + _WIDTH, mask=used, other=0.0)
    return below + share * (above - below)


@triton.jit
def _spread(
    cells,
    frames,
    plane,
    table,
    values,
    count,
    in_plane,
    half,
    height,
    width,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adds the values of a block of points to the cells that they reach."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    x, y, z, sign = _place(frames, plane, index, inside, in_plane, half)
    cx = x.to(tl.int32)
    cy = y.to(tl.int32)
    cz = z.to(tl.int32)
    lane = tl.arange(0, _LANES)[None, :]
    used = inside[:, None] & (lane < _WIDTH * CHANNELS)
    channel = lane % CHANNELS
    value = tl.load(values + index[:, None] * CHANNELS + channel, mask=used, other=0.0)
    signed = tl.where(channel == 1, value * sign[:, None], value)
    row = signed * _weight(table, x[:, None], cx[:, None], lane // CHANNELS, used)
    for k in tl.static_range(_WIDTH):
        wz = _weight(table, z, cz, k, inside)
        for j in tl.static_range(_WIDTH):
            weight = wz * _weight(table, y, cy, j, inside)
            line = (cz + k).to(tl.int64) * height + cy + j
            cell = line * width + cx
            tl.atomic_add(
                cells + cell[:, None] * CHANNELS + lane,
                weight[:, None] * row,
                mask=used,
                sem="relaxed",
            )


@triton.jit
def _gather(
    cells,
    frames,
    plane,
    table,
    values,
    count,
    in_plane,
    half,
    height,
    width,
    BLOCK: tl.constexpr,
):
    """Writes the complex values of a block of points."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    x, y, z, sign = _place(frames, plane, index, inside, in_plane, half)
    cx = x.to(tl.int32)
    cy = y.to(tl.int32)
    cz = z.to(tl.int32)
    lane = tl.arange(0, _LANES)[None, :]
    used = inside[:, None] & (lane < _WIDTH * 2)
    total = tl.zeros([BLOCK, _LANES], dtype=tl.float32)
    for k in tl.static_range(_WIDTH):
        wz = _weight(table, z, cz, k, inside)
        for j in tl.static_range(_WIDTH):
            weight = wz * _weight(table, y, cy, j, inside)
            line = (cz + k).to(tl.int64) * height + cy + j
            cell = line * width + cx
            place = cells + cell[:, None] * 2 + lane
            total += weight[:, None] * tl.load(place, mask=used, other=0.0)
    total *= _weight(table, x[:, None], cx[:, None], lane // 2, used)
    imaginary = lane % 2 == 1
    real_part = tl.sum(tl.where(imaginary, 0.0, total), axis=1)
    imaginary_part = tl.sum(tl.where(imaginary, total, 0.0), axis=1)
    tl.store(values + index * 2, real_part, mask=inside)
    tl.store(values + index * 2 + 1, imaginary_part * sign, mask=inside)
