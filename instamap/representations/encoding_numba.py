"""The grid encoding on CPUs: numba kernels for its values, its gradient in the table and its gradient in position, run by threads.

How it is made fast. Points go through in blocks that stay in the first-level caches, all levels of a block before the next block, so that
neither points nor features are fetched again. Within a block each step (cells, rows, moving entries, interpolation) is a loop of its own:
those that compute run over contiguous numbers and are vectorised, and those that move entries do nothing else, so many cache misses
are under way at once. Pairs of float32 move as one int64.

Threads are plain Python threads that run kernels which hold no lock, started for each call and gone at its end. numba's own layers
do not suit a library: its OpenMP layer kills forked workers, and its work queue aborts when two Python threads call it at once. These do
neither, never spin on a busy machine, and their start costs about 0.1 ms, 1 % of what they run.

Every number is summed in one order whatever the number of threads: points are independent in the forward pass and in the position
gradient, levels in the table gradient. So results repeat exactly.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from instamap.representations.encoding import PRIMES, Levels

BLOCK = 256  # points: with two features, 8 corners are 32 KiB
SHARE = 4096  # points that are worth a thread
F32, U32, SIZE = np.float32, np.uint32, np.uintp
PRIME_Y, PRIME_Z = U32(PRIMES[1]), U32(PRIMES[2])


def _jit(function: Callable) -> Callable:
    """Compiled on first use, without Python's lock; on disk for the next run where some folder can be written, as numba chooses."""
    flags = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}}  # NaN and infinity keep their meaning
    try:
        return numba.njit(cache=True, **flags)(function)
    except RuntimeError:  # a read-only installation without a home folder
        return numba.njit(**flags)(function)


def encode_numba(x: Tensor, table: Tensor, levels: Levels) -> Tensor:
    """Features "n L*F" of points `x` "n 3", as `encoding.encode_torch`; float32 on a CPU, by torch.get_num_threads() threads."""
    return _Encode.apply(x, table, levels)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, table: Tensor, levels: Levels) -> Tensor:
        ctx.save_for_backward(x, table)
        ctx.levels = levels
        out = table.new_empty(len(x), levels.width)
        arguments = _units(table, levels), _units(out, levels), *_geometry(levels)
        _over_points(_forward, len(x), _floats(x), *arguments)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        (x, table), levels = ctx.saved_tensors, ctx.levels
        points, units = _floats(x), _units(grad, levels)
        grad_x = grad_table = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
            _over_points(_backward_x, len(x), points, _units(table, levels), units, grad_x.numpy(), *_geometry(levels))
        if ctx.needs_input_grad[1]:
            grad_table = torch.zeros_like(table, memory_format=torch.contiguous_format)
            _over_levels(levels, len(x), points, units, grad_table.numpy().reshape(-1), *_geometry(levels))
        return grad_x, grad_table, None


def _floats(tensor: Tensor) -> np.ndarray:
    """The tensor's numbers in order, at an address that suits int64."""
    tensor = tensor.detach().contiguous()
    return (tensor if tensor.data_ptr() % 8 == 0 else tensor.clone()).numpy()


