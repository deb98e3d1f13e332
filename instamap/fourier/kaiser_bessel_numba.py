"""Where one point lies on the Fourier grid and its weights there, compiled:
`kaiser_bessel.first_cells` and `footprint` for inner loops.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from instamap.fourier.kaiser_bessel import MARGIN, STEPS, WIDTH
from instamap.geometry.compiled import jit

REACH = np.float32(MARGIN + 1 - 0.5 * WIDTH)
LANES = 16  # numbers that one vector operation adds
_U = np.uintp  # unsigned indices: numba would test signed ones for counting from the end
_STEPS = np.float32(STEPS)


@jit(fastmath=True, inline="always")
def locate(frame, k, sheet):
    """Coordinates of the point k of the plane `frame`, and its sign; sheet: M/2 + REACH."""
    x = k[0] * frame[0, 0] + k[1] * frame[1, 0]
    y = k[0] * frame[0, 1] + k[1] * frame[1, 1]
    z = k[0] * frame[0, 2] + k[1] * frame[1, 2]
    if x < 0:
        return REACH - x, sheet - y, sheet - z, np.float32(-1.0)
    return REACH + x, sheet + y, sheet + z, np.float32(1.0)


@jit(fastmath=True, inline="always")
def weigh(table, at, cell, weights):
    """Writes the weights of the cells that a coordinate reaches along one axis; cell: its whole
    part.
    """
    step = (at - np.float32(cell)) * _STEPS
    low = _U(step)
    step -= np.float32(low)
    for j in range(_U(WIDTH)):
        weights[j] = table[low, j] + step * (table[low + _U(1), j] - table[low, j])


@intrinsic
def add_row(typing, target, to, source, start, factor):
    """target[to : to + LANES] += factor * source[start : start + LANES] of flat arrays, as one
    vector operation, unchecked.

    numba by itself leaves loops this short scalar.
    """

    def generate(context, builder, signature, arguments):
        vector = ir.VectorType(ir.FloatType(), LANES)

        def at(i):
            return builder.gep(
                context.make_array(signature.args[i])(context, builder, arguments[i]).data,
                [arguments[i + 1]],
            )

        there, here = (builder.bitcast(at(i), vector.as_pointer()) for i in (0, 2))
        nothing = ir.Constant(vector, ir.Undefined)
        first = builder.insert_element(nothing, arguments[4], ir.Constant(ir.IntType(32), 0))
        factors = builder.shuffle_vector(
            first, nothing, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        )
        added = builder.fmul(builder.load(here, align=4), factors, flags=["fast"])
        builder.store(
            builder.fadd(builder.load(there, align=4), added, flags=["fast"]), there, align=4
        )
        return context.get_dummy_value()

    return types.void(target, to, source, start, factor), generate
