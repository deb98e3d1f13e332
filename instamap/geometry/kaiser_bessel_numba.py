"""Where one point lies on the Fourier grid and its weights there, compiled: `kaiser_bessel.first_cells` and `footprint` for inner loops."""

import numpy as np
from numba import njit

from instamap.geometry.kaiser_bessel import MARGIN, STEPS, WIDTH

REACH = np.float32(MARGIN + 1 - 0.5 * WIDTH)
_U = np.uintp  # unsigned indices: numba would test signed ones for counting from the end
_STEPS = np.float32(STEPS)


@njit(fastmath=True, nogil=True, error_model="numpy", inline="always")
def locate(frame, k, sheet):
    """Coordinates of the point k of the plane `frame`, and its sign; sheet: M/2 + REACH."""
    x, y, z = k[0] * frame[0, 0] + k[1] * frame[1, 0], k[0] * frame[0, 1] + k[1] * frame[1, 1], k[0] * frame[0, 2] + k[1] * frame[1, 2]
    if x < 0:
        return REACH - x, sheet - y, sheet - z, np.float32(-1.0)
    return REACH + x, sheet + y, sheet + z, np.float32(1.0)


@njit(fastmath=True, nogil=True, error_model="numpy", inline="always")
def weigh(table, at, cell, weights):
    """Writes the weights of the cells that a coordinate reaches along one axis; cell: its whole part."""
    step = (at - np.float32(cell)) * _STEPS
    low = _U(step)
    step -= np.float32(low)
    for j in range(_U(WIDTH)):
        weights[j] = table[low, j] + step * (table[low + _U(1), j] - table[low, j])
