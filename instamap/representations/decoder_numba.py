"""The decoder of one hidden layer on CPUs: its values and gradients in one pass over the points,
compiled.

Points go through in blocks that stay in the first-level cache, in which a feature or a hidden unit
of all points lies in a row, so that loops over points are vectors. Hidden units are computed again
for the gradient. Sums over points are taken block by block and then over blocks, in one order
whatever the number of threads.
"""

import math
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from instamap.geometry.compiled import jit
from instamap.threads import in_threads, shares

POINTS_PER_BLOCK = 256
GROUP = 4  # features or units that a loop over points takes together
# 2^f for f in -½..½, by Taylor: the next term is below float32's rounding.
_POWERS = tuple(math.log(2) ** k / math.factorial(k) for k in range(8))
_ROUNDING = 1.5 * 2.0**23  # added to a float32, it leaves the nearest whole number in the last bits
# Powers of two beyond which the sigmoid is 0 or 1 to 1e-12. Smaller ones would make numbers below
# float32's smallest normal one, on which processors take a hundred times as long.
_LARGEST = 40.0
_FLAGS = {"nsz", "arcp", "contract", "reassoc"}  # numbers that are not finite stay so
_U = np.uintp  # unsigned indices: numba would test signed ones for counting from the end


@intrinsic
def _logistic(typing: Any, a: Any) -> tuple[Any, Any]:
    """1 / (1 + e^-a) in operations that have a vector's form, so that loops of it are vectors."""

    def generate(
        context: Any,
        builder: Any,
        signature: Any,
        arguments: Any,
    ) -> Any:
        single = ir.FloatType()
        whole = ir.IntType(32)

        def number(value: float) -> Any:
            return ir.Constant(single, float(np.float32(value)))

        power = builder.fmul(arguments[0], number(-1 / math.log(2)))
        for limit, beyond in ((_LARGEST, ">"), (-_LARGEST, "<")):
            outside = builder.fcmp_ordered(beyond, power, number(limit))  # not so for NaN
            power = builder.select(outside, number(limit), power)
        rounded = builder.fadd(power, number(_ROUNDING))
        rest = builder.fsub(power, builder.fsub(rounded, number(_ROUNDING)))
        value = number(_POWERS[-1])
        for factor in reversed(_POWERS[:-1]):
            value = builder.fmul(value, rest, flags=["contract"])
            value = builder.fadd(value, number(factor), flags=["contract"])
        exponent = builder.shl(builder.bitcast(rounded, whole), whole(23))
        one = builder.bitcast(number(1), whole)
        scale = builder.bitcast(builder.add(exponent, one), single)
        below = builder.fadd(number(1), builder.fmul(value, scale))
        return builder.fdiv(number(1), below)

    return types.float32(types.float32), generate


@jit(fastmath=False)  # which callers would hand on; it takes the rounding for nothing
def _sigmoid(a: Any) -> Any:
    """1 / (1 + e^-a)."""
    return _logistic(a)


@jit(fastmath=_FLAGS)
def _rows_of(
    x: np.ndarray,
    first: int,
    m: int,
    rows: np.ndarray,
) -> None:
    """The features of points first .. first + m - 1 as rows."""
    for i in range(_U(m)):
        for k in range(_U(x.shape[1])):
            rows[k, i] = x[_U(first) + i, k]


@jit(fastmath=_FLAGS)
def _add_four(
    w: np.ndarray,
    rows: np.ndarray,
    m: int,
    a: np.ndarray,
) -> None:
    """Adds Σ_k w_k · rows_k of four rows to `a`."""
    w0 = w[0]
    w1 = w[1]
    w2 = w[2]
    w3 = w[3]
    x0 = rows[0]
    x1 = rows[1]
    x2 = rows[2]
    x3 = rows[3]
    for i in range(_U(m)):
        first = w0 * x0[i] + w1 * x1[i]
        second = w2 * x2[i] + w3 * x3[i]
        a[i] += first + second


@jit(fastmath=_FLAGS)
def _products(
    a: np.ndarray,
    rows: np.ndarray,
    m: int,
    sums: np.ndarray,
) -> None:
    """Writes Σ_i a_i rows_ki of four rows."""
    x0 = rows[0]
    x1 = rows[1]
    x2 = rows[2]
    x3 = rows[3]
    s0 = np.float32(0)
    s1 = np.float32(0)
    s2 = np.float32(0)
    s3 = np.float32(0)
    for i in range(_U(m)):
        s0 += a[i] * x0[i]
        s1 += a[i] * x1[i]
        s2 += a[i] * x2[i]
        s3 += a[i] * x3[i]
    sums[0] = s0
    sums[1] = s1
    sums[2] = s2
    sums[3] = s3


@jit(fastmath=_FLAGS)
def _unit(
    w: np.ndarray,
    bias: float,
    rows: np.ndarray,
    m: int,
    a: np.ndarray,
) -> None:
    """A hidden unit before it is bent: bias + Σ_k w_k · rows_k."""
    for i in range(_U(m)):
        a[i] = bias
    for k in range(_U(0), _U(len(w)), _U(GROUP)):
        _add_four(
            w[k : k + _U(GROUP)],
            rows[k : k + _U(GROUP)],
            m,
            a,
        )


