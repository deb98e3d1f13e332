"""Spreading onto a Fourier grid, compiled for CPUs by numba: the fast form of `Grid.spread`, to rounding the same sums."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

from instamap.fit.gridding import MARGIN, STEPS, WIDTH, Grid, taps

LANES = 16  # three numbers for each of five cells, and one idle
_U = np.uintp  # unsigned indices: numba would test signed ones for counting from the end
_REACH = np.float32(MARGIN + 1 - 0.5 * WIDTH)


@intrinsic
def _add_row(typing, cells, at, row, factor):
    """cells[at : at + LANES] += factor * row, as one vector operation; numba by itself leaves loops this short scalar."""

    def generate(context, builder, signature, arguments):
        vector = ir.VectorType(ir.FloatType(), LANES)
        array = lambda i: context.make_array(signature.args[i])(context, builder, arguments[i]).data
        target = builder.bitcast(builder.gep(array(0), [arguments[1]]), vector.as_pointer())
        source = builder.bitcast(array(2), vector.as_pointer())
        nothing = ir.Constant(vector, ir.Undefined)
        first = builder.insert_element(nothing, arguments[3], ir.Constant(ir.IntType(32), 0))
        factors = builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))
        added = builder.fmul(builder.load(source, align=4), factors, flags=["fast"])
        builder.store(builder.fadd(builder.load(target, align=4), added, flags=["fast"]), target, align=4)
        return context.get_dummy_value()

    return types.void(cells, at, row, factor), generate


@njit(fastmath=True, nogil=True, error_model="numpy", cache=True)
def _spread(cells, edge, width, half, table, frames, plane, data, power, low, high):
    """Add all points to the planes low ≤ z < high of the flat `cells`; threads own disjoint planes, so there is no race."""
    wx, wy, wz = np.empty(WIDTH, np.float32), np.empty(WIDTH, np.float32), np.empty(WIDTH, np.float32)
    row, steps, sheet = np.zeros(LANES, np.float32), np.float32(STEPS), np.float32(half) + _REACH
    for view in range(frames.shape[0]):
        ax, ay, az = frames[view, 0]
        bx, by, bz = frames[view, 1]
        for p in range(plane.shape[0]):
            kx, ky = plane[p]
            x = kx * ax + ky * bx
            sign = np.float32(-1.0) if x < 0 else np.float32(1.0)
            z = (kx * az + ky * bz) * sign + sheet
            cz = int(z)
            if cz + WIDTH <= low or cz >= high:
                continue
            x, y = x * sign + _REACH, (kx * ay + ky * by) * sign + sheet
            cx, cy = int(x), int(y)
            tx, ty, tz = (x - np.float32(cx)) * steps, (y - np.float32(cy)) * steps, (z - np.float32(cz)) * steps
            ix, iy, iz = _U(tx), _U(ty), _U(tz)
            tx, ty, tz = tx - np.float32(ix), ty - np.float32(iy), tz - np.float32(iz)
            real, imaginary, square = data[view, p].real, data[view, p].imag * sign, power[view, p]
            for j in range(_U(WIDTH)):
                wx[j] = table[ix, j] + tx * (table[ix + _U(1), j] - table[ix, j])
                wy[j] = table[iy, j] + ty * (table[iy + _U(1), j] - table[iy, j])
                wz[j] = table[iz, j] + tz * (table[iz + _U(1), j] - table[iz, j])
                row[_U(3) * j], row[_U(3) * j + _U(1)], row[_U(3) * j + _U(2)] = wx[j] * real, wx[j] * imaginary, wx[j] * square
            for k in range(max(cz, low), min(cz + WIDTH, high)):
                at = _U(((k * edge + cy) * width + cx) * 3)
                for j in range(_U(WIDTH)):
                    _add_row(cells, at + j * _U(width * 3), row, wz[_U(k - cz)] * wy[j])


def spread(grid: Grid, frames: Tensor, plane: Tensor, data: Tensor, power: Tensor) -> None:
    """As `Grid.spread`, for a float32 grid on a CPU, with as many threads as torch uses; the number of threads changes no bit.

    Threads of Python's own rather than numba's parallel loops: those break after a fork, or when two threads start them.
    """
    edge, width = grid.cells.shape[1:3]
    count = torch.get_num_threads()
    scaled = (frames * (grid.size / grid.box)).float().contiguous().numpy()
    fixed = (grid.cells.view(-1).numpy(), edge, width, grid.size // 2, taps().float().numpy(), scaled, plane.float().contiguous().numpy(),
             data.to(torch.complex64).contiguous().numpy(), power.float().contiguous().numpy())  # fmt: skip
    bounds = _shares(grid, frames, plane, count)
    if count == 1:
        _spread(*fixed, *bounds)
        return
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda i: _spread(*fixed, bounds[i], bounds[i + 1]), range(count)))


def _shares(grid: Grid, frames: Tensor, plane: Tensor, count: int) -> list[int]:
    """Limits of `count` stacks of z-planes that get about equally many points, judged by every 29th point."""
    edge = grid.cells.shape[0]
    at, _ = grid.first_cells(frames, plane[::29])
    middle = at[..., 2].flatten().double().sort().values + 0.5 * WIDTH
    inner = [int(middle[len(middle) * i // count]) for i in range(1, count)]
    return [0, *inner, edge]