def _units(tensor: Tensor, levels: Levels) -> np.ndarray:
    """Rows of F float32 seen as the widest words that fill them, "n units" for n rows of features."""
    word = np.int32 if levels.features % 2 else np.int64
    return _floats(tensor).reshape(-1).view(word).reshape(-1, levels.features * 4 // word().itemsize)


def _geometry(levels: Levels) -> tuple:
    """What the kernels need of `levels`. Features are told by a tuple's length: that is a constant to the compiler, which unrolls."""
    arrays = np.array(levels.resolutions, np.int64), np.array(levels.offsets, np.int64), np.array(levels.dense, np.bool_)
    return *arrays, levels.smoothstep, (0,) * levels.features, (0,) * (levels.features if levels.features % 2 else levels.features // 2)


def _over_points(kernel: Callable, n: int, *arguments) -> None:
    """Runs kernel(start, stop, *arguments) on a share of the points in each thread."""
    shares = max(1, min(torch.get_num_threads(), n // SHARE))
    bounds = [n * i // shares for i in range(shares + 1)]
    _run([lambda i=i: kernel(bounds[i], bounds[i + 1], *arguments) for i in range(shares)])


def _over_levels(levels: Levels, n: int, *arguments) -> None:
    """Runs the table's gradient on some levels in each thread, dealt out from the largest to and fro so that shares are even."""
    shares = max(1, min(torch.get_num_threads(), len(levels.resolutions), n * len(levels.resolutions) // SHARE))
    turn = [*range(shares), *reversed(range(shares))]
    owner = [turn[i % len(turn)] for i in range(len(levels.resolutions))][::-1]
    chosen = [np.array([level for level, who in enumerate(owner) if who == i], np.int64) for i in range(shares)]
    _run([lambda mine=mine: _backward_table(mine, *arguments) for mine in chosen])


def _run(tasks: list[Callable]) -> None:
    """Runs all tasks at once, the first of them here; raises what they raise."""
    if len(tasks) == 1:
        return tasks[0]()
    with ThreadPoolExecutor(len(tasks) - 1) as pool:
        others = [pool.submit(task) for task in tasks[1:]]
        tasks[0]()
        for other in others:
            other.result()


@_jit
def _forward(start, stop, x, table, out, resolutions, offsets, dense, smoothstep, features, words):
    """Writes rows L start .. L stop of `out` "n*L units"."""
    position, cell, w, slope, rows = _scratch(len(features))
    corners = np.empty((8, BLOCK * table.shape[1]), table.dtype)
    result = np.empty(BLOCK * table.shape[1], table.dtype)
    for first in range(start, stop, BLOCK):
        block = x[first : min(first + BLOCK, stop)]
        _clamp(block, position)
        for level in range(len(resolutions)):
            _cells(position, len(block), resolutions[level], smoothstep, features, cell, w, slope)
            _rows(cell, len(block), resolutions[level], offsets[level], offsets[level + 1], dense[level], rows)
            _gather(table, rows, len(block), words, corners)
            _interpolate(corners.view(F32), w, len(block) * len(features), result.view(F32))
            _store(result, len(block), words, out, first * len(resolutions) + level, len(resolutions))


@_jit
def _backward_x(start, stop, x, table, grad, grad_x, resolutions, offsets, dense, smoothstep, features, words):
    """Writes rows start .. stop of `grad_x` "n 3"; `grad` "n*L units"."""
    position, cell, w, slope, rows = _scratch(len(features))
    corners = np.empty((8, BLOCK * table.shape[1]), table.dtype)
    g = np.empty(BLOCK * table.shape[1], table.dtype)
    along = np.empty((3, BLOCK * len(features)), F32)
    total = np.empty((3, BLOCK), F32)
    for first in range(start, stop, BLOCK):
        block = x[first : min(first + BLOCK, stop)]
        _clamp(block, position)
        total[:] = F32(0)
        for level in range(len(resolutions)):
            _cells(position, len(block), resolutions[level], smoothstep, features, cell, w, slope)
            _rows(cell, len(block), resolutions[level], offsets[level], offsets[level + 1], dense[level], rows)
            _gather(table, rows, len(block), words, corners)
            _load(grad, first * len(resolutions) + level, len(resolutions), len(block), words, g)
            _differences(corners.view(F32), w, g.view(F32), len(block) * len(features), along)
            _accumulate(along, slope, len(block), features, total)
        for i in range(len(block)):
            for axis in range(3):
                outside = block[i, axis] < F32(0) or block[i, axis] > F32(1)
                grad_x[first + i, axis] = F32(0) if outside else total[axis, i]


@_jit
def _backward_table(mine, x, grad, grad_table, resolutions, offsets, dense, smoothstep, features, words):
    """Adds the gradient of levels `mine` to `grad_table` "E*F"; `grad` "n*L units"."""
    position, cell, w, slope, rows = _scratch(len(features))
    g = np.empty(BLOCK * grad.shape[1], grad.dtype)
    corners = np.empty((8, BLOCK * len(features)), F32)
    for first in range(0, len(x), BLOCK):
        block = x[first : first + BLOCK]
        _clamp(block, position)
        for level in mine:
            _cells(position, len(block), resolutions[level], smoothstep, features, cell, w, slope)
            _rows(cell, len(block), resolutions[level], offsets[level], offsets[level + 1], dense[level], rows)
            _load(grad, first * len(resolutions) + level, len(resolutions), len(block), words, g)
            _distribute(g.view(F32), w, len(block) * len(features), corners)
            _scatter_add(corners, rows, len(block), features, grad_table)


@_jit
def _scratch(features):
    """A block's positions "3 B", cells "3 B", weights "3 B*F" (once per feature), slopes d weight / d x "3 B" and rows "8 B"."""
    position, cell, slope = np.empty((3, BLOCK), F32), np.empty((3, BLOCK), np.uint32), np.empty((3, BLOCK), F32)
    return position, cell, np.empty((3, BLOCK * features), F32), slope, np.empty((8, BLOCK), np.uint32)


@_jit
def _clamp(block, position):
    """The block's points "m 3", moved into the cube, as columns. NaN stays."""
    for i in range(len(block)):
        for axis in range(3):
            p = block[i, axis]
            p = F32(0) if p < F32(0) else p
            position[axis, i] = F32(1) if p > F32(1) else p


@_jit
def _cells(position, m, n, smoothstep, features, cell, w, slope):
    """Cells of m points on a level of n cells, their weights and slopes."""
    scale, last = F32(n), F32(n - 1)
    for axis in range(3):
        for i in range(m):
            p = position[axis, i] * scale
            c = p if p < last else last  # the upper face belongs to the last cell; so does NaN, whose weight stays NaN
            cell[axis, i] = U32(np.int32(c))
            v, rate = p - F32(np.int32(c)), scale
            if smoothstep:
                rate = F32(6) * scale * v * (F32(1) - v)
                v = v * v * (F32(3) - F32(2) * v)
            slope[axis, i] = rate
            for f in range(len(features)):
                w[axis, i * len(features) + f] = v


@_jit
def _rows(cell, m, n, start, end, dense, rows):
    """Rows of the table that hold the corners (z, y, x, as binary digits) of m cells."""
    k, first = U32(n + 1), U32(start)
    if dense:
        for corner in range(8):
            step = first + U32(corner & 1) + U32(corner >> 1 & 1) * k + U32(corner >> 2) * k * k
            for i in range(m):
                rows[corner, i] = cell[0, i] + k * (cell[1, i] + k * cell[2, i]) + step
    else:
        mask = U32(end - start - 1)
        for corner in range(8):
            dx, dy, dz = U32(corner & 1), U32(corner >> 1 & 1), U32(corner >> 2)
            for i in range(m):
                hashed = (cell[0, i] + dx) ^ ((cell[1, i] + dy) * PRIME_Y) ^ ((cell[2, i] + dz) * PRIME_Z)
                rows[corner, i] = (hashed & mask) + first


@_jit
def _gather(table, rows, m, words, corners):
    """Copies the entries of all corners into `corners` "8 B*units"."""
    units = SIZE(len(words))
    for i in range(SIZE(m)):
        for corner in range(SIZE(8)):
            for u in range(units):
                corners[corner, i * units + u] = table[SIZE(rows[corner, i]), u]


@_jit
def _interpolate(corners, w, count, result):
    """Trilinear interpolation of `count` numbers."""
    for i in range(count):
        a = corners[0, i] + w[0, i] * (corners[1, i] - corners[0, i])
        b = corners[2, i] + w[0, i] * (corners[3, i] - corners[2, i])
        c = corners[4, i] + w[0, i] * (corners[5, i] - corners[4, i])
        d = corners[6, i] + w[0, i] * (corners[7, i] - corners[6, i])
        a, c = a + w[1, i] * (b - a), c + w[1, i] * (d - c)
        result[i] = a + w[2, i] * (c - a)


@_jit
def _differences(corners, w, g, count, along):
    """Derivatives "3 B*F" of the interpolation in its three weights, times the gradient g."""
    for i in range(count):
        x0, x1 = corners[1, i] - corners[0, i], corners[3, i] - corners[2, i]
        x2, x3 = corners[5, i] - corners[4, i], corners[7, i] - corners[6, i]
        a, b = corners[0, i] + w[0, i] * x0, corners[2, i] + w[0, i] * x1
        c, d = corners[4, i] + w[0, i] * x2, corners[6, i] + w[0, i] * x3
        lower, upper = x0 + w[1, i] * (x1 - x0), x2 + w[1, i] * (x3 - x2)
        along[0, i] = g[i] * (lower + w[2, i] * (upper - lower))
        along[1, i] = g[i] * ((b - a) + w[2, i] * ((d - c) - (b - a)))
        along[2, i] = g[i] * ((c + w[1, i] * (d - c)) - (a + w[1, i] * (b - a)))


@_jit
def _accumulate(along, slope, m, features, total):
    """Adds to `total` "3 B" the sum over features, times the slope of the weight."""
    for axis in range(3):
        for i in range(m):
            s = F32(0)
            for f in range(len(features)):
                s += along[axis, i * len(features) + f]
            total[axis, i] += s * slope[axis, i]


@_jit
def _distribute(g, w, count, corners):
    """Shares "8 B*F" of the gradient g of `count` numbers: g times each corner's weight."""
    for i in range(count):
        upper = g[i] * w[2, i]
        for z, part in enumerate((g[i] - upper, upper)):
            far = part * w[1, i]
            for y, piece in enumerate((part - far, far)):
                corners[4 * z + 2 * y + 1, i] = piece * w[0, i]
                corners[4 * z + 2 * y, i] = piece - piece * w[0, i]


@_jit
def _scatter_add(corners, rows, m, features, table):
    """Adds `corners` "8 B*F" to the rows of `table` "E*F"."""
    width = SIZE(len(features))
    for i in range(SIZE(m)):
        for corner in range(SIZE(8)):
            row = SIZE(rows[corner, i]) * width
            for f in range(width):
                table[row + f] += corners[corner, i * width + f]


@_jit
def _load(grad, first, stride, m, words, g):
    """Copies rows first, first + stride, ... of `grad` "n*L units" into g."""
    units = SIZE(len(words))
    for i in range(SIZE(m)):
        for u in range(units):
            g[i * units + u] = grad[SIZE(first) + i * SIZE(stride), u]


@_jit
def _store(result, m, words, out, first, stride):
    """Copies m results to rows first, first + stride, ... of `out` "n*L units"."""
    units = SIZE(len(words))
    for i in range(SIZE(m)):
        for u in range(units):
            out[SIZE(first) + i * SIZE(stride), u] = result[i * units + u]
