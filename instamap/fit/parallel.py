"""Independent fits at the same time: each in a thread of its own, with its share of torch's
threads.
"""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
Guard = Callable[[Callable[..., None]], Callable[..., None]]


class Stopped(BaseException):
    """Raised in a fit that is not wanted any more: another one failed, or a person stopped the run."""


def side_by_side(names: Iterable[str], task: Callable[[str, Guard], T]) -> dict[str, T]:
    """task(name, guard) of each name, as many at once as torch has threads. Raises what the first
    task that failed raised.

    What a task reports to (a log, progress, hooks) it calls through `guard`: guarded functions are
    called one at a time, and end a fit that is not wanted any more. Fits of normal equations are
    bound by memory and by small operations, so that two of them with one thread each are done in
    little more than half of the time that they take one after the other with two.
    """
    names = list(names)
    threads = torch.get_num_threads()
    at_once = min(len(names), threads)
    lock = threading.Lock()
    stop = threading.Event()

    def guard(function: Callable[..., None]) -> Callable[..., None]:
        def guarded(*arguments) -> None:
            with lock:
                if stop.is_set():
                    raise Stopped
                function(*arguments)

        return guarded

    def one(name: str) -> T:
        torch.set_num_threads(threads // at_once)  # of this thread and of those that it starts
        try:
            return task(name, guard)
        except BaseException:
            stop.set()
            raise

    if at_once < 2:
        return {name: task(name, guard) for name in names}
    with ThreadPoolExecutor(at_once) as pool:
        try:
            waiting = {name: pool.submit(one, name) for name in names}
            failures = [error for fit in waiting.values() if (error := fit.exception()) is not None]
        except BaseException:  # KeyboardInterrupt while waiting
            stop.set()
            raise
        finally:
            torch.set_num_threads(threads)  # what threads that start from now on take for theirs
    for failure in sorted(failures, key=lambda error: isinstance(error, Stopped)):
        raise failure
    return {name: fit.result() for name, fit in waiting.items()}
