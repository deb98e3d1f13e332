"""Looking slices up in a Fourier grid and adding them to one, compiled for CPUs: `central_slices`
in float32.
"""

import numpy as np
import torch
from torch import Tensor

from instamap.fourier.kaiser_bessel import WIDTH
from instamap.fourier.kaiser_bessel_numba import (
    LANES,
    REACH,
    WEIGHTS,
    add_row,
    axis_weights,
    locate,
    sum_rows,
    weight_table,
)
from instamap.geometry.compiled import jit
from instamap.threads import in_threads, shares

_U = np.uintp  # unsigned indices: numba would test signed ones for counting from the end


@jit(fastmath=True)
def _gather(
    cells: np.ndarray,
    edge: int,
    width: int,
    table: np.ndarray,
    frames: np.ndarray,
    plane: np.ndarray,
    sheet: float,
    out: np.ndarray,
) -> None:
    """Writes the values "V P 2" of `out`.

    cells: flat, real and imaginary in turn. The numbers of WIDTH cells come in rows of LANES; the
    last are idle.
    """
    wx = np.empty(WEIGHTS, np.float32)
    wy = np.empty(WEIGHTS, np.float32)
    wz = np.empty(WEIGHTS, np.float32)
    row = np.empty(LANES, np.float32)
    for view in range(frames.shape[0]):
        frame = frames[view]
        for p in range(plane.shape[0]):
            position = plane[p]
            x, y, z, sign = locate(frame, position, sheet)
            cx = int(x)
            cy = int(y)
            cz = int(z)
            axis_weights(table, x, cx, wx)
            axis_weights(table, y, cy, wy)
            axis_weights(table, z, cz, wz)
            row[:] = 0
            for k in range(_U(WIDTH)):
                sheet_line = (_U(cz) + k) * edge + _U(cy)
                for j in range(_U(WIDTH)):
                    line = sheet_line + j
                    cell = line * width + _U(cx)
                    at = cell * _U(2)
                    weight = wz[k] * wy[j]
                    add_row(row, _U(0), cells, at, weight)
            real = np.float32(0)
            imaginary = np.float32(0)
            for i in range(_U(WIDTH)):
                weight = wx[i]
                even = _U(2) * i
                odd = even + _U(1)
                real += weight * row[even]
                imaginary += weight * row[odd]
            out[view, p, 0] = real
            out[view, p, 1] = imaginary * sign


@jit(fastmath=True)
def _gather_many(
    cells: np.ndarray,
    edge: int,
    width: int,
    maps: int,
    table: np.ndarray,
    frames: np.ndarray,
    plane: np.ndarray,
    sheet: float,
    out: np.ndarray,
) -> None:
    """Writes the values "V C P 2" of `out`, of so many `maps` whose numbers lie side by side in
    each cell.
    """
    wx = np.empty(WEIGHTS, np.float32)
    wy = np.empty(WEIGHTS, np.float32)
    wz = np.empty(WEIGHTS, np.float32)
    factors = np.empty(WIDTH * WIDTH, np.float32)
    numbers = _U(2) * maps
    vectors = (_U(WIDTH) * numbers + _U(LANES - 1)) // _U(LANES)
    row = np.empty(vectors * _U(LANES), np.float32)
    value = np.empty(numbers, np.float32)
    line = width * numbers
    sheet_line = edge * line
    for view in range(frames.shape[0]):
        frame = frames[view]
        for p in range(plane.shape[0]):
            position = plane[p]
            x, y, z, sign = locate(frame, position, sheet)
            cx = int(x)
            cy = int(y)
            cz = int(z)
            axis_weights(table, x, cx, wx)
            axis_weights(table, y, cy, wy)
            axis_weights(table, z, cz, wz)
            for k in range(_U(WIDTH)):
                for j in range(_U(WIDTH)):
                    factors[k * _U(WIDTH) + j] = wz[k] * wy[j]
            start = _U(cz) * sheet_line + _U(cy) * line + _U(cx) * numbers
            for vector in range(vectors):
                offset = vector * _U(LANES)
                sum_rows(row, offset, cells, start + offset, sheet_line, line, factors)
            value[:] = 0
            for i in range(_U(WIDTH)):
                place = i * numbers
                for number in range(numbers):
                    value[number] += wx[i] * row[place + number]
            for number in range(maps):
                even = _U(2) * number
                out[view, number, p, 0] = value[even]
                out[view, number, p, 1] = value[even + _U(1)] * sign


