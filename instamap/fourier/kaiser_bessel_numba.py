"""One point's place on the Fourier grid and its weights there, compiled: `first_cells` and
`footprint` of `kaiser_bessel` for inner loops.
"""

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from instamap.fourier.kaiser_bessel import FIRST_CELL, STEPS, WIDTH, taps
from instamap.geometry.compiled import jit

REACH = np.float32(FIRST_CELL)
LANES = 16  # numbers that one vector operation adds
WEIGHTS = 8  # numbers of the weights along an axis: WIDTH of them, and zeros
BYTES = 4  # of a float32
FAST = ["fast"]  # sums may be done in any order
FUSED = ["contract"]  # a product and a sum may be one operation
_U = np.uintp  # unsigned indices: numba would test signed ones for counting from the end
_STEPS = np.float32(STEPS)


@jit(fastmath=True, inline="always")
def locate(
    frame: np.ndarray,
    k: np.ndarray,
    sheet: float,
) -> tuple[float, float, float, float]:
    """Coordinates of the point k of the plane `frame`, and its sign; sheet: M/2 + REACH."""
    first = k[0]
    second = k[1]
    x = first * frame[0, 0] + second * frame[1, 0]
    y = first * frame[0, 1] + second * frame[1, 1]
    z = first * frame[0, 2] + second * frame[1, 2]
    if x < 0:
        return (
            REACH - x,
            sheet - y,
            sheet - z,
            np.float32(-1.0),
        )
    return (
        REACH + x,
        sheet + y,
        sheet + z,
        np.float32(1.0),
    )


def weight_table() -> np.ndarray:
    """`kaiser_bessel.taps` with rows of WEIGHTS numbers, those that are added zero."""
    table = taps().float()
    return torch.nn.functional.pad(table, (0, WEIGHTS - WIDTH)).numpy()


@intrinsic
def _interpolate(
    typing: Any,
    weights: Any,
    table: Any,
    start: Any,
    share: Any,
) -> tuple[Any, Any]:
    """weights = (1 - share) · below + share · above, the rows of WEIGHTS numbers of the table from
    `start` on, as one vector operation, unchecked.
    """

    def generate(
        context: Any,
        builder: Any,
        signature: Any,
        arguments: Any,
    ) -> Any:
        vector = ir.VectorType(ir.FloatType(), WEIGHTS)

        def vector_at(i: int, place: Any) -> Any:
            data = _data(context, builder, signature, arguments, i)
            return _vector_at(builder, data, place, vector)

        start = arguments[2]
        one_row = ir.Constant(start.type, WEIGHTS)
        below = builder.load(vector_at(1, start), align=BYTES)
        above = builder.load(vector_at(1, builder.add(start, one_row)), align=BYTES)
        rise = builder.fsub(above, below, flags=FAST)
        part = builder.fmul(_repeat(builder, arguments[3], vector), rise, flags=FAST)
        between = builder.fadd(below, part, flags=FAST)
        builder.store(between, vector_at(0, ir.Constant(start.type, 0)), align=BYTES)
        return context.get_dummy_value()

    return types.void(weights, table, start, share), generate


@jit(fastmath=True, inline="always")
def axis_weights(
    table: np.ndarray,
    at: float,
    cell: int,
    weights: np.ndarray,
) -> None:
    """Writes the `weights` "WEIGHTS" of the cells that a coordinate reaches along one axis; cell:
    its whole part. table: see `weight_table`.
    """
    step = (at - np.float32(cell)) * _STEPS
    low = _U(step)
    step -= np.float32(low)
    _interpolate(weights, table, low * _U(WEIGHTS), step)


