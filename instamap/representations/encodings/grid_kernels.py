"""Compiled loops of the grid encoding: its values, its gradient in the table and its gradient in
position.

Points go through in blocks that stay in the first-level cache, all levels of a block before the
next block, so that neither points nor features are fetched again. Cells and weights of a block are
computed by plain loops, which the compiler vectorises over points. What follows can't be: it reads
eight entries per point from anywhere in the table. There the vector is the entry: its F features
are moved, interpolated and added as one register by the three intrinsics at the end, which numba's
own arrays have no way to say.

Addresses are bare, so callers must have checked shapes (`encoding.check`). `features` is a tuple
with one item per feature.
"""

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from instamap.geometry.compiled import jit
from instamap.representations.encodings.grid import PRIMES

BLOCK = 512  # points
F32 = np.float32
U32 = np.uint32
SIZE = np.uintp
ONE = SIZE(1)
PRIME_Y = U32(PRIMES[1])
PRIME_Z = U32(PRIMES[2])
ROWS = types.UniTuple(types.uintp, 8)
TRIPLE = types.UniTuple(types.float32, 3)
FMA = ("contract",)  # products and sums may be fused


_jit = jit(fastmath={"contract"})  # NaN and infinity keep their meaning


@_jit
def forward(start, stop, x, table, out, resolutions, offsets, dense, smoothstep, features):
    """Writes rows start .. stop of `out` "n L*F"."""
    position, cell, w, slope = _scratch()
    row = SIZE(4 * out.shape[1])
    for first in range(start, stop, BLOCK):
        m = min(BLOCK, stop - first)
        _clamp(x, first, m, position)
        for level in range(len(resolutions)):
            _cells(position, m, resolutions[level], smoothstep, cell, w, slope)
            k, begin, mask = _level(resolutions, offsets, level)
            place = SIZE(out.ctypes.data) + SIZE(first) * row + SIZE(4 * level * len(features))
            for i in range(SIZE(m)):
                rows = _rows(cell[0, i], cell[1, i], cell[2, i], k, begin, mask, dense[level])
                _interpolate(
                    SIZE(table.ctypes.data),
                    rows,
                    (w[0, i], w[1, i], w[2, i]),
                    place + i * row,
                    features,
                )


@_jit
def table_gradient(chosen, x, grad, grad_table, resolutions, offsets, dense, smoothstep, features):
    """Adds the gradient in the entries of the chosen levels to `grad_table` "E F"; `grad` "n L*F"."""
    position, cell, w, slope = _scratch()
    row = SIZE(4 * grad.shape[1])
    for first in range(0, len(x), BLOCK):
        m = min(BLOCK, len(x) - first)
        _clamp(x, first, m, position)
        for level in chosen:
            _cells(position, m, resolutions[level], smoothstep, cell, w, slope)
            k, begin, mask = _level(resolutions, offsets, level)
            place = SIZE(grad.ctypes.data) + SIZE(first) * row + SIZE(4 * level * len(features))
            for i in range(SIZE(m)):
                rows = _rows(cell[0, i], cell[1, i], cell[2, i], k, begin, mask, dense[level])
                _spread(
                    SIZE(grad_table.ctypes.data),
                    rows,
                    (w[0, i], w[1, i], w[2, i]),
                    place + i * row,
                    features,
                )


