"""Files that are whole or absent: written beside their place and moved there when complete."""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from instamap.errors import OutputError

# Why a system refuses, and what helps, by the error's number.
_REFUSALS = {
    errno.ENOSPC: ("no space is left on its disk", "make room or choose another place"),
    errno.EDQUOT: (
        "no space is left in your quota of its disk",
        "make room or choose another place",
    ),
    errno.EFBIG: (
        "it is larger than the system's limit of file sizes",
        "raise the limit (ulimit -f) or choose another place",
    ),
    errno.EROFS: ("its file system is read-only", "choose another place"),
    errno.EACCES: ("permission is denied", "change its permissions or choose another place"),
    errno.EPERM: ("permission is denied", "change its permissions or choose another place"),
    errno.ENAMETOOLONG: ("its name is too long", "give a shorter one"),
    errno.EISDIR: ("a folder of that name is in the way", "choose another name"),
    errno.ENOTEMPTY: ("a folder of that name is in the way", "choose another name"),
    errno.EEXIST: ("something of that name is in the way", "choose another name"),
    errno.ENOENT: ("its folder does not exist", "make the folder or choose another place"),
    errno.ENOTDIR: ("a part of its path is a file, not a folder", "choose another place"),
    errno.ELOOP: ("its path is a circle of links", "choose another place"),
    errno.EMFILE: (
        "too many open files",
        "raise the limit (ulimit -n)",
    ),
    errno.ENFILE: ("too many open files on this machine", "end other programs"),
    errno.EIO: ("its disk reports an input/output error", "check the disk or choose another place"),
    errno.ESTALE: ("the server lost it: stale file handle", "mount its file system again"),
    errno.ENOMEM: ("memory is exhausted", "end other programs"),
}
_KINDS = (  # what is no file, in words
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# A file system does not know what was asked for, which then is nobody's fault.
NOT_SUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_NAME_KEPT = 20  # characters of a file's name that its temporary sibling shows
_STALE_SECONDS = 3600  # since the last change: a sibling that is older and unlocked is left over


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary sibling to write to; it takes the place of `path` at the end, or vanishes if
    writing fails.

    It is there, empty, when the block begins; nobody can foresee its name, and others can read it
    only when it is complete. A link at `path` is replaced, not followed. Raises OutputError naming
    `path` where the file system refuses, or where what is there is no file.
    """
    path = Path(path)
    with reported(path):
        _check_place(path)
        _sweep(path)
        sibling, descriptor = _new_sibling(path)
    try:
        with reported(path):
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
            os.fchmod(descriptor, stat.S_IRUSR | stat.S_IWUSR)
            yield sibling
            os.fchmod(descriptor, mode)
            _sync(descriptor)
            os.replace(sibling, path)
            _sync_folder(path.parent)
    finally:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            sibling.unlink(missing_ok=True)


@contextmanager
def reported(path: str | Path) -> Iterator[None]:
    """Any OSError of the block becomes an OutputError of one line that names `path`."""
    try:
        yield
    except OSError as error:
        reason, remedy = refusal(error)
        raise OutputError(f"'{path}' cannot be written: {reason}; {remedy}") from error


def refusal(error: OSError) -> tuple[str, str]:
    """Why the system refused, and what helps, in words."""
    number = error.errno or 0
    if number in _REFUSALS:
        return _REFUSALS[number]
    reason = os.strerror(number).lower() if number else "the system refuses"
    return reason, "choose another place"


def kind(mode: int) -> str | None:
    """What a file system's entry of this mode is, in words, such as "a folder"; None for a file."""
    for is_kind, name in _KINDS:
        if is_kind(mode):
            return name
    return None


def escaped(text: str) -> str:
    """The text with what does not print (control characters, lone bytes) as escapes: names of files
    may hold commands to a terminal.
    """
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")


def _check_place(path: Path) -> None:
    """Refuse to replace what is no file: folders, pipes, devices, also behind a link."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    what = kind(mode)
    if what is not None:
        raise OutputError(
            f"'{path}' cannot be written: {what} of that name is in the way; choose another name"
        )


def _new_sibling(path: Path) -> tuple[Path, int]:
    """A new, empty file in the folder of `path`, hence on its file system: the move is atomic. Its
    descriptor holds a lock, by which others see that it is in use.
    """
    name = f".{path.name[:_NAME_KEPT]}.{secrets.token_hex(8)}.part"
    sibling = path.with_name(name)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(sibling, flags, 0o666)
    with contextlib.suppress(OSError):  # file systems without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return sibling, descriptor


def _sweep(path: Path) -> None:
    """Remove siblings of `path` that a killed process left: old, ours, and locked by nobody."""
    name = re.compile(re.escape(f".{path.name[:_NAME_KEPT]}.") + r"[0-9a-f]{16}\.part")
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if name.fullmatch(entry.name):
                _remove_stale(entry)


def _remove_stale(entry: os.DirEntry[str]) -> None:
    with contextlib.suppress(OSError):
        found = entry.stat(follow_symlinks=False)
        age = time.time() - found.st_mtime
        if age < _STALE_SECONDS or found.st_uid != os.geteuid() or not stat.S_ISREG(found.st_mode):
            return
        descriptor = os.open(entry.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(entry.path)
        finally:
            os.close(descriptor)


def _sync(descriptor: int) -> None:
    """Have what was written on its disk before going on: a machine may stop at any moment."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise


def _sync_folder(folder: Path) -> None:
    """Have the new name on its disk too, where the folder may be read."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
