"""Compiled loops of the grid encoding: its values, its gradient in the table and its gradient in
position.

Points go through in blocks that stay in the first-level cache, all levels of a block before the
next block, so that neither points nor features are fetched again. Cells and weights of a block are
computed by plain loops, which the compiler vectorises over points. What follows can't be: it reads
eight entries per point from anywhere in the table. There the vector is the entry: its F features
are moved, interpolated and added as one register by the three intrinsics at the end, which numba's
own arrays have no way to say.

Addresses are bare, so callers must have checked shapes (`levels.check`). `features` is a tuple
with one item per feature.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from instamap.geometry.compiled import jit
from instamap.representations.encodings.levels import PRIMES

POINTS_PER_BLOCK = 512
BYTES = 4  # of a float32
F32 = np.float32
U32 = np.uint32
SIZE = np.uintp
ZERO = F32(0)
UNIT = F32(1)
ONE = SIZE(1)
PRIME_Y = U32(PRIMES[1])
PRIME_Z = U32(PRIMES[2])
ROWS = types.UniTuple(types.uintp, 8)
TRIPLE = types.UniTuple(types.float32, 3)
FUSED = ("contract",)  # products and sums may be fused


_jit = jit(fastmath={"contract"})  # NaN and infinity keep their meaning


@_jit
def forward(
    start: int,
    stop: int,
    x: np.ndarray,
    table: np.ndarray,
    out: np.ndarray,
    resolutions: np.ndarray,
    offsets: np.ndarray,
    dense: np.ndarray,
    smoothstep: bool,
    features: tuple,
) -> None:
    """Writes rows start .. stop of `out` "n L*F"."""
    position, cell, w, slope = _scratch()
    row = SIZE(BYTES * out.shape[1])
    level_bytes = BYTES * len(features)
    entries = SIZE(table.ctypes.data)
    base = SIZE(out.ctypes.data)
    for first in range(start, stop, POINTS_PER_BLOCK):
        m = min(POINTS_PER_BLOCK, stop - first)
        _clamp(x, first, m, position)
        for level in range(len(resolutions)):
            n = resolutions[level]
            _cells(position, m, n, smoothstep, cell, w, slope)
            k, begin, mask = _level(resolutions, offsets, level)
            place = base + SIZE(first) * row + SIZE(level * level_bytes)
            for i in range(SIZE(m)):
                rows = _rows(
                    cell[0, i],
                    cell[1, i],
                    cell[2, i],
                    k,
                    begin,
                    mask,
                    dense[level],
                )
                weights = (w[0, i], w[1, i], w[2, i])
                _interpolate(
                    entries,
                    rows,
                    weights,
                    place + i * row,
                    features,
                )


@_jit
def table_gradient(
    chosen: np.ndarray,
    x: np.ndarray,
    grad: np.ndarray,
    grad_table: np.ndarray,
    resolutions: np.ndarray,
    offsets: np.ndarray,
    dense: np.ndarray,
    smoothstep: bool,
    features: tuple,
) -> None:
    """Adds the gradient in the entries of the chosen levels to `grad_table` "E F"; `grad` is "n
    L*F".
    """
    position, cell, w, slope = _scratch()
    row = SIZE(BYTES * grad.shape[1])
    level_bytes = BYTES * len(features)
    entries = SIZE(grad_table.ctypes.data)
    base = SIZE(grad.ctypes.data)
    for first in range(0, len(x), POINTS_PER_BLOCK):
        m = min(POINTS_PER_BLOCK, len(x) - first)
        _clamp(x, first, m, position)
        for level in chosen:
            n = resolutions[level]
            _cells(position, m, n, smoothstep, cell, w, slope)
            k, begin, mask = _level(resolutions, offsets, level)
            place = base + SIZE(first) * row + SIZE(level * level_bytes)
            for i in range(SIZE(m)):
                rows = _rows(
                    cell[0, i],
                    cell[1, i],
                    cell[2, i],
                    k,
                    begin,
                    mask,
                    dense[level],
                )
                weights = (w[0, i], w[1, i], w[2, i])
                _spread(
                    entries,
                    rows,
                    weights,
                    place + i * row,
                    features,
                )


@_jit
def position_gradient(
    start: int,
    stop: int,
    x: np.ndarray,
    table: np.ndarray,
    grad: np.ndarray,
    grad_x: np.ndarray,
    resolutions: np.ndarray,
    offsets: np.ndarray,
    dense: np.ndarray,
    smoothstep: bool,
    features: tuple,
) -> None:
    """Writes rows start .. stop of `grad_x` "n 3"; `grad` is "n L*F"."""
    position, cell, w, slope = _scratch()
    total = np.empty((3, POINTS_PER_BLOCK), F32)
    row = SIZE(BYTES * grad.shape[1])
    level_bytes = BYTES * len(features)
    entries = SIZE(table.ctypes.data)
    base = SIZE(grad.ctypes.data)
    for first in range(start, stop, POINTS_PER_BLOCK):
        m = min(POINTS_PER_BLOCK, stop - first)
        _clamp(x, first, m, position)
        total[:] = ZERO
        for level in range(len(resolutions)):
            n = resolutions[level]
            _cells(position, m, n, smoothstep, cell, w, slope)
            k, begin, mask = _level(resolutions, offsets, level)
            place = base + SIZE(first) * row + SIZE(level * level_bytes)
            for i in range(SIZE(m)):
                rows = _rows(
                    cell[0, i],
                    cell[1, i],
                    cell[2, i],
                    k,
                    begin,
                    mask,
                    dense[level],
                )
                weights = (w[0, i], w[1, i], w[2, i])
                along = _slopes(
                    entries,
                    rows,
                    weights,
                    place + i * row,
                    features,
                )
                for axis in range(3):
                    total[axis, i] += along[axis] * slope[axis, i]
        for i in range(m):
            for axis in range(3):
                p = x[first + i, axis]
                outside = p < ZERO or p > UNIT
                inner = total[axis, i]
                grad_x[first + i, axis] = ZERO if outside else inner


@_jit
def _scratch() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A block's positions, cells, weights and slopes d weight / d x, all "3 B"."""
    shape = (3, POINTS_PER_BLOCK)
    position = np.empty(shape, F32)
    cell = np.empty(shape, np.uint32)
    weight = np.empty(shape, F32)
    slope = np.empty(shape, F32)
    return position, cell, weight, slope