@_jit
def position_gradient(
    start, stop, x, table, grad, grad_x, resolutions, offsets, dense, smoothstep, features
):
    """Writes rows start .. stop of `grad_x` "n 3"; `grad` "n L*F"."""
    position, cell, w, slope = _scratch()
    total = np.empty((3, BLOCK), F32)
    row = SIZE(4 * grad.shape[1])
    for first in range(start, stop, BLOCK):
        m = min(BLOCK, stop - first)
        _clamp(x, first, m, position)
        total[:] = F32(0)
        for level in range(len(resolutions)):
            _cells(position, m, resolutions[level], smoothstep, cell, w, slope)
            k, begin, mask = _level(resolutions, offsets, level)
            place = SIZE(grad.ctypes.data) + SIZE(first) * row + SIZE(4 * level * len(features))
            for i in range(SIZE(m)):
                rows = _rows(cell[0, i], cell[1, i], cell[2, i], k, begin, mask, dense[level])
                along = _slopes(
                    SIZE(table.ctypes.data),
                    rows,
                    (w[0, i], w[1, i], w[2, i]),
                    place + i * row,
                    features,
                )
                for axis in range(3):
                    total[axis, i] += along[axis] * slope[axis, i]
        for i in range(m):
            for axis in range(3):
                outside = x[first + i, axis] < F32(0) or x[first + i, axis] > F32(1)
                grad_x[first + i, axis] = F32(0) if outside else total[axis, i]


@_jit
def _scratch():
    """A block's positions, cells, weights and slopes d weight / d x, all "3 B"."""
    return (
        np.empty((3, BLOCK), F32),
        np.empty((3, BLOCK), np.uint32),
        np.empty((3, BLOCK), F32),
        np.empty((3, BLOCK), F32),
    )


@_jit
def _clamp(x, first, m, position):
    """m points of `x` "n 3", moved into the cube, as columns. NaN stays."""
    for i in range(m):
        for axis in range(3):
            p = x[first + i, axis]
            p = F32(0) if p < F32(0) else p
            position[axis, i] = F32(1) if p > F32(1) else p


@_jit
def _cells(position, m, n, smoothstep, cell, w, slope):
    """Cells of m points on a level of n cells along an axis, the weights of their upper corners and
    these weights' slopes.
    """
    scale = F32(n)
    last = F32(n - 1)
    for axis in range(3):
        for i in range(m):
            p = position[axis, i] * scale
            c = np.int32(
                p if p < last else last
            )  # the upper face belongs to the last cell; so does NaN, whose weight stays NaN
            cell[axis, i] = U32(c)
            v = p - F32(c)
            rate = scale
            if smoothstep:
                rate = F32(6) * scale * v * (F32(1) - v)
                v = v * v * (F32(3) - F32(2) * v)
            w[axis, i], slope[axis, i] = v, rate


@_jit
def _level(resolutions, offsets, level):
    """Vertices along an axis, first row, and the mask that takes a hash modulo the level's (power
    of two) rows.
    """
    return (
        SIZE(resolutions[level] + 1),
        SIZE(offsets[level]),
        U32(offsets[level + 1] - offsets[level] - 1),
    )


@_jit
def _rows(x, y, z, k, begin, mask, dense):
    """Rows of the table that hold the corners (z, y, x as binary digits) of a cell."""
    if dense:
        a = SIZE(x) + k * (SIZE(y) + k * SIZE(z)) + begin
        b = a + k
        c = a + k * k
        d = a + k * k + k
        return a, a + ONE, b, b + ONE, c, c + ONE, d, d + ONE
    x1 = x + U32(1)
    y0 = y * PRIME_Y
    z0 = z * PRIME_Z
    y1 = y0 + PRIME_Y
    z1 = z0 + PRIME_Z
    a = y0 ^ z0
    b = y1 ^ z0
    c = y0 ^ z1
    d = y1 ^ z1
    return (
        SIZE((x ^ a) & mask) + begin,
        SIZE((x1 ^ a) & mask) + begin,
        SIZE((x ^ b) & mask) + begin,
        SIZE((x1 ^ b) & mask) + begin,
        SIZE((x ^ c) & mask) + begin,
        SIZE((x1 ^ c) & mask) + begin,
        SIZE((x ^ d) & mask) + begin,
        SIZE((x1 ^ d) & mask) + begin,
    )


