"""Independent fits at the same time: each in a thread of its own, with its share of torch's
threads.
"""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

from instamap.progress import SILENT, Evaluation, Progress

T = TypeVar("T")


class Stopped(BaseException):
    """Raised in a fit that is not wanted any more.

    Another one failed, or a person stopped the run.
    """


class SerialisedProgress(Progress):
    """A listener for several threads: passes their reports on one at a time, and ends a fit that is
    not wanted any more by raising Stopped in it.
    """

    def __init__(self, listener: Progress) -> None:
        self._listener = listener
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def stop(self) -> None:
        """From now on every report raises Stopped."""
        self._stop.set()

    def message(self, line: str) -> None:
        with self._lock:
            self._check()
            self._listener.message(line)

    def images_read(self, done: int, total: int) -> None:
        with self._lock:
            self._check()
            self._listener.images_read(done, total)

    def evaluated(self, fit: str, evaluation: Evaluation, steps: int) -> None:
        with self._lock:
            self._check()
            self._listener.evaluated(fit, evaluation, steps)

    def counted(self, what: str, done: int, total: int) -> None:
        with self._lock:
            self._check()
            self._listener.counted(what, done, total)

    def kept(self, what: str) -> Path | None:
        with self._lock:
            self._check()
            return self._listener.kept(what)

    def _check(self) -> None:
        if self._stop.is_set():
            raise Stopped


def run_in_threads(
    names: Iterable[str], task: Callable[[str, Progress], T], progress: Progress = SILENT
) -> dict[str, T]:
    """The results of task(name, progress) by name, as many tasks at once as torch has threads.

    A task reports through the progress that it is given: reports come one at a time, and end a fit
    that is not wanted any more. Raises what the first task that failed raised. Fits of normal
    equations are bound by memory and by small operations, so that two of them with one thread each
    are done in little more than half of the time that they take one after the other with two.
    """
    names = list(names)
    serialised = SerialisedProgress(progress)
    threads = torch.get_num_threads()
    at_once = min(len(names), threads)
    if at_once < 2:
        return {name: task(name, serialised) for name in names}

    def run(name: str) -> T:
        torch.set_num_threads(threads // at_once)  # of this thread and of those that it starts
        try:
            return task(name, serialised)
        except BaseException:
            serialised.stop()
            raise

    with ThreadPoolExecutor(at_once) as pool:
        try:
            futures = {name: pool.submit(run, name) for name in names}
            failures = _failures(futures)
        except BaseException:  # KeyboardInterrupt while waiting
            serialised.stop()
            raise
        finally:
            torch.set_num_threads(threads)  # what threads that start from now on take for theirs
    if failures:
        raise failures[0]
    return {name: future.result() for name, future in futures.items()}


def _failures(futures: dict[str, Future[T]]) -> list[BaseException]:
    """What the tasks raised, once all have ended: causes first, then what they put an end to."""
    errors = [future.exception() for future in futures.values()]
    raised = [error for error in errors if error is not None]
    return sorted(raised, key=_is_consequence)


def _is_consequence(error: BaseException) -> bool:
    return isinstance(error, Stopped)
