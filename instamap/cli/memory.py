"""Memory that runs out, and libraries that would end the program without a word; memory that is
given back too soon.
"""

import ctypes
import os
import resource

OUT_OF_MEMORY = (
    "memory is exhausted: this needs more than the machine, or its limit (ulimit -v, a batch"
    " system's), gives; make the box smaller (--box, --crop), give a tighter --mask, or take a"
    " machine with more memory"
)
# Bytes of addresses: with fewer some library ends the program as it loads, or as it compiles.
LEAST_SPACE = 1500 << 20
SPACE_FOR_THREADS = 6 << 30  # bytes of addresses: with fewer, stacks of threads are too many
# Of mallopt in glibc's malloc.h: how much may be free at the end of the heap before it is given
# back, how many blocks are mapped by themselves, how many heaps threads have.
TRIM_THRESHOLD = -1
MMAP_MAX = -4
ARENA_MAX = -8
LARGEST_INT = 2**31 - 1


def spare_threads() -> None:
    """Keeps libraries from threads that they cannot start: OpenBLAS would then raise SIGINT, as if
    a person had stopped the program, and OpenMP would end it.

    What the environment says wins. OpenBLAS, NumPy's, does nothing here that is worth a thread.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if _has_less_than(SPACE_FOR_THREADS):
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def keep_freed_memory() -> None:
    """Lets the program keep memory that it has freed, for what it asks for next; with glibc, which
    would give large blocks back at once.

    Each page of a block that comes anew costs a fault: of a fit in 256 voxels half of the time.
    What the environment says wins (MALLOC_MMAP_MAX_ and the like).
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another libc
        return
    mallopt(ARENA_MAX, 1)
    mallopt(MMAP_MAX, 0)
    mallopt(TRIM_THRESHOLD, LARGEST_INT)


def check_space() -> None:
    """Raises MemoryError where the libraries alone have no room."""
    if _has_less_than(LEAST_SPACE):
        raise MemoryError


def _has_less_than(space: int) -> bool:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return limit != resource.RLIM_INFINITY and limit < space