@intrinsic
def _interpolate(typing, table, rows, weights, out, features):
    """Writes the interpolation of eight rows (corners z, y, x as binary digits) of `table` to the
    address `out`.
    """

    def code(context, builder, signature, values):
        table, rows, weights, out, _ = values
        ends = [
            builder.load(_entry(builder, table, row, len(features)), align=4)
            for row in cgutils.unpack_tuple(builder, rows)
        ]
        for w in cgutils.unpack_tuple(builder, weights):
            ends = _between(builder, ends, _repeat(builder, w, len(features)))
        builder.store(ends[0], _entry(builder, out, out.type(0), len(features)), align=4)
        return context.get_dummy_value()

    return types.void(types.uintp, ROWS, TRIPLE, types.uintp, features), code


@intrinsic
def _spread(typing, table, rows, weights, grad, features):
    """Adds the gradient at the address `grad`, shared out by the corners' weights, to eight rows of
    `table`.
    """

    def code(context, builder, signature, values):
        table, rows, weights, grad, _ = values
        shares = [builder.load(_entry(builder, grad, grad.type(0), len(features)), align=4)]
        for w in reversed(cgutils.unpack_tuple(builder, weights)):
            upper = [builder.fmul(share, _repeat(builder, w, len(features))) for share in shares]
            shares = [
                part
                for share, up in zip(shares, upper, strict=True)
                for part in (builder.fsub(share, up), up)
            ]
        for row, share in zip(cgutils.unpack_tuple(builder, rows), shares, strict=True):
            place = _entry(builder, table, row, len(features))
            builder.store(builder.fadd(builder.load(place, align=4), share), place, align=4)
        return context.get_dummy_value()

    return types.void(types.uintp, ROWS, TRIPLE, types.uintp, features), code


@intrinsic
def _slopes(typing, table, rows, weights, grad, features):
    """Derivatives of the interpolation in the three weights, each times the gradient at the address
    `grad`, summed over features.
    """

    def code(context, builder, signature, values):
        table, rows, weights, grad, _ = values
        ends = [
            builder.load(_entry(builder, table, row, len(features)), align=4)
            for row in cgutils.unpack_tuple(builder, rows)
        ]
        slopes = []
        for w in cgutils.unpack_tuple(builder, weights):
            w = _repeat(builder, w, len(features))
            slopes = [_between(builder, slope, w) for slope in slopes]
            slopes.append([builder.fsub(b, a) for a, b in zip(ends[::2], ends[1::2], strict=True)])
            ends = _between(builder, ends, w)
        g = builder.load(_entry(builder, grad, grad.type(0), len(features)), align=4)
        sums = [_sum(builder, builder.fmul(slope, g), len(features)) for (slope,) in slopes]
        return context.make_tuple(builder, signature.return_type, sums)

    return TRIPLE(types.uintp, ROWS, TRIPLE, types.uintp, features), code


def _entry(builder, address, row, width):
    """Where row `row` of `width` float32 lies, as a vector."""
    place = builder.add(address, builder.mul(row, row.type(4 * width)))
    return builder.inttoptr(place, ir.VectorType(ir.FloatType(), width).as_pointer())


def _repeat(builder, number, width):
    """The number in all places of a vector."""
    vector = ir.VectorType(ir.FloatType(), width)(ir.Undefined)
    for i in range(width):
        vector = builder.insert_element(vector, number, ir.IntType(32)(i))
    return vector


def _sum(builder, vector, width):
    """Sum over the places of a vector."""
    numbers = [builder.extract_element(vector, ir.IntType(32)(i)) for i in range(width)]
    total = numbers[0]
    for number in numbers[1:]:
        total = builder.fadd(total, number)
    return total


def _between(builder, ends, w):
    """Half as many vectors: a + w (b - a) of each two neighbours."""
    return [
        builder.fadd(a, builder.fmul(w, builder.fsub(b, a), FMA), FMA)
        for a, b in zip(ends[::2], ends[1::2], strict=True)
    ]
