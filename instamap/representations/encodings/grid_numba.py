"""The grid encoding on CPUs: the compiled kernels as a differentiable function, its work dealt out
to threads.

Threads are plain Python threads, started for each call and gone at its end, that run kernels which
hold no lock. numba's own layers do not suit a library: its OpenMP layer kills forked workers, and
its work queue aborts when two Python threads call it at once. These do neither, do not spin on a
busy machine, and cost about 0.1 ms a call.

Every number is summed in one order whatever the number of threads: in the forward pass and in the
position gradient threads share out the points, in the table gradient the levels. So results repeat
exactly, and no thread needs a table of its own.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from instamap.representations.encodings import grid_kernels as kernels
from instamap.representations.encodings.grid import Levels, check

SHARE = 4096  # points that are worth a thread: about 0.3 ms


def encode_numba(x: Tensor, table: Tensor, levels: Levels) -> Tensor:
    """Features "n L*F" of points `x` "n 3", as `encoding.encode_torch`; float32 on a CPU, by
    torch.get_num_threads() threads.
    """
    check(x, table, levels)
    if x.dtype != torch.float32 or x.device.type != "cpu":
        raise ValueError(
            f"points are {x.dtype} on {x.device}; the numba kernels take torch.float32 on cpu"
        )
    return _Encode.apply(x, table, levels)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, table: Tensor, levels: Levels) -> Tensor:
        ctx.save_for_backward(x, table)
        ctx.levels = levels
        out = table.new_empty(len(x), levels.width)
        _over_points(
            kernels.forward, len(x), _array(x), _array(table), out.numpy(), *_geometry(levels)
        )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        (x, table), levels = ctx.saved_tensors, ctx.levels
        points = _array(x)
        grad = _array(grad)
        grad_x = grad_table = None
        if ctx.needs_input_grad[0]:
            grad_x = x.new_empty(x.shape)
            _over_points(
                kernels.position_gradient,
                len(x),
                points,
                _array(table),
                grad,
                grad_x.numpy(),
                *_geometry(levels),
            )
        if ctx.needs_input_grad[1]:
            grad_table = table.new_zeros(table.shape)
            _over_levels(
                kernels.table_gradient,
                levels,
                len(x),
                points,
                grad,
                grad_table.numpy(),
                *_geometry(levels),
            )
        return grad_x, grad_table, None


def _array(tensor: Tensor) -> np.ndarray:
    """The tensor's numbers, rows one after the other, without a copy where they lie so already."""
    return tensor.detach().contiguous().numpy()


def _geometry(levels: Levels) -> tuple:
    """What the kernels need of `levels`. Features are told by the length of a tuple, which is a
    constant to the compiler.
    """
    arrays = (
        np.array(levels.resolutions, np.int64),
        np.array(levels.offsets, np.int64),
        np.array(levels.dense, np.bool_),
    )
    return *arrays, levels.smoothstep, (0,) * levels.features


def _over_points(kernel: Callable, n: int, *arguments) -> None:
    """Runs kernel(start, stop, *arguments) on a share of the n points in each thread."""
    shares = max(1, min(torch.get_num_threads(), n // SHARE))
    bounds = [n * i // shares for i in range(shares + 1)]
    _run([lambda i=i: kernel(bounds[i], bounds[i + 1], *arguments) for i in range(shares)])


def _over_levels(kernel: Callable, levels: Levels, n: int, *arguments) -> None:
    """Runs kernel(some levels, *arguments) in each thread; levels are dealt out from the finest, to
    and fro, to make shares even.
    """
    count = len(levels.resolutions)
    shares = max(1, min(torch.get_num_threads(), count, n * count // SHARE))
    turns = [*range(shares), *reversed(range(shares))]
    hands = [
        [level for level in range(count) if turns[(count - 1 - level) % len(turns)] == i]
        for i in range(shares)
    ]
    _run([lambda hand=hand: kernel(np.array(hand, np.int64), *arguments) for hand in hands])


def _run(tasks: list[Callable]) -> None:
    """Runs all tasks at once, the first of them in this thread; raises what they raise."""
    if len(tasks) == 1:
        return tasks[0]()
    with ThreadPoolExecutor(len(tasks) - 1) as pool:
        others = [pool.submit(task) for task in tasks[1:]]
        tasks[0]()
        for other in others:
            other.result()