@jit(fastmath=_FLAGS)
def _forward(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray,
    out_w: np.ndarray,
    out_bias: float,
    out: np.ndarray,
    low: int,
    high: int,
) -> None:
    """Writes blocks low ≤ n < high of `out` "P"."""
    rows = np.zeros((w.shape[1], POINTS_PER_BLOCK), np.float32)
    a = np.empty(POINTS_PER_BLOCK, np.float32)
    for block in range(low, high):
        first = block * POINTS_PER_BLOCK
        m = min(POINTS_PER_BLOCK, len(x) - first)
        _rows_of(x, first, m, rows)
        values = out[first : first + m]
        values[:] = out_bias
        for j in range(_U(len(w))):
            _unit(
                w[j],
                bias[j],
                rows,
                m,
                a,
            )
            factor = out_w[j]
            for i in range(_U(m)):
                values[i] += factor * (a[i] * _sigmoid(a[i]))


@jit(fastmath=_FLAGS)
def _backward(
    x: np.ndarray,
    w: np.ndarray,
    bias: np.ndarray,
    out_w: np.ndarray,
    upstream: np.ndarray,
    grad_x: np.ndarray,
    sums: np.ndarray,
    low: int,
    high: int,
) -> None:
    """Writes blocks low ≤ n < high of `grad_x` "P F" and of `sums` "N W F+2": of each hidden unit
    the gradient in its weights, in its bias and in its output weight.
    """
    count = _U(w.shape[1])
    rows = np.zeros((w.shape[1], POINTS_PER_BLOCK), np.float32)
    back = np.empty((w.shape[1], POINTS_PER_BLOCK), np.float32)
    units = np.empty((GROUP, POINTS_PER_BLOCK), np.float32)
    a = np.empty(POINTS_PER_BLOCK, np.float32)
    for block in range(low, high):
        first = block * POINTS_PER_BLOCK
        m = min(POINTS_PER_BLOCK, len(x) - first)
        _rows_of(x, first, m, rows)
        back[:] = 0
        g = upstream[first : first + m]
        for j in range(_U(0), _U(len(w)), _U(GROUP)):
            for q in range(_U(GROUP)):
                _unit(
                    w[j + q],
                    bias[j + q],
                    rows,
                    m,
                    a,
                )
                factor = out_w[j + q]
                unit = units[q]
                in_output = np.float32(0)
                in_bias = np.float32(0)
                for i in range(_U(m)):
                    share = _sigmoid(a[i])
                    value = a[i] * share
                    slope = share + value * (np.float32(1) - share)
                    in_output += g[i] * value
                    unit[i] = g[i] * factor * slope
                    in_bias += unit[i]
                of_unit = sums[block, j + q]
                of_unit[count] = in_bias
                of_unit[count + _U(1)] = in_output
                for k in range(_U(0), count, _U(GROUP)):
                    four = rows[k : k + _U(GROUP)]
                    _products(
                        unit,
                        four,
                        m,
                        of_unit[k : k + _U(GROUP)],
                    )
            for k in range(count):
                _add_four(
                    w[j : j + _U(GROUP), k],
                    units,
                    m,
                    back[k],
                )
        for i in range(_U(m)):
            for k in range(_U(x.shape[1])):
                grad_x[_U(first) + i, k] = back[k, i]


def fits(network: nn.Sequential, features: Tensor) -> bool:
    """Whether a network is of the kind, and the features of the type, that this is for."""
    kinds = tuple(type(layer) for layer in network)
    single = features.dtype == torch.float32 and features.device.type == "cpu"
    return single and kinds == (nn.Linear, nn.SiLU, nn.Linear)


def decode(network: nn.Sequential, features: Tensor) -> Tensor:
    """The network's outputs "n 1" for features "n F", by torch.get_num_threads() threads."""
    hidden, _, last = network
    values: Tensor = _Decode.apply(features, hidden.weight, hidden.bias, last.weight, last.bias)
    return values


class _Decode(torch.autograd.Function):
    """The outputs, and their gradients in features and parameters."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, w: Tensor, bias: Tensor, out_w: Tensor, out_bias: Tensor
    ) -> Tensor:
        ctx.save_for_backward(features, w, bias, out_w)
        out = torch.empty(len(features), 1)
        given = _arrays(features, w, bias, out_w)
        values = out.numpy()[:, 0]

        def work(low: int, high: int) -> None:
            _forward(*given, np.float32(out_bias.item()), values, low, high)

        in_threads(work, shares(_blocks(features)))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, ...]:
        features, w, bias, out_w = ctx.saved_tensors
        units, count = w.shape
        given = _arrays(features, w, bias, out_w)
        grad_x = torch.empty_like(features, memory_format=torch.contiguous_format)
        padded = given[1].shape
        sums = torch.empty(_blocks(features), padded[0], padded[1] + 2)
        g = upstream.contiguous().view(-1)

        def work(low: int, high: int) -> None:
            _backward(*given, g.numpy(), grad_x.numpy(), sums.numpy(), low, high)

        in_threads(work, shares(_blocks(features)))
        total = sums.sum(0, dtype=torch.float64).float()[:units]
        return (
            grad_x,
            total[:, :count],
            total[:, padded[1]],
            total[None, :, padded[1] + 1],
            g.sum(dtype=torch.float64).float()[None],
        )


def _blocks(features: Tensor) -> int:
    return -(-len(features) // POINTS_PER_BLOCK)


def _arrays(features: Tensor, w: Tensor, bias: Tensor, out_w: Tensor) -> Any:
    """Features and parameters as the loops take them: units and features in whole groups, of which
    those that were added are zero.
    """
    more_units = -len(w) % GROUP
    more_features = -w.shape[1] % GROUP
    w = nn.functional.pad(w.detach(), (0, more_features, 0, more_units))
    bias = nn.functional.pad(bias.detach(), (0, more_units))
    out_w = nn.functional.pad(out_w.detach()[0], (0, more_units))
    arrays = []
    for each in (features.detach(), w, bias, out_w):
        arrays.append(each.contiguous().numpy())
    return arrays
