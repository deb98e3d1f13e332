"""Work shared out among Python's own threads: numba's break after a fork or when two threads start
them.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise


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
