"""Spreading onto a Fourier grid, compiled for CPUs by numba: the fast form of `Grid.spread`, to
rounding the same sums.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from instamap.fourier.gridding import Grid
from instamap.fourier.kaiser_bessel import WIDTH
from instamap.fourier.kaiser_bessel_numba import (
    LANES,
    REACH,
    WEIGHTS,
    add_row,
    axis_weights,
    locate,
    weight_table,
    write_row,
)
from instamap.geometry.compiled import jit
from instamap.threads import in_threads

# Planes and rows of one tile; what its points touch fits into a cache of 256 kB up to boxes of
# about 100.
TILE = 8
ROW = 7  # numbers that are kept of a point
SAMPLED = 29  # one point in so many tells how many reach each plane
_U = np.uintp  # unsigned indices: numba would test signed ones for counting from the end


@jit()  # without fastmath: both passes must find each point in the same tile, to the last bit
def _count(
    edge: int,
    half: int,
    frames: np.ndarray,
    plane: np.ndarray,
    low: int,
    high: int,
) -> np.ndarray:
    """Where each tile begins among the points that reach planes low ≤ z < high, tile by tile; at
    the end how many these are.
    """
    sheet = np.float32(half) + REACH
    across = edge // TILE + 1
    tiles = across * across
    begin = np.zeros(tiles + 1, np.int64)
    for view in range(frames.shape[0]):
        frame = frames[view]
        for p in range(plane.shape[0]):
            position = plane[p]
            x, y, z, sign = locate(frame, position, sheet)
            cy = int(y)
            cz = int(z)
            if cz + WIDTH > low and cz < high:
                sheet_tile = cz // TILE
                tile = sheet_tile * across + cy // TILE
                begin[_U(tile + 1)] += 1
    return np.cumsum(begin)


@jit()
def _sort(
    edge: int,
    half: int,
    frames: np.ndarray,
    plane: np.ndarray,
    data: np.ndarray,
    power: np.ndarray,
    low: int,
    high: int,
    begin: np.ndarray,
    points: np.ndarray,
) -> None:
    """Writes the points that reach planes low ≤ z < high as rows (x, y, z, three values, the number
    of the view), tile by tile; in a tile in their own order.
    """
    sheet = np.float32(half) + REACH
    across = edge // TILE + 1
    for view in range(frames.shape[0]):
        frame = frames[view]
        for p in range(plane.shape[0]):
            position = plane[p]
            x, y, z, sign = locate(frame, position, sheet)
            cy = int(y)
            cz = int(z)
            if cz + WIDTH > low and cz < high:
                sheet_tile = cz // TILE
                tile = _U(sheet_tile * across + cy // TILE)
                point = points[_U(begin[tile])]
                begin[tile] += 1
                value = data[view, p]
                point[0] = x
                point[1] = y
                point[2] = z
                point[3] = value.real
                point[4] = value.imag * sign
                point[5] = power[view, p]
                point[6] = view


@jit(fastmath=True)
def _add_points(
    cells: np.ndarray,
    edge: int,
    width: int,
    table: np.ndarray,
    points: np.ndarray,
    low: int,
    high: int,
) -> None:
    """Spread points onto the planes low ≤ z < high of the flat `cells`."""
    wx = np.empty(WEIGHTS, np.float32)
    wy = np.empty(WEIGHTS, np.float32)
    wz = np.empty(WEIGHTS, np.float32)
    row = np.zeros(LANES, np.float32)  # three numbers for each of five cells, and one idle
    line = _U(width * 3)
    for p in range(_U(points.shape[0])):
        x = points[p, 0]
        y = points[p, 1]
        z = points[p, 2]
        cx = int(x)
        cy = int(y)
        cz = int(z)
        axis_weights(table, x, cx, wx)
        axis_weights(table, y, cy, wy)
        axis_weights(table, z, cz, wz)
        write_row(row, wx, points[p, 3], points[p, 4], points[p, 5])
        first = max(cz, low)
        last = min(cz + WIDTH, high)
        for k in range(first, last):
            sheet_line = k * edge + cy
            cell = sheet_line * width + cx
            start = _U(cell * 3)
            weight_z = wz[_U(k - cz)]
            for j in range(_U(WIDTH)):
                at = start + j * line
                weight = weight_z * wy[j]
                add_row(cells, at, row, _U(0), weight)


@jit(fastmath=True)
def _add_weighted(
    cells: np.ndarray,
    edge: int,
    width: int,
    table: np.ndarray,
    points: np.ndarray,
    data_weights: np.ndarray,
    power_weights: np.ndarray,
    low: int,
    high: int,
) -> None:
    """Spread points onto the planes low ≤ z < high of the flat `cells` in all sums, where they have
    weights of their views.

    Idle lanes add zeros to the next row at most.
    """
    wx = np.empty(WEIGHTS, np.float32)
    wy = np.empty(WEIGHTS, np.float32)
    wz = np.empty(WEIGHTS, np.float32)
    of_data = _U(data_weights.shape[1])
    of_power = _U(power_weights.shape[1])
    channels = _U(2) * of_data + of_power
    vectors = (_U(WIDTH) * channels + _U(LANES - 1)) // _U(LANES)
    row = np.zeros(vectors * _U(LANES), np.float32)
    values = np.zeros(channels, np.float32)
    line = _U(width) * channels
    for p in range(_U(points.shape[0])):
        x = points[p, 0]
        y = points[p, 1]
        z = points[p, 2]
        view = _U(points[p, 6])
        for number in range(of_data):
            weight = data_weights[view, number]
            values[_U(2) * number] = weight * points[p, 3]
            values[_U(2) * number + _U(1)] = weight * points[p, 4]
        for number in range(of_power):
            values[_U(2) * of_data + number] = power_weights[view, number] * points[p, 5]
        cx = int(x)
        cy = int(y)
        cz = int(z)
        axis_weights(table, x, cx, wx)
        axis_weights(table, y, cy, wy)
        axis_weights(table, z, cz, wz)
        for j in range(_U(WIDTH)):
            place = j * channels
            for channel in range(channels):
                row[place + channel] = wx[j] * values[channel]
        first = max(cz, low)
        last = min(cz + WIDTH, high)
        for k in range(first, last):
            sheet_line = k * edge + cy
            cell = sheet_line * width + cx
            start = _U(cell) * channels
            weight_z = wz[_U(k - cz)]
            for j in range(_U(WIDTH)):
                at = start + j * line
                weight = weight_z * wy[j]
                for vector in range(vectors):
                    offset = vector * _U(LANES)
                    add_row(cells, at + offset, row, offset, weight)


def spread(
    grid: Grid,
    frames: Tensor,
    plane: Tensor,
    data: Tensor,
    power: Tensor,
) -> None:
    """Spreads like `Grid.spread`, for a float32 grid on a CPU, by as many threads as torch uses.

    The number of threads changes no bit. Points are sorted into tiles first, so that the cells they
    reach are in the cache, which slices at random poses miss everywhere. Each thread owns a stack
    of planes and skips points that do not reach it.
    """
    edge, width = grid.cells.shape[1:3]
    cells = grid.cells.view(-1).numpy()
    table = weight_table()

    def add(points: np.ndarray, low: int, high: int) -> None:
        _add_points(cells, edge, width, table, points, low, high)

    _in_stacks(grid, frames, plane, data, power, add)


def spread_weighted(
    grid: Grid,
    frames: Tensor,
    plane: Tensor,
    data: Tensor,
    power: Tensor,
    data_weights: Tensor,
    power_weights: Tensor,
) -> None:
    """Adds slices to each sum of a grid, with weights of its own: those of the data's "V A", and of
    the power's "V B".

    Each point's cells and their factors are found once for all sums, each of which has the bits
    that `spread` would give it alone. Slices are 2^24 at most, up to where float32 counts them.
    """
    edge, width = grid.cells.shape[1:3]
    cells = grid.cells.view(-1).numpy()
    table = weight_table()
    of_data = _array(data_weights, torch.float32)
    of_power = _array(power_weights, torch.float32)

    def add(points: np.ndarray, low: int, high: int) -> None:
        _add_weighted(cells, edge, width, table, points, of_data, of_power, low, high)

    _in_stacks(grid, frames, plane, data, power, add)


def _in_stacks(
    grid: Grid,
    frames: Tensor,
    plane: Tensor,
    data: Tensor,
    power: Tensor,
    add: Callable[[np.ndarray, int, int], None],
) -> None:
    """Calls add(points, low, high) with the sorted points of each stack of planes, in threads."""
    edge = grid.cells.shape[1]
    half = grid.size // 2
    scaled = frames * grid.cells_per_component
    axes = _array(scaled, torch.float32)
    positions = _array(plane, torch.float32)
    values = _array(data, torch.complex64)
    powers = _array(power, torch.float32)

    def work(low: int, high: int) -> None:
        begin = _count(edge, half, axes, positions, low, high)
        points = torch.empty(int(begin[-1]), ROW).numpy()  # in torch's memory, of larger pages
        _sort(edge, half, axes, positions, values, powers, low, high, begin, points)
        add(points, low, high)

    bounds = _shares(grid, frames, plane, torch.get_num_threads())
    in_threads(work, bounds)


def _array(tensor: Tensor, dtype: torch.dtype) -> np.ndarray:
    """The tensor's numbers, rows one after the other."""
    return tensor.to(dtype).contiguous().numpy()


def _shares(
    grid: Grid,
    frames: Tensor,
    plane: Tensor,
    count: int,
) -> list[int]:
    """Limits of `count` stacks of planes that about equally many points reach, judged by every
    SAMPLED-th point.
    """
    sample = plane[::SAMPLED]
    at, _ = grid.first_cells(frames, sample)
    first = at[..., 2].flatten().sort().values
    middle = first + 0.5 * WIDTH
    bounds = [0]
    for i in range(1, count):
        quantile = len(middle) * i // count
        bounds.append(int(middle[quantile]))
    bounds.append(grid.cells.shape[0])
    return bounds
