"""The grid encoding on graphics cards: `grid.encode_torch` by kernels that Triton compiles.

A program works on a block of points: of one level in the forward pass and in the table's gradient,
of all levels in turn in the positions' gradient. Numbers are float32 and so are sums, but for the
deterministic gradient of the table, which many programs add to at once: there every term is rounded
to a multiple of a power of two and added as a 64-bit integer, and integers have one sum in any
order. The power is chosen so that the largest sum that can be fits.
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from instamap.geometry.device_kernels import check_place, launching_on
from instamap.representations.encodings.levels import Levels, check

POINTS = 128  # of a program
INTEGER_BITS = 62  # of the largest sum of integers
LARGEST_SHIFT = 126  # a power of two that float32 holds
CORNERS = 8

_Y_PRIME = tl.constexpr(2654435761)
_Z_PRIME = tl.constexpr(805459861)
_GEOMETRY = tl.constexpr(4)  # numbers of a level: cells, first row, rows, whether it is dense
_CORNERS = tl.constexpr(CORNERS)
_LIMIT = tl.constexpr(2.0**INTEGER_BITS)


def encode_triton(
    x: Tensor, table: Tensor, levels: Levels, *, deterministic: bool = True
) -> Tensor:
    """Features "n L*F" of points `x` "n 3", as `grid.encode_torch`; float32 on a card.

    deterministic: the table's gradient repeats bit for bit; else terms are added as float32 in
    whatever order they come. Raises ValueError for tensors of other types or places.
    """
    check(x, table, levels)
    check_place(x.device, x.dtype)
    return _Encode.apply(x, table, levels, deterministic)


class _Encode(torch.autograd.Function):
    """The encoding, and its gradients in the points and in the table."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        table: Tensor,
        levels: Levels,
        deterministic: bool,
    ) -> Tensor:
        points = x.contiguous()
        entries = table.contiguous()
        ctx.save_for_backward(points, entries)
        ctx.levels = levels
        ctx.deterministic = deterministic
        features = table.new_empty(len(x), levels.width)
        if len(x):
            with launching_on(x.device):
                _forward[_blocks_and_levels(points, levels)](
                    points,
                    entries,
                    _geometry(levels, x.device),
                    features,
                    len(x),
                    **_constants(levels),
                )
        return features

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        upstream: Tensor,
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, table = ctx.saved_tensors
        wants_x, wants_table, _, _ = ctx.needs_input_grad
        grad = upstream.contiguous()
        grad_x = None
        grad_table = None
        with launching_on(x.device):
            if wants_x:
                grad_x = _position_gradient(x, table, grad, ctx.levels)
            if wants_table and ctx.deterministic:
                grad_table = _deterministic_table_gradient(x, table, grad, ctx.levels)
            elif wants_table:
                grad_table = torch.zeros_like(table)
                unit = table.new_ones(())
                _add_table_gradient(x, grad, grad_table, unit, ctx.levels)
        return grad_x, grad_table, None, None


def _position_gradient(x: Tensor, table: Tensor, grad: Tensor, levels: Levels) -> Tensor:
    """Gradient "n 3" with respect to the points."""
    grad_x = torch.zeros_like(x)
    if len(x):
        blocks = triton.cdiv(len(x), POINTS)
        _position[(blocks,)](
            x,
            table,
            _geometry(levels, x.device),
            grad,
            grad_x,
            len(x),
            **_constants(levels),
        )
    return grad_x


def _deterministic_table_gradient(
    x: Tensor,
    table: Tensor,
    grad: Tensor,
    levels: Levels,
) -> Tensor:
    """Gradient "E F" with respect to the table, summed as integers; all NaN where a gradient that
    comes in is not finite.
    """
    if not len(x):
        return torch.zeros_like(table)
    largest = grad.abs().amax()
    _, exponent = torch.frexp(largest)
    terms = CORNERS * len(x)
    shift = INTEGER_BITS - (terms - 1).bit_length() - exponent
    one = torch.ones_like(largest)
    unit = torch.ldexp(one, shift.clamp(max=LARGEST_SHIFT))
    total = torch.zeros(table.shape, dtype=torch.int64, device=table.device)
    _add_table_gradient(x, grad, total, unit, levels)
    finite = torch.where(largest.isfinite(), one, torch.nan)
    return total.to(table.dtype) * (finite / unit)


