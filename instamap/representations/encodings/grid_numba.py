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
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from instamap.representations.encodings import grid_kernels as kernels
from instamap.representations.encodings.levels import Levels, check

MIN_POINTS_PER_THREAD = 4096  # that are worth a thread: about 0.3 ms


def encode_numba(x: Tensor, table: Tensor, levels: Levels) -> Tensor:
    """Features "n L*F" of points `x` "n 3", as `grid.encode_torch`; float32 on a CPU, by
    torch.get_num_threads() threads.
    """
    check(x, table, levels)
    if x.dtype != torch.float32 or x.device.type != "cpu":
        raise ValueError(
            f"points are {x.dtype} on {x.device}; the numba kernels take torch.float32 on cpu"
        )
    return _Encode.apply(x, table, levels)


class _Encode(torch.autograd.Function):
    """The encoding, and its gradients in the points and in the table."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        table: Tensor,
        levels: Levels,
    ) -> Tensor:
        ctx.save_for_backward(x, table)
        ctx.levels = levels
        features = table.new_empty(len(x), levels.width)
        _over_points(
            kernels.forward,
            len(x),
            _array(x),
            _array(table),
            features.numpy(),
            *_geometry(levels),
        )
        return features

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        upstream: Tensor,
    ) -> tuple[Tensor | None, Tensor | None, None]:
        x, table = ctx.saved_tensors
        levels = ctx.levels
        wants_x, wants_table, _ = ctx.needs_input_grad
        points = _array(x)
        grad = _array(upstream)
        grad_x = None
        grad_table = None
        if wants_x:
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
        if wants_table:
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


def _geometry(levels: Levels) -> tuple[Any, ...]:
    """The geometry of `levels` as the kernels take it. Features are told by the length of a tuple,
    which is a constant to the compiler.
    """
    return (
        np.array(levels.resolutions, np.int64),
        np.array(levels.offsets, np.int64),
        np.array(levels.dense, np.bool_),
        levels.smoothstep,
        (0,) * levels.features,
    )


def _thread_count(*limits: int) -> int:
    """The number of threads that torch uses, or fewer where there is less work."""
    return max(1, min(torch.get_num_threads(), *limits))


def _over_points(kernel: Callable, points: int, *arguments: Any) -> None:
    """Runs kernel(start, stop, *arguments) on a share of the points in each thread."""
    threads = _thread_count(points // MIN_POINTS_PER_THREAD)
    tasks = []
    for i in range(threads):
        start = points * i // threads
        stop = points * (i + 1) // threads
        tasks.append(partial(kernel, start, stop, *arguments))
    _run(tasks)


def _over_levels(
    kernel: Callable,
    levels: Levels,
    points: int,
    *arguments: Any,
) -> None:
    """Runs kernel(some levels, *arguments) in each thread; levels are dealt out from the finest, to
    and fro, to make shares even.
    """
    count = len(levels.resolutions)
    threads = _thread_count(count, points * count // MIN_POINTS_PER_THREAD)
    turns = [*range(threads), *reversed(range(threads))]
    dealt: list[list[int]] = [[] for _ in range(threads)]
    for level in range(count):
        from_finest = count - 1 - level
        thread = turns[from_finest % len(turns)]
        dealt[thread].append(level)
    tasks = []
    for hand in dealt:
        chosen = np.array(hand, np.int64)
        tasks.append(partial(kernel, chosen, *arguments))
    _run(tasks)


def _run(tasks: list[Callable]) -> None:
    """Runs all tasks at once, the first of them in this thread; raises what they raise."""
    first, *others = tasks
    if not others:
        first()
        return
    with ThreadPoolExecutor(len(others)) as pool:
        running = [pool.submit(task) for task in others]
        first()
        for each in running:
            each.result()