@intrinsic
def write_row(
    typing: Any,
    row: Any,
    weights: Any,
    real: Any,
    imaginary: Any,
    power: Any,
) -> tuple[Any, Any]:
    """row[3 j : 3 j + 3] = weights[j] · (real, imaginary, power) of arrays of LANES and of WEIGHTS
    numbers, as one vector operation, unchecked. The last lane, of a weight that is zero, is idle.
    """

    def generate(
        context: Any,
        builder: Any,
        signature: Any,
        arguments: Any,
    ) -> Any:
        integer = ir.IntType(32)
        indices = ir.VectorType(integer, LANES)
        single = ir.VectorType(ir.FloatType(), WEIGHTS)
        whole = ir.VectorType(ir.FloatType(), LANES)
        arrays = []
        for i, vector in ((0, whole), (1, single)):
            data = _data(context, builder, signature, arguments, i)
            arrays.append(builder.bitcast(data, vector.as_pointer()))
        there, here = arrays
        of_cells = builder.load(here, align=BYTES)
        values = ir.Constant(single, ir.Undefined)
        for place, number in enumerate(arguments[2:]):
            values = builder.insert_element(values, number, ir.Constant(integer, place))
        cell = ir.Constant(indices, [lane // 3 for lane in range(LANES)])
        value = ir.Constant(indices, [lane % 3 for lane in range(LANES)])
        product = builder.fmul(
            builder.shuffle_vector(of_cells, of_cells, cell),
            builder.shuffle_vector(values, values, value),
            flags=FAST,
        )
        builder.store(product, there, align=BYTES)
        return context.get_dummy_value()

    return types.void(row, weights, real, imaginary, power), generate


@intrinsic
def add_row(
    typing: Any,
    target: Any,
    to: Any,
    source: Any,
    start: Any,
    factor: Any,
) -> tuple[Any, Any]:
    """target[to : to + LANES] += factor * source[start : start + LANES] of flat arrays, as one
    vector operation, unchecked.

    numba by itself leaves loops this short scalar.
    """

    def generate(
        context: Any,
        builder: Any,
        signature: Any,
        arguments: Any,
    ) -> Any:
        vector = ir.VectorType(ir.FloatType(), LANES)
        pointers = []
        for i in (0, 2):  # the target and the source, each before its index
            data = _data(context, builder, signature, arguments, i)
            pointers.append(_vector_at(builder, data, arguments[i + 1], vector))
        there, here = pointers
        factors = _repeat(builder, arguments[4], vector)
        values = builder.load(here, align=BYTES)
        added = builder.fmul(values, factors, flags=FAST)
        before = builder.load(there, align=BYTES)
        after = builder.fadd(before, added, flags=FAST)
        builder.store(after, there, align=BYTES)
        return context.get_dummy_value()

    signature = types.void(
        target,
        to,
        source,
        start,
        factor,
    )
    return signature, generate


@intrinsic
def sum_rows(
    typing: Any,
    target: Any,
    to: Any,
    source: Any,
    start: Any,
    sheet: Any,
    line: Any,
    factors: Any,
) -> tuple[Any, Any]:
    """target[to : to + LANES] = Σ_kj factors[k · WIDTH + j] · source[at : at + LANES] of flat
    arrays, at = start + k · sheet + j · line, unchecked.

    The sum stays in a register; its terms are added in order, as `add_row` does.
    """

    def generate(
        context: Any,
        builder: Any,
        signature: Any,
        arguments: Any,
    ) -> Any:
        def data(i: int) -> Any:
            return _data(context, builder, signature, arguments, i)

        def vector_at(i: int, place: Any) -> Any:
            return _vector_at(builder, data(i), place, vector)

        vector = ir.VectorType(ir.FloatType(), LANES)
        total = ir.Constant(vector, [0.0] * LANES)
        first = arguments[3]
        for k in range(WIDTH):
            place = first
            for j in range(WIDTH):
                number = ir.Constant(first.type, k * WIDTH + j)
                factor = builder.load(builder.gep(data(6), [number]))
                values = builder.load(vector_at(2, place), align=BYTES)
                repeated = _repeat(builder, factor, vector)
                term = builder.fmul(values, repeated, flags=FUSED)
                total = builder.fadd(total, term, flags=FUSED)
                place = builder.add(place, arguments[5])
            first = builder.add(first, arguments[4])
        builder.store(total, vector_at(0, arguments[1]), align=BYTES)
        return context.get_dummy_value()

    signature = types.void(
        target,
        to,
        source,
        start,
        sheet,
        line,
        factors,
    )
    return signature, generate


def _data(
    context: Any,
    builder: Any,
    signature: Any,
    arguments: Any,
    i: int,
) -> Any:
    """Where the numbers of the array that is argument i begin."""
    array = context.make_array(signature.args[i])
    return array(context, builder, arguments[i]).data


def _vector_at(
    builder: Any,
    data: Any,
    place: Any,
    vector: Any,
) -> Any:
    """The vector of this type that begins at a place of flat data."""
    element = builder.gep(data, [place])
    return builder.bitcast(element, vector.as_pointer())


def _repeat(builder: Any, number: Any, vector: Any) -> Any:
    """The number in all places of a vector of this type."""
    integer = ir.IntType(32)
    nothing = ir.Constant(vector, ir.Undefined)
    zero = ir.Constant(integer, 0)
    first = builder.insert_element(nothing, number, zero)
    indices = ir.VectorType(integer, vector.count)
    everywhere = ir.Constant(indices, [0] * vector.count)
    return builder.shuffle_vector(first, nothing, everywhere)