def _add_table_gradient(
    x: Tensor,
    grad: Tensor,
    total: Tensor,
    unit: Tensor,
    levels: Levels,
) -> None:
    """Adds the table's gradient times `unit` to `total` "E F", as numbers of its type."""
    if len(x):
        _table[_blocks_and_levels(x, levels)](
            x,
            _geometry(levels, x.device),
            grad,
            total,
            unit,
            len(x),
            INTEGER=not total.is_floating_point(),
            **_constants(levels),
        )


def _blocks_and_levels(x: Tensor, levels: Levels) -> tuple[int, int]:
    """Programs along both axes: blocks of points, one level after the other, so that a level's
    entries stay in the cache.
    """
    blocks = triton.cdiv(len(x), POINTS)
    return blocks, len(levels.resolutions)


@functools.lru_cache(maxsize=64)
def _geometry(levels: Levels, device: torch.device) -> Tensor:
    """What kernels know of the levels: "L 4" integers, kept on the card."""
    rows = []
    for level, cells in enumerate(levels.resolutions):
        start = levels.offsets[level]
        count = levels.offsets[level + 1] - start
        dense = int(levels.dense[level])
        rows.append([cells, start, count, dense])
    return torch.tensor(rows, dtype=torch.int32, device=device)


def _constants(levels: Levels) -> dict[str, int | bool]:
    """What kernels are compiled for."""
    return {
        "LEVELS": len(levels.resolutions),
        "FEATURES": levels.features,
        "LANES": triton.next_power_of_2(levels.features),
        "SMOOTHSTEP": levels.smoothstep,
        "BLOCK": POINTS,
    }


@triton.jit
def _along(points, index, inside, axis, cells, SMOOTHSTEP: tl.constexpr):
    """The cell of points along one axis, the weight of its upper vertices, and the weight's slope.

    The upper face belongs to the last cell, and NaN to the first.
    """
    place = tl.load(points + index * 3 + axis, mask=inside, other=0.0)
    known = place == place
    clamped = tl.minimum(tl.maximum(place, 0.0), 1.0) * cells
    position = tl.where(known, clamped, 0.0)
    cell = tl.minimum(tl.floor(position).to(tl.int32), cells - 1)
    weight = tl.where(known, position - cell, place)
    slope = tl.zeros_like(weight) + cells
    if SMOOTHSTEP:
        slope = 6.0 * cells * weight * (1.0 - weight)
        weight = weight * weight * (3.0 - 2.0 * weight)
    return cell, weight, slope


@triton.jit
def _row(x, y, z, cells, start, count, dense):
    """The row of the table, in 64 bits, that holds a level's vertices (x, y, z)."""
    vertices = cells + 1
    in_order = x + vertices * (y + vertices * z)
    by_y = y.to(tl.uint32) * _Y_PRIME
    by_z = z.to(tl.uint32) * _Z_PRIME
    bits = x.to(tl.uint32) ^ by_y ^ by_z
    mask = (count - 1).to(tl.uint32)
    hashed = (bits & mask).to(tl.int32)
    row = tl.where(dense != 0, in_order, hashed)
    return row.to(tl.int64) + start


@triton.jit
def _level(geometry, level):
    """Cells along an edge, first row, rows, and whether they are dense."""
    place = geometry + level * _GEOMETRY
    cells = tl.load(place)
    start = tl.load(place + 1)
    count = tl.load(place + 2)
    dense = tl.load(place + 3)
    return cells, start, count, dense


