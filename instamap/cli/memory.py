"""Memory that runs out, and libraries that would end the program without a word; and in which
pages it comes.
"""

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


def spare_threads() -> None:
    """Keeps libraries from threads that they cannot start: OpenBLAS would then raise SIGINT, as if
    a person had stopped the program, and OpenMP would end it.

    What the environment says wins. OpenBLAS, NumPy's, does nothing here that is worth a thread.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if _has_less_than(SPACE_FOR_THREADS):
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def take_large_pages() -> None:
    """Lets torch ask for memory in pages of 2 MB where Linux has them.

    Blocks of a fit in 256 voxels come and go many times in a step; of usual pages they cost half of
    its time. What the environment says wins.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def check_space() -> None:
    """Raises MemoryError where the libraries alone have no room."""
    if _has_less_than(LEAST_SPACE):
        raise MemoryError


def _has_less_than(space: int) -> bool:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return limit != resource.RLIM_INFINITY and limit < space
