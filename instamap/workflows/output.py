"""The output folder: refused if it holds what is not ours, filled in one go when all is there."""

import errno
import fnmatch
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from instamap.errors import OutputError
from instamap.toml_text import read_toml

MARK = "run.toml"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def check(
    out: Path, force: bool, may_write: Sequence[str] = (), inputs: Sequence[Path] = ()
) -> None:
    """Raises OutputError where a run cannot be written to the folder `out`.

    It is refused if it holds a run (unless `force`), is no folder, holds a file that the run may
    write (patterns `may_write`) and that no earlier run lists as its own, or if a file of the
    earlier run, which would go, is one of the `inputs`.
    """
    _check_folder(out)
    earlier = files_of_run(out)
    if (out / MARK).exists() and not force:
        raise OutputError(
            f"output folder '{out}' already holds a run; choose another or add --force to"
            " replace it"
        )
    for path in sorted(out.iterdir()) if out.exists() else ():
        foreign = path.name not in earlier
        if foreign and any(fnmatch.fnmatch(path.name, pattern) for pattern in may_write):
            raise OutputError(
                f"output folder '{out}' has a file '{path.name}' that no run lists as its own, and"
                " this one would replace it; move it away or choose another folder"
            )
    own = {(out / name).resolve() for name in earlier}
    for path in inputs:
        if path.resolve() in own:
            raise OutputError(
                f"'{path}' is read by this run and belongs to the run in '{out}', which would be"
                " replaced; choose another folder, or copy the file to another place"
            )


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise OutputError(f"output '{out}' is a file; name a folder")
    if out.is_symlink() and not out.exists():
        raise OutputError(
            f"output '{out}' is a link to '{out.readlink()}', which does not exist; make that"
            " folder or choose another"
        )


def files_of_run(out: Path) -> list[str]:
    """The names of the files that the run in a folder wrote, as its record lists them."""
    if not (out / MARK).exists():
        return []
    listed = read_toml(out / MARK).get("files", [])
    names = [name for name in listed if isinstance(name, str) and Path(name).name == name]
    return [MARK, *names]


@contextmanager
def atomic_folder(out: Path, force: bool) -> Iterator[Path]:
    """A temporary folder; what is in it moves to `out` if the block succeeds.

    It is removed if the block fails. It is in `out`, where that exists (which may be another file
    system, by a link or a mount), else beside it: a move is then a renaming. Raises OutputError
    where the file system refuses; a run that is finished but cannot be moved stays, and the error
    says where.
    """
    check(out, force)
    folder = _make_temporary(out)
    finished = False
    moved = False
    try:
        yield folder
        finished = True
        _move(folder, out)
        moved = True
    except OSError as error:
        if not finished and error.errno not in NO_ROOM:
            raise  # it is about something else
        remedy = "make room, or choose another place"
        if finished:
            remedy = f"what is finished stays in '{folder}': move it from there"
        raise OutputError(
            f"output folder '{out}' cannot be written: {error.strerror or error}; {remedy}"
        ) from error
    finally:
        if moved or not finished:
            shutil.rmtree(folder, ignore_errors=True)


def _make_temporary(out: Path) -> Path:
    place = out if out.exists() else out.parent
    try:
        place.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=place))
    except OSError as error:
        raise OutputError(
            f"output folder '{out}' cannot be made: {error.strerror}; choose another"
        ) from None


def _move(folder: Path, out: Path) -> None:
    """Moves all files to `out`, from which an earlier run goes; the mark comes last."""
    out.mkdir(exist_ok=True)
    for name in files_of_run(out):
        (out / name).unlink(missing_ok=True)
    for file in sorted(folder.iterdir(), key=lambda path: path.name == MARK):
        shutil.move(file, out / file.name)