@jit(fastmath=True)
def _scatter(
    cells: np.ndarray,
    edge: int,
    width: int,
    table: np.ndarray,
    frames: np.ndarray,
    plane: np.ndarray,
    sheet: float,
    values: np.ndarray,
    low: int,
    high: int,
) -> None:
    """Adds to planes low ≤ z < high alone. Idle lanes add zeros: to the next row at most, not to
    another plane, whose corner is empty.
    """
    wx = np.empty(WEIGHTS, np.float32)
    wy = np.empty(WEIGHTS, np.float32)
    wz = np.empty(WEIGHTS, np.float32)
    row = np.zeros(LANES, np.float32)
    for view in range(frames.shape[0]):
        frame = frames[view]
        for p in range(plane.shape[0]):
            position = plane[p]
            x, y, z, sign = locate(frame, position, sheet)
            cx = int(x)
            cy = int(y)
            cz = int(z)
            if cz + WIDTH <= low or cz >= high:
                continue
            axis_weights(table, x, cx, wx)
            axis_weights(table, y, cy, wy)
            axis_weights(table, z, cz, wz)
            real = values[view, p, 0]
            imaginary = values[view, p, 1]
            for i in range(_U(WIDTH)):
                weight = wx[i]
                even = _U(2) * i
                odd = even + _U(1)
                row[even] = weight * real
                row[odd] = weight * imaginary * sign
            first = max(cz, low)
            last = min(cz + WIDTH, high)
            for k in range(first, last):
                sheet_line = _U(k) * edge + _U(cy)
                weight_z = wz[_U(k - cz)]
                for j in range(_U(WIDTH)):
                    line = sheet_line + j
                    cell = line * width + _U(cx)
                    at = _U(cell * _U(2))
                    weight = weight_z * wy[j]
                    add_row(cells, at, row, _U(0), weight)


def gather(
    grid: Tensor,
    frames: Tensor,
    plane: Tensor,
    half: int,
) -> Tensor:
    """Values "V P" (complex64) of the cells "Z Y X 2"; views are shared out among as many threads
    as torch uses.
    """
    flat = grid.detach().contiguous().view(-1)
    cells = flat.numpy()
    axes = _array(frames)
    points = _array(plane)
    table = weight_table()
    sheet = np.float32(half) + REACH
    edge = np.uintp(grid.shape[1])
    width = np.uintp(grid.shape[2])
    views = len(frames)
    values = torch.empty(views, len(plane), 2)
    out = values.numpy()

    def work(start: int, stop: int) -> None:
        _gather(
            cells,
            edge,
            width,
            table,
            axes[start:stop],
            points,
            sheet,
            out[start:stop],
        )

    in_threads(work, shares(views))
    return torch.view_as_complex(values)


def gather_many(
    cells: Tensor,
    frames: Tensor,
    plane: Tensor,
    half: int,
) -> Tensor:
    """Values "V C P" (complex64) of the cells "Z Y X C 2" of C maps, with the bits that `gather`
    gives: each point's cells and their factors are found once for all maps.
    """
    flat = cells.view(-1).numpy()
    axes = _array(frames)
    points = _array(plane)
    table = weight_table()
    sheet = np.float32(half) + REACH
    edge, width, maps = (np.uintp(number) for number in cells.shape[1:4])
    values = torch.empty(len(frames), cells.shape[3], len(plane), 2)
    out = values.numpy()

    def work(start: int, stop: int) -> None:
        _gather_many(
            flat,
            edge,
            width,
            maps,
            table,
            axes[start:stop],
            points,
            sheet,
            out[start:stop],
        )

    in_threads(work, shares(len(frames)))
    return torch.view_as_complex(values)


def scatter(
    grid: Tensor,
    frames: Tensor,
    plane: Tensor,
    values: Tensor,
    half: int,
) -> None:
    """Adds complex `values` "V P" to the cells "Z Y X 2", in place. Each thread owns a stack of
    planes: their number changes no bit.
    """
    cells = grid.view(-1).numpy()
    axes = _array(frames)
    points = _array(plane)
    single = values.detach().to(torch.complex64)
    pairs = torch.view_as_real(single.resolve_conj().contiguous()).numpy()
    table = weight_table()
    sheet = np.float32(half) + REACH
    edge = np.uintp(grid.shape[1])
    width = np.uintp(grid.shape[2])

    def work(low: int, high: int) -> None:
        _scatter(
            cells,
            edge,
            width,
            table,
            axes,
            points,
            sheet,
            pairs,
            low,
            high,
        )

    count = torch.get_num_threads()
    planes = len(grid)
    bounds = [round(planes * i / count) for i in range(count + 1)]
    in_threads(work, bounds)


def _array(tensor: Tensor) -> np.ndarray:
    """The tensor's numbers in float32, rows one after the other."""
    return tensor.detach().float().contiguous().numpy()
