"""Files that are whole or absent: written beside their place and moved there when complete."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from instamap.errors import OutputError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary sibling to write to; it takes the place of `path` at the end, or vanishes if
    writing fails.

    Raises OutputError naming `path` where the file system refuses.
    """
    path = Path(path)
    sibling = path.with_name(
        f".{path.name}.{os.getpid()}.part"
    )  # same folder, hence same file system: the move is atomic
    try:
        yield sibling
        os.replace(sibling, path)
    except OSError as error:
        raise OutputError(
            f"'{path}' cannot be written: {error.strerror or error}; choose another place or make"
            " room"
        ) from error
    finally:
        sibling.unlink(missing_ok=True)
