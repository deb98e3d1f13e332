"""numba, where it is: compilation also where nothing can be cached, whether there is any, and what
to say where there is none.
"""

import functools
from collections.abc import Callable


def jit(**flags) -> Callable[[Callable], Callable]:
    """`numba.njit` with these flags, without Python's lock; kept on disk for the next run where
    some folder can be written.
    """
    import numba  # not for who has none

    def decorate(function: Callable) -> Callable:
        try:
            return numba.njit(cache=True, nogil=True, error_model="numpy", **flags)(function)
        except RuntimeError:  # a read-only installation without a home folder
            return numba.njit(nogil=True, error_model="numpy", **flags)(function)

    return decorate


def usable() -> bool:
    """Whether compiled kernels can be had."""
    return _fault() is None


def note() -> str | None:
    """What a person should know of kernels that are missing, in one line; None where they are
    there.
    """
    fault = _fault()
    if fault is None:
        return None
    return (
        f"numba {fault}: images and fields take the slower path of torch, 5 to 20 times the time on"
        " a CPU; pip install 'instamap[cpu]'"
    )


@functools.cache
def _fault() -> str | None:
    """What is wrong with numba, found out once: importing it takes a part of a second."""
    try:
        import numba.extending  # noqa: F401
        from llvmlite import ir  # noqa: F401
    except ModuleNotFoundError as error:
        return (
            "is not installed"
            if error.name in ("numba", "llvmlite")
            else f"cannot be imported ({error})"
        )
    except (
        Exception
    ) as error:  # one that does not fit this numpy or this machine may fail in any way
        return f"cannot be imported ({' '.join(str(error).split()) or type(error).__name__})"
    return None
