"""Spreading onto a Fourier grid, compiled for CPUs by numba: the fast form of `Grid.spread`, to
rounding the same sums.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from instamap.fourier.gridding import Grid
from instamap.fourier.kaiser_bessel import WIDTH, taps
from instamap.fourier.kaiser_bessel_numba import LANES, REACH, add_row, locate, weigh
from instamap.geometry.compiled import jit

# planes and rows of one tile; what its points touch fits into a cache of 256 kB up to boxes of
# about 100
TILE = 8
_U = np.uintp  # unsigned indices: numba would test signed ones for counting from the end


@jit(fastmath=True)
def _sort(edge, half, frames, plane, data, power, low, high):
    """The points that reach planes low ≤ z < high as rows (x, y, z, three values), tile by tile; in
    a tile in their own order.
    """
    sheet = np.float32(half) + REACH
    across = edge // TILE + 1
    begin = np.zeros(across * across + 1, np.int64)
    for view in range(frames.shape[0]):
        for p in range(plane.shape[0]):
            x, y, z, sign = locate(frames[view], plane[p], sheet)
            if int(z) + WIDTH > low and int(z) < high:
                begin[_U((int(z) // TILE) * across + int(y) // TILE + 1)] += 1
    begin = np.cumsum(begin)
    points = np.empty((begin[-1], 6), np.float32)
    for view in range(frames.shape[0]):
        for p in range(plane.shape[0]):
            x, y, z, sign = locate(frames[view], plane[p], sheet)
            if int(z) + WIDTH > low and int(z) < high:
                tile = _U((int(z) // TILE) * across + int(y) // TILE)
                point = points[_U(begin[tile])]
                begin[tile] += 1
                point[0], point[1], point[2] = x, y, z
                point[3], point[4], point[5] = (
                    data[view, p].real,
                    data[view, p].imag * sign,
                    power[view, p],
                )
    return points


@jit(fastmath=True)
def _add_points(cells, edge, width, table, points, low, high):
    """Spread points onto the planes low ≤ z < high of the flat `cells`."""
    wx = np.empty(WIDTH, np.float32)
    wy = np.empty(WIDTH, np.float32)
    wz = np.empty(WIDTH, np.float32)
    row = np.zeros(LANES, np.float32)  # three numbers for each of five cells, and one idle
    for p in range(_U(points.shape[0])):
        x = points[p, 0]
        y = points[p, 1]
        z = points[p, 2]
        real = points[p, 3]
        imaginary = points[p, 4]
        square = points[p, 5]
        cx = int(x)
        cy = int(y)
        cz = int(z)
        weigh(table, x, cx, wx)
        weigh(table, y, cy, wy)
        weigh(table, z, cz, wz)
        for j in range(_U(WIDTH)):
            row[_U(3) * j], row[_U(3) * j + _U(1)], row[_U(3) * j + _U(2)] = (
                wx[j] * real,
                wx[j] * imaginary,
                wx[j] * square,
            )
        for k in range(max(cz, low), min(cz + WIDTH, high)):
            at = _U(((k * edge + cy) * width + cx) * 3)
            for j in range(_U(WIDTH)):
                add_row(cells, at + j * _U(width * 3), row, _U(0), wz[_U(k - cz)] * wy[j])


def spread(grid: Grid, frames: Tensor, plane: Tensor, data: Tensor, power: Tensor) -> None:
    """As `Grid.spread`, for a float32 grid on a CPU, with as many threads as torch uses; the number
    of threads changes no bit.

    Points are sorted into tiles first, so that the cells they reach are in the cache, which slices
    at random poses miss everywhere. Each thread owns a stack of planes and skips points that do not
    reach it. They are Python's own threads and not numba's parallel loops, which break after a fork
    or when two threads start them.
    """

    def array(t, dtype):
        return t.to(dtype).contiguous().numpy()

    scaled = array(frames * (grid.size / grid.box), torch.float32)
    lists = (
        scaled,
        array(plane, torch.float32),
        array(data, torch.complex64),
        array(power, torch.float32),
    )
    (edge, width), cells, table = (
        grid.cells.shape[1:3],
        grid.cells.view(-1).numpy(),
        array(taps(), torch.float32),
    )

    def work(low: int, high: int) -> None:
        points = _sort(edge, grid.size // 2, *lists, low, high)
        _add_points(cells, edge, width, table, points, low, high)

    bounds = _shares(grid, frames, plane, torch.get_num_threads())
    if len(bounds) == 2:
        work(*bounds)
        return
    with ThreadPoolExecutor(len(bounds) - 1) as pool:
        list(pool.map(work, bounds[:-1], bounds[1:]))


def _shares(grid: Grid, frames: Tensor, plane: Tensor, count: int) -> list[int]:
    """Limits of `count` stacks of planes that about equally many points reach, judged by every 29th
    point.
    """
    at, _ = grid.first_cells(frames, plane[::29])
    middle = at[..., 2].flatten().sort().values + 0.5 * WIDTH
    return [
        0,
        *(int(middle[len(middle) * i // count]) for i in range(1, count)),
        grid.cells.shape[0],
    ]