@_jit
def _clamp(
    x: np.ndarray,
    first: int,
    m: int,
    position: np.ndarray,
) -> None:
    """Writes m points of `x` "n 3", moved into the cube, as columns. NaN stays."""
    for i in range(m):
        for axis in range(3):
            p = x[first + i, axis]
            p = ZERO if p < ZERO else p
            position[axis, i] = UNIT if p > UNIT else p


@_jit
def _cells(
    position: np.ndarray,
    m: int,
    n: int,
    smoothstep: bool,
    cell: np.ndarray,
    w: np.ndarray,
    slope: np.ndarray,
) -> None:
    """Writes the cells of m points on a level of n cells along an axis, the weights of their upper
    corners and these weights' slopes.
    """
    scale = F32(n)
    last = F32(n - 1)
    for axis in range(3):
        for i in range(m):
            p = position[axis, i] * scale
            # The upper face belongs to the last cell; so does NaN, whose weight stays NaN.
            inside = p if p < last else last
            c = np.int32(inside)
            cell[axis, i] = U32(c)
            v = p - F32(c)
            rate = scale
            if smoothstep:
                rate = F32(6) * scale * v * (UNIT - v)
                v = v * v * (F32(3) - F32(2) * v)
            w[axis, i] = v
            slope[axis, i] = rate


@_jit
def _level(
    resolutions: np.ndarray,
    offsets: np.ndarray,
    level: int,
) -> tuple[int, int, int]:
    """Vertices along an axis, first row, and the mask that takes a hash modulo the level's (power
    of two) rows.
    """
    vertices = resolutions[level] + 1
    begin = offsets[level]
    size = offsets[level + 1] - begin
    return SIZE(vertices), SIZE(begin), U32(size - 1)


@_jit
def _rows(
    x: int,
    y: int,
    z: int,
    k: int,
    begin: int,
    mask: int,
    dense: bool,
) -> tuple[int, ...]:
    """Rows of the table that hold the corners (z, y, x as binary digits) of a cell."""
    if dense:
        a = SIZE(x) + k * (SIZE(y) + k * SIZE(z)) + begin
        b = a + k
        c = a + k * k
        d = a + k * k + k
        return (
            a,
            a + ONE,
            b,
            b + ONE,
            c,
            c + ONE,
            d,
            d + ONE,
        )
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
def _interpolate(
    typing: Any,
    table: Any,
    rows: Any,
    weights: Any,
    out: Any,
    features: Any,
) -> tuple[Any, Any]:
    """Writes the interpolation of eight rows (corners z, y, x as binary digits) of `table` to the
    address `out`.
    """
    width = len(features)

    def code(
        context: Any,
        builder: Any,
        signature: Any,
        values: Any,
    ) -> Any:
        table, rows, weights, out, _ = values
        ends = _load_entries(builder, table, rows, width)
        for w in cgutils.unpack_tuple(builder, weights):
            w = _repeat(builder, w, width)
            ends = _between(builder, ends, w)
        place = _entry(builder, out, out.type(0), width)
        builder.store(ends[0], place, align=BYTES)
        return context.get_dummy_value()

    signature = types.void(
        types.uintp,
        ROWS,
        TRIPLE,
        types.uintp,
        features,
    )
    return signature, code


