"""Compilation by numba where it is installed, and what to say where it is not."""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable)

COMPILING = "kernels         are compiled for this machine (half a minute); later runs find them"


def jit(**flags: Any) -> Callable[[Function], Function]:
    """`numba.njit` with these flags, without Python's lock; kept on disk for the next run where
    some folder can be written.
    """
    import numba  # here, since it may be missing

    always = {"nogil": True, "error_model": "numpy", **flags}

    def decorate(function: Function) -> Function:
        try:
            return numba.njit(cache=True, **always)(function)
        except RuntimeError:  # a read-only installation without a home folder
            return numba.njit(**always)(function)

    return decorate


def usable() -> bool:
    """Whether compiled kernels can be had."""
    return _fault() is None


def note() -> str | None:
    """One line for people where compiled kernels are missing, None where they are there."""
    fault = _fault()
    if fault is None:
        return None
    return (
        f"numba {fault}: images and fields take the slower path of torch, 5 to 20 times the time on"
        " a CPU; pip install 'instamap[cpu]'"
    )


@contextmanager
def reporting_compilation(message: Callable[[str], None]) -> Iterator[None]:
    """Passes a line to `message` when the first kernel of the block begins to be compiled.

    There is none where all kernels are found on disk, or where numba is missing.
    """
    if not usable():
        yield
        return
    from numba.core import event  # here, since it may be missing

    class FirstCompilation(event.Listener):
        """A listener to numba that tells of one compilation, in whichever thread it is."""

        def __init__(self) -> None:
            self._lock = threading.Lock()
            self._told = False

        def on_start(self, event: Any) -> None:
            with self._lock:
                first = not self._told
                self._told = True
            if first:
                message(COMPILING)

        def on_end(self, event: Any) -> None:
            """Nothing is left to tell."""

    with event.install_listener("numba:compile", FirstCompilation()):
        yield


@functools.cache
def _fault() -> str | None:
    """The reason why numba cannot be used, found out once: an import takes a part of a second."""
    try:
        import numba.extending  # noqa: F401
        from llvmlite import ir  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name in ("numba", "llvmlite"):
            return "is not installed"
        return f"cannot be imported ({error})"
    except Exception as error:  # a numba that does not fit this numpy or machine fails in any way
        reason = " ".join(str(error).split())
        if not reason:
            reason = type(error).__name__
        return f"cannot be imported ({reason})"
    return None