@triton.jit
def _forward(
    points,
    table,
    geometry,
    features,
    n,
    LEVELS: tl.constexpr,
    FEATURES: tl.constexpr,
    LANES: tl.constexpr,
    SMOOTHSTEP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes one level's features of a block of points."""
    level = tl.program_id(1)
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < n
    cells, start, count, dense = _level(geometry, level)
    x, wx, _ = _along(points, index, inside, 0, cells, SMOOTHSTEP)
    y, wy, _ = _along(points, index, inside, 1, cells, SMOOTHSTEP)
    z, wz, _ = _along(points, index, inside, 2, cells, SMOOTHSTEP)
    feature = tl.arange(0, LANES)[None, :]
    used = inside[:, None] & (feature < FEATURES)
    total = tl.zeros([BLOCK, LANES], dtype=tl.float32)
    for corner in tl.static_range(_CORNERS):
        dx = corner % 2
        dy = corner // 2 % 2
        dz = corner // 4
        weight = _share(wx, dx) * _share(wy, dy) * _share(wz, dz)
        row = _row(x + dx, y + dy, z + dz, cells, start, count, dense)
        entry = table + row[:, None] * FEATURES + feature
        total += weight[:, None] * tl.load(entry, mask=used, other=0.0)
    place = index[:, None] * (LEVELS * FEATURES) + level * FEATURES + feature
    tl.store(features + place, total, mask=used)


@triton.jit
def _share(weight, upper: tl.constexpr):
    """The weight of the upper or lower vertices."""
    if upper:
        return weight
    else:
        return 1.0 - weight


@triton.jit
def _sign(upper: tl.constexpr):
    """The derivative of `_share` by the weight."""
    if upper:
        return 1.0
    else:
        return -1.0


@triton.jit
def _table(
    points,
    geometry,
    upstream,
    total,
    unit,
    n,
    INTEGER: tl.constexpr,
    LEVELS: tl.constexpr,
    FEATURES: tl.constexpr,
    LANES: tl.constexpr,
    SMOOTHSTEP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adds what a block of points gives to one level's entries, in units of `unit`."""
    level = tl.program_id(1)
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < n
    cells, start, count, dense = _level(geometry, level)
    x, wx, _ = _along(points, index, inside, 0, cells, SMOOTHSTEP)
    y, wy, _ = _along(points, index, inside, 1, cells, SMOOTHSTEP)
    z, wz, _ = _along(points, index, inside, 2, cells, SMOOTHSTEP)
    feature = tl.arange(0, LANES)[None, :]
    used = inside[:, None] & (feature < FEATURES)
    place = index[:, None] * (LEVELS * FEATURES) + level * FEATURES + feature
    grad = tl.load(upstream + place, mask=used, other=0.0) * tl.load(unit)
    for corner in tl.static_range(_CORNERS):
        dx = corner % 2
        dy = corner // 2 % 2
        dz = corner // 4
        weight = _share(wx, dx) * _share(wy, dy) * _share(wz, dz)
        row = _row(x + dx, y + dy, z + dz, cells, start, count, dense)
        entry = total + row[:, None] * FEATURES + feature
        term = weight[:, None] * grad
        if INTEGER:
            # Without what is not finite: the sum says NaN for it.
            known = tl.where(tl.abs(term) < _LIMIT, term, 0.0)
            tl.atomic_add(entry, known.to(tl.int64), mask=used, sem="relaxed")
        else:
            tl.atomic_add(entry, term, mask=used, sem="relaxed")


@triton.jit
def _position(
    points,
    table,
    geometry,
    upstream,
    grad_x,
    n,
    LEVELS: tl.constexpr,
    FEATURES: tl.constexpr,
    LANES: tl.constexpr,
    SMOOTHSTEP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes the gradient in a block of points, zero for those outside the cube."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < n
    feature = tl.arange(0, LANES)[None, :]
    used = inside[:, None] & (feature < FEATURES)
    by_x = tl.zeros([BLOCK], dtype=tl.float32)
    by_y = tl.zeros([BLOCK], dtype=tl.float32)
    by_z = tl.zeros([BLOCK], dtype=tl.float32)
    for level in range(LEVELS):
        cells, start, count, dense = _level(geometry, level)
        x, wx, sx = _along(points, index, inside, 0, cells, SMOOTHSTEP)
        y, wy, sy = _along(points, index, inside, 1, cells, SMOOTHSTEP)
        z, wz, sz = _along(points, index, inside, 2, cells, SMOOTHSTEP)
        place = index[:, None] * (LEVELS * FEATURES) + level * FEATURES + feature
        grad = tl.load(upstream + place, mask=used, other=0.0)
        for corner in tl.static_range(_CORNERS):
            dx = corner % 2
            dy = corner // 2 % 2
            dz = corner // 4
            row = _row(x + dx, y + dy, z + dz, cells, start, count, dense)
            entry = table + row[:, None] * FEATURES + feature
            value = tl.load(entry, mask=used, other=0.0)
            along = tl.sum(value * grad, axis=1)
            across_x = _share(wy, dy) * _share(wz, dz)
            across_y = _share(wx, dx) * _share(wz, dz)
            across_z = _share(wx, dx) * _share(wy, dy)
            by_x += _sign(dx) * across_x * along * sx
            by_y += _sign(dy) * across_y * along * sy
            by_z += _sign(dz) * across_z * along * sz
    _store(points, grad_x, index, inside, 0, by_x)
    _store(points, grad_x, index, inside, 1, by_y)
    _store(points, grad_x, index, inside, 2, by_z)


@triton.jit
def _store(points, grad_x, index, inside, axis, value):
    """Writes one component of the positions' gradient, zero outside the cube."""
    place = index * 3 + axis
    x = tl.load(points + place, mask=inside, other=0.0)
    outside = (x < 0.0) | (x > 1.0)
    tl.store(grad_x + place, tl.where(outside, 0.0, value), mask=inside)
