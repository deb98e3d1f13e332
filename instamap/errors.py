"""The errors a user can cause: each names the object, its value and the remedy."""

import errno

LONGEST_LINE = 600  # characters


class InstamapError(Exception):
    """Base of all of them; the command line prints it as one line and exits with code 2."""


class DataError(InstamapError):
    """Particles, images, masks or maps that cannot be used as they are."""


class OptionError(InstamapError):
    """An option that does not exist, is repeated, or has a value that is not allowed."""


class PartError(InstamapError):
    """A part (representation, forward operator, ...) that is unknown, broken or defined twice."""


class CompositionError(InstamapError):
    """Parts that do not fit each other or the data."""


class OutputError(InstamapError):
    """An output folder or file that cannot be written."""


def line_of(error: BaseException) -> str:
    """What is told of an error: one line, without its middle where a damaged file has filled it."""
    line = " ".join(str(error).split())
    if len(line) <= LONGEST_LINE:
        return line
    kept = LONGEST_LINE // 2
    return f"{line[:kept]} ... {line[-kept:]}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the system has no memory, or no thread, left to give."""
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError | ImportError | OSError):
        return False
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    text = str(error)
    return any(words in text for words in _NO_MEMORY)


_NO_MEMORY = (  # what torch, CUDA, the system's loader and Python say
    "can't allocate memory",
    "annot allocate memory",
    "not enough memory",
    "out of memory",
    "failed to map segment",
    "can't start new thread",
)