@intrinsic
def _spread(
    typing: Any,
    table: Any,
    rows: Any,
    weights: Any,
    grad: Any,
    features: Any,
) -> tuple[Any, Any]:
    """Adds the gradient at the address `grad`, shared out by the corners' weights, to eight rows of
    `table`.
    """
    width = len(features)

    def code(
        context: Any,
        builder: Any,
        signature: Any,
        values: Any,
    ) -> Any:
        table, rows, weights, grad, _ = values
        shares = [_load(builder, grad, grad.type(0), width)]
        for w in reversed(cgutils.unpack_tuple(builder, weights)):
            shares = _split(builder, shares, w, width)
        unpacked = cgutils.unpack_tuple(builder, rows)
        for row, share in zip(unpacked, shares, strict=True):
            place = _entry(builder, table, row, width)
            before = builder.load(place, align=BYTES)
            after = builder.fadd(before, share)
            builder.store(after, place, align=BYTES)
        return context.get_dummy_value()

    signature = types.void(
        types.uintp,
        ROWS,
        TRIPLE,
        types.uintp,
        features,
    )
    return signature, code


@intrinsic
def _slopes(
    typing: Any,
    table: Any,
    rows: Any,
    weights: Any,
    grad: Any,
    features: Any,
) -> tuple[Any, Any]:
    """Derivatives of the interpolation in the three weights, each times the gradient at the address
    `grad`, summed over features.
    """
    width = len(features)

    def code(
        context: Any,
        builder: Any,
        signature: Any,
        values: Any,
    ) -> Any:
        table, rows, weights, grad, _ = values
        ends = _load_entries(builder, table, rows, width)
        slopes: list[list[Any]] = []
        for w in cgutils.unpack_tuple(builder, weights):
            w = _repeat(builder, w, width)
            slopes = [_between(builder, slope, w) for slope in slopes]
            slopes.append(_differences(builder, ends))
            ends = _between(builder, ends, w)
        upstream = _load(builder, grad, grad.type(0), width)
        sums = []
        for (slope,) in slopes:
            product = builder.fmul(slope, upstream)
            sums.append(_sum(builder, product, width))
        return context.make_tuple(builder, signature.return_type, sums)

    signature = TRIPLE(
        types.uintp,
        ROWS,
        TRIPLE,
        types.uintp,
        features,
    )
    return signature, code


def _entry(
    builder: Any,
    address: Any,
    row: Any,
    width: int,
) -> Any:
    """The address of row `row` of `width` float32, as a vector's."""
    row_bytes = row.type(BYTES * width)
    place = builder.add(address, builder.mul(row, row_bytes))
    vector = ir.VectorType(ir.FloatType(), width)
    return builder.inttoptr(place, vector.as_pointer())


def _load(
    builder: Any,
    address: Any,
    row: Any,
    width: int,
) -> Any:
    """Row `row` of `width` float32, as a vector."""
    place = _entry(builder, address, row, width)
    return builder.load(place, align=BYTES)


def _load_entries(
    builder: Any,
    table: Any,
    rows: Any,
    width: int,
) -> list[Any]:
    """The entries of the table in a tuple of rows, as vectors."""
    unpacked = cgutils.unpack_tuple(builder, rows)
    return [_load(builder, table, row, width) for row in unpacked]


def _repeat(builder: Any, number: Any, width: int) -> Any:
    """The number in all places of a vector."""
    kind = ir.VectorType(ir.FloatType(), width)
    vector = kind(ir.Undefined)
    for i in range(width):
        place = ir.IntType(32)(i)
        vector = builder.insert_element(vector, number, place)
    return vector


def _sum(builder: Any, vector: Any, width: int) -> Any:
    """Sum over the places of a vector."""
    numbers = []
    for i in range(width):
        place = ir.IntType(32)(i)
        numbers.append(builder.extract_element(vector, place))
    total = numbers[0]
    for number in numbers[1:]:
        total = builder.fadd(total, number)
    return total


def _split(
    builder: Any,
    shares: list[Any],
    weight: Any,
    width: int,
) -> list[Any]:
    """Twice as many vectors: of each share g - w g and w g, in turn."""
    upper = []
    for share in shares:
        repeated = _repeat(builder, weight, width)
        upper.append(builder.fmul(share, repeated))
    parts = []
    for share, up in zip(shares, upper, strict=True):
        parts.append(builder.fsub(share, up))
        parts.append(up)
    return parts


def _differences(builder: Any, ends: list[Any]) -> list[Any]:
    """Half as many vectors: b - a of each two neighbours."""
    neighbours = zip(ends[::2], ends[1::2], strict=True)
    return [builder.fsub(b, a) for a, b in neighbours]


def _between(builder: Any, ends: list[Any], w: Any) -> list[Any]:
    """Half as many vectors: a + w (b - a) of each two neighbours."""
    means = []
    for a, b in zip(ends[::2], ends[1::2], strict=True):
        difference = builder.fsub(b, a)
        product = builder.fmul(w, difference, FUSED)
        means.append(builder.fadd(a, product, FUSED))
    return means
