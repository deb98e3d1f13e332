"""Output folders: held by one run at a time, filled in one go, and nothing foreign is touched.

Each kind of run keeps a record in its folder, the mark, which lists the files that it wrote. A
later run of the same kind deletes or replaces those and no others.
"""

import contextlib
import errno
import fcntl
import fnmatch
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instamap.errors import DataError, InstamapError, OutputError
from instamap.toml_text import read_toml

LOCK = ".instamap.lock"
READY = ".instamap-ready"  # a folder of finished files that are on their way to their place
TEMPORARY = ".instamap-new-"  # prefix of folders that are filled before their files move
MAX_ATTEMPTS = 100  # to lock a folder that others remove
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of file systems without them


@dataclass(frozen=True)
class FolderKind:
    """What a folder can hold: `what` it is in words, the name of its record, and its files.

    may_write: patterns of the names of all files that a run of this kind may write.
    """

    what: str
    mark: str
    may_write: tuple[str, ...] = ()

    @property
    def pronoun(self) -> str:
        """What replaces `what` in a sentence."""
        return "it" if self.what.startswith(("a ", "an ")) else "them"


RUN = FolderKind("a run", "run.toml")
MARK = RUN.mark


@dataclass(frozen=True)
class OutputFolder:
    """A folder that is held for one run, as `reserve` gives it."""

    path: Path
    kind: FolderKind

    @contextmanager
    def filled(self) -> Iterator[Path]:
        """A temporary folder; what is in it moves to its place if the block succeeds.

        It is removed if the block fails, whose errors name the place of a file, not the temporary
        folder in which it was. The record must be among its files. Raises OutputError
        where the file system refuses; a run that is finished but cannot be moved stays, and the
        error says where.
        """
        folder = self._make_temporary()
        finished = False
        moved = False
        try:
            with _naming(self.path, folder):
                yield folder
            finished = True
            self._move(folder)
            moved = True
        except OSError as error:
            if not finished and error.errno not in NO_ROOM:
                raise  # it is about something else
            remedy = "make room, or choose another place"
            if finished:
                place = self.path / READY
                stays = place if place.exists() else folder
                remedy = f"what is finished stays in '{stays}': move it from there"
            raise OutputError(
                f"output folder '{self.path}' cannot be written: {error.strerror or error};"
                f" {remedy}"
            ) from error
        finally:
            if moved or not finished:
                shutil.rmtree(folder, ignore_errors=True)

    def _make_temporary(self) -> Path:
        try:
            return Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=self.path))
        except OSError as error:
            raise _cannot_be_made(self.path, error) from None

    def _move(self, folder: Path) -> None:
        """Moves all files to their place, from which an earlier run goes; the mark comes last.

        The folder has another name meanwhile, by which a move that was cut short is known.
        """
        os.replace(folder, self.path / READY)
        _finish_move(self.path, self.kind)


@contextmanager
def _naming(place: Path, folder: Path) -> Iterator[None]:
    """Has errors of the block name files as in `place`, which are in a temporary `folder`."""
    try:
        yield
    except (InstamapError, OSError) as error:
        hidden = str(folder)
        words = [str(one).replace(hidden, str(place)) for one in error.args]
        if isinstance(error, InstamapError):
            error.args = tuple(words)
        elif isinstance(error.filename, str | Path):  # it may also be an open file's number
            error.filename = str(error.filename).replace(hidden, str(place))
        raise


def _finish_move(out: Path, kind: FolderKind) -> None:
    """Moves what is left in the folder of finished files to its place, if there is one."""
    ready = out / READY
    if not ready.is_dir() or ready.is_symlink():
        return
    new = sorted(ready.iterdir(), key=lambda path: path.name == kind.mark)
    if (ready / kind.mark).exists():  # as it moves last, the earlier record is still there
        _remove_earlier(out, kind, keep=_listed_files(ready / kind.mark))
    for file in new:
        os.replace(file, out / file.name)
    ready.rmdir()


def _remove_earlier(out: Path, kind: FolderKind, keep: Sequence[str]) -> None:
    """Removes the files of an earlier run, but for those that new ones replace."""
    for name in recorded_files(out, kind):
        if name not in keep:
            (out / name).unlink(missing_ok=True)


@contextmanager
def reserve(
    out: Path, kind: FolderKind = RUN, force: bool = False, inputs: Sequence[Path] = ()
) -> Iterator[OutputFolder]:
    """Holds the folder `out` for one run of a kind; another run is refused meanwhile.

    Raises OutputError where it is no folder, holds a run of this kind (unless `force`) or of
    another, is held by somebody else, or has a file that the run may write and that no earlier one
    lists as its own; or where a file that would go is one of the `inputs`.
    """
    with hold(out, kind) as folder:
        check(out, kind, force, inputs)  # now that nobody else changes what is there
        yield folder


