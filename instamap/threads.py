"""Work shared out among Python's own threads: numba's break after a fork or when two threads start
them.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import TypeVar

import torch

NUMBERS_IN_CACHE = 1 << 17
NUMBERS_ON_CARD = 1 << 24
Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def in_threads(work: Callable[[int, int], None], bounds: Sequence[int]) -> None:
    """Runs work(low, high) between neighbouring bounds, all at once; raises what they raise."""
    shares = list(pairwise(bounds))
    if len(shares) == 1:
        work(*shares[0])
        return
    with ThreadPoolExecutor(len(shares)) as pool:
        running = [pool.submit(work, *share) for share in shares]
    for each in running:
        each.result()


def shares(count: int) -> list[int]:
    """Bounds that part `count` items evenly among as many threads as torch uses."""
    threads = torch.get_num_threads()
    return [count * i // threads for i in range(threads + 1)]


@contextmanager
def single_thread() -> Iterator[None]:
    """One thread of torch within the block: the last bits of its transforms depend on their
    number.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def in_order(work: Callable[[Item], Outcome], items: Iterable[Item]) -> Iterator[Outcome]:
    """work(item) of each item in turn, some of them computed ahead, in as many threads as torch
    uses.

    In each of these torch itself uses one, so that no bit depends on their number, and records
    gradients only where the caller's thread does. Items are made in order, by the caller's thread.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(threads, initializer=_begin, initargs=(torch.is_grad_enabled(),))
    ahead: deque[Future[Outcome]] = deque()
    try:
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        # for threads of others: what is set in one is what new ones begin with
        torch.set_num_threads(threads)


def _begin(with_gradients: bool) -> None:
    """What a thread of `in_order` begins with, which torch does not hand on."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(with_gradients)


def in_pieces(
    work: Callable[[slice], None], count: int, numbers: int, device: torch.device
) -> None:
    """work(piece) of pieces of `count` things of so many numbers each, in as many threads as torch
    uses; as many at once as stay in a cache on a CPU, or keep a card busy.
    """
    together = NUMBERS_IN_CACHE if device.type == "cpu" else NUMBERS_ON_CARD
    size = max(1, together // numbers)
    pieces = [slice(i, min(i + size, count)) for i in range(0, count, size)]
    if device.type != "cpu":
        for piece in pieces:
            work(piece)
        return
    for _ in in_order(work, pieces):
        pass
