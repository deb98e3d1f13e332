"""Looking slices up in a Fourier grid and adding them to one, compiled for CPUs: `central_slices`
in float32.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from instamap.fourier.kaiser_bessel import WIDTH, taps
from instamap.fourier.kaiser_bessel_numba import LANES, REACH, add_row, locate, weigh
from instamap.geometry.compiled import jit

_U = np.uintp  # unsigned indices: numba would test signed ones for counting from the end


@jit(fastmath=True)
def _gather(cells, edge, width, table, frames, plane, sheet, out):
    """cells: flat, real and imaginary in turn; out "V P 2". The numbers of WIDTH cells come in rows
    of LANES; the last are idle.
    """
    wx = np.empty(WIDTH, np.float32)
    wy = np.empty(WIDTH, np.float32)
    wz = np.empty(WIDTH, np.float32)
    row = np.empty(LANES, np.float32)
    for view in range(frames.shape[0]):
        for p in range(plane.shape[0]):
            x, y, z, sign = locate(frames[view], plane[p], sheet)
            cx = int(x)
            cy = int(y)
            cz = int(z)
            weigh(table, x, cx, wx)
            weigh(table, y, cy, wy)
            weigh(table, z, cz, wz)
            row[:] = 0
            for k in range(_U(WIDTH)):
                for j in range(_U(WIDTH)):
                    at = (((_U(cz) + k) * edge + _U(cy) + j) * width + _U(cx)) * _U(2)
                    add_row(row, _U(0), cells, at, wz[k] * wy[j])
            real = np.float32(0)
            imaginary = np.float32(0)
            for i in range(_U(WIDTH)):
                real += wx[i] * row[_U(2) * i]
                imaginary += wx[i] * row[_U(2) * i + _U(1)]
            out[view, p, 0] = real
            out[view, p, 1] = imaginary * sign


@jit(fastmath=True)
def _scatter(cells, edge, width, table, frames, plane, sheet, values, low, high):
    """Adds to planes low ≤ z < high alone. Idle lanes add zeros: to the next row at most, not to
    another plane, whose corner is empty.
    """
    wx = np.empty(WIDTH, np.float32)
    wy = np.empty(WIDTH, np.float32)
    wz = np.empty(WIDTH, np.float32)
    row = np.zeros(LANES, np.float32)
    for view in range(frames.shape[0]):
        for p in range(plane.shape[0]):
            x, y, z, sign = locate(frames[view], plane[p], sheet)
            cx = int(x)
            cy = int(y)
            cz = int(z)
            if cz + WIDTH <= low or cz >= high:
                continue
            weigh(table, x, cx, wx)
            weigh(table, y, cy, wy)
            weigh(table, z, cz, wz)
            for i in range(_U(WIDTH)):
                row[_U(2) * i] = wx[i] * values[view, p, 0]
                row[_U(2) * i + _U(1)] = wx[i] * values[view, p, 1] * sign
            for k in range(max(cz, low), min(cz + WIDTH, high)):
                for j in range(_U(WIDTH)):
                    at = _U(((_U(k) * edge + _U(cy) + j) * width + _U(cx)) * _U(2))
                    add_row(cells, at, row, _U(0), wz[_U(k - cz)] * wy[j])


def gather(grid: Tensor, frames: Tensor, plane: Tensor, half: int) -> Tensor:
    """Values "V P" (complex64) of the cells "Z Y X 2"; views are shared out among as many threads
    as torch uses.
    """
    cells = grid.detach().contiguous().view(-1).numpy()
    lists = _arrays(frames, plane)
    out = torch.empty(len(frames), len(plane), 2)
    shape = tuple(map(np.uintp, grid.shape[1:3]))
    table = taps().float().numpy()
    found = out.numpy()

    def work(part: slice) -> None:
        _gather(
            cells, *shape, table, lists[0][part], lists[1], np.float32(half) + REACH, found[part]
        )

    count = torch.get_num_threads()
    _together(
        work,
        [slice(len(frames) * i // count, len(frames) * (i + 1) // count) for i in range(count)],
    )
    return torch.view_as_complex(out)


def scatter(grid: Tensor, frames: Tensor, plane: Tensor, values: Tensor, half: int) -> None:
    """Adds complex `values` "V P" to the cells "Z Y X 2", in place. Each thread owns a stack of
    planes: their number changes no bit.
    """
    cells = grid.view(-1).numpy()
    lists = _arrays(frames, plane)
    given = torch.view_as_real(
        values.detach().to(torch.complex64).resolve_conj().contiguous()
    ).numpy()
    shape = tuple(map(np.uintp, grid.shape[1:3]))
    table = taps().float().numpy()
    planes = len(grid)
    count = torch.get_num_threads()

    def work(part: slice) -> None:
        _scatter(
            cells, *shape, table, *lists, np.float32(half) + REACH, given, part.start, part.stop
        )

    middle = [round(planes * (0.5 + 0.5 * (2 * i / count - 1))) for i in range(count + 1)]
    _together(work, [slice(a, b) for a, b in zip(middle[:-1], middle[1:], strict=True)])


def _arrays(frames: Tensor, plane: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return frames.detach().float().contiguous().numpy(), plane.detach().float().contiguous().numpy()


def _together(work, parts: list[slice]) -> None:
    """Python's own threads: numba's break after a fork or when two threads start them."""
    if len(parts) == 1:
        work(parts[0])
        return
    with ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(work, parts))