@contextmanager
def hold(out: Path, kind: FolderKind) -> Iterator[OutputFolder]:
    """Holds the folder `out`, whatever it has, for a run that may go on with what is there.

    Another run is refused meanwhile. Raises OutputError where `out` is no folder, or is held.
    """
    _check_folder(out)
    with _locked(out):
        _finish_move(out, kind)
        _sweep(out)
        yield OutputFolder(out, kind)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Holds the folder's lock, which the system releases if the process dies.

    A folder that was made for it goes again if nothing has come of it.
    """
    made = not out.exists()
    try:
        descriptor = _lock(out)
        try:
            yield
        finally:
            (out / LOCK).unlink(missing_ok=True)
            os.close(descriptor)
    finally:
        if made:
            with contextlib.suppress(OSError):  # it is not empty
                out.rmdir()


def _lock(out: Path) -> int:
    """A descriptor that holds the lock of a folder, which is made if need be. Raises OutputError.

    The file, or the folder, that was opened may be gone when it is locked, since whoever held the
    lock last removes them: then another is made.
    """
    path = out / LOCK
    for _ in range(MAX_ATTEMPTS):
        try:
            out.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise _cannot_be_made(out, error) from None
        try:
            _take(descriptor, out)
        except BaseException:
            os.close(descriptor)
            raise
        if _is_open_as(path, descriptor):
            return descriptor
        os.close(descriptor)
    raise OutputError(f"output folder '{out}' goes as soon as it is made; choose another")


def _is_open_as(path: Path, descriptor: int) -> bool:
    """Whether the descriptor is of the file that has this name now."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _take(descriptor: int, out: Path) -> None:
    """Takes the lock and writes into it whose it is. Raises OutputError where somebody has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
        raise OutputError(
            f"output folder '{out}' is being written by {owner}; wait for it, or choose another"
            " folder"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    os.ftruncate(descriptor, 0)
    owner = f"process {os.getpid()} on {socket.gethostname()}"
    os.pwrite(descriptor, owner.encode(), 0)


def _sweep(out: Path) -> None:
    """Removes what runs that were killed have left: the folder is ours, so nobody uses it."""
    for path in out.glob(f"{TEMPORARY}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def check(
    out: Path, kind: FolderKind = RUN, force: bool = False, inputs: Sequence[Path] = ()
) -> None:
    """Raises OutputError where a run of this kind cannot be written there (see `reserve`)."""
    _check_folder(out)
    if kind.mark != MARK and (out / MARK).exists():
        raise OutputError(f"output folder '{out}' holds a run; choose another")
    if (out / kind.mark).exists() and not force:
        raise OutputError(
            f"output folder '{out}' already holds {kind.what}; choose another or add --force to"
            f" replace {kind.pronoun}"
        )
    own = recorded_files(out, kind)
    check_foreign(out, kind, own)
    _check_inputs(out, own, inputs)


def check_foreign(out: Path, kind: FolderKind, own: Sequence[str]) -> None:
    """Raises OutputError where a file would be replaced that is not among a run's `own`."""
    for path in sorted(out.iterdir()) if out.exists() else ():
        foreign = path.name not in own
        if foreign and any(fnmatch.fnmatch(path.name, pattern) for pattern in kind.may_write):
            raise OutputError(
                f"output folder '{out}' has a file '{path.name}' that {kind.what} would replace and"
                " that no earlier one lists as its own; move it away or choose another folder"
            )


def check_file(path: Path, force: bool = False, inputs: Sequence[Path] = ()) -> None:
    """Raises OutputError where a file is there already (unless `force`) or is one of the `inputs`.

    Inputs are never replaced, also not through a link or under another name.
    """
    if not path.exists():
        return
    for other in inputs:
        if other.exists() and path.samefile(other):
            raise OutputError(
                f"output '{path}' is one of the files that are read; choose another name"
            )
    if not force:
        raise OutputError(
            f"output '{path}' is already there; choose another name or add --force to replace it"
        )


def names_in(folder: Path) -> list[str]:
    """The names of the files in a folder, for the record that lists them."""
    return sorted(path.name for path in folder.iterdir())


def _check_inputs(out: Path, own: Sequence[str], inputs: Sequence[Path]) -> None:
    """Raises OutputError where a file that would go is one that is read."""
    going = {(out / name).resolve() for name in own}
    for path in inputs:
        if path.resolve() in going:
            raise OutputError(
                f"'{path}' is read and belongs to what '{out}' holds, which would be replaced;"
                " choose another folder, or copy the file to another place"
            )


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise OutputError(f"output '{out}' is a file; name a folder")
    if out.is_symlink() and not out.exists():
        raise OutputError(
            f"output '{out}' is a link to '{out.readlink()}', which does not exist; make that"
            " folder or choose another"
        )


def _cannot_be_made(out: Path, error: OSError) -> OutputError:
    return OutputError(f"output folder '{out}' cannot be made: {error.strerror}; choose another")


def recorded_files(out: Path, kind: FolderKind) -> list[str]:
    """The names of the files that a run of this kind wrote, as its record in `out` lists them."""
    return _listed_files(out / kind.mark)


def _listed_files(mark: Path) -> list[str]:
    """The names of the files that a record lists, its own among them; none without a record."""
    if not mark.exists():
        return []
    try:
        record: Any = read_toml(mark) if mark.suffix == ".toml" else _read_json(mark)
        listed = record.get("files", [])
    except (DataError, AttributeError):
        return [mark.name]  # a damaged record lists nothing
    if not isinstance(listed, list):
        return [mark.name]
    names = [name for name in listed if isinstance(name, str) and Path(name).name == name]
    return [mark.name, *names]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"'{path}' cannot be read: {error}; give a whole record") from None
