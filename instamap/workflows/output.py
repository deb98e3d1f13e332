"""The output folder: refused if it holds a run, filled in one go when everything is there."""

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from instamap.errors import OutputError

MARK = "run.toml"
# What a run may leave: one that is replaced goes whole, so that no map of it is taken for one of
# the new run.
WRITTEN = (
    MARK,
    "map.mrc",
    "half1.mrc",
    "half2.mrc",
    "mask.mrc",
    "map.png",
    "fsc.csv",
    "fsc.png",
    "held_out.png",
    "log.jsonl",
    "latents.npy",
    "half1.pt",
    "half2.pt",
    "motion.json",
    "poses.json",
    "particles_refined.star",
    "bodies.npy",
    "particles_body*.star",
)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # errors of the place that is written to


def check(out: Path, force: bool) -> None:
    """Raise OutputError if `out` holds a run (unless `force`) or cannot be a folder."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"output '{out}' is a file; name a folder")
    if out.is_symlink() and not out.exists():
        raise OutputError(
            f"output '{out}' is a link to '{out.readlink()}', which does not exist; make that"
            " folder or choose another"
        )
    if (out / MARK).exists() and not force:
        raise OutputError(
            f"output folder '{out}' already holds a run; choose another or add --force to"
            " replace it"
        )


@contextmanager
def staged(out: Path, force: bool) -> Iterator[Path]:
    """A temporary folder; what is in it moves to `out` if the block succeeds and is removed if it
    fails.

    It is in `out`, where that exists (which may be another file system, by a link or a mount), else
    beside it: a move is then a renaming. Raises OutputError where the file system refuses; a run
    that is finished but cannot be moved stays, and the error says where.
    """
    check(out, force)
    place = out if out.exists() else out.parent
    try:
        place.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=place))
    except OSError as error:
        raise OutputError(
            f"output folder '{out}' cannot be made: {error.strerror}; choose another"
        ) from None
    keep = False
    try:
        yield stage
        keep = True
        _move(stage, out)
        keep = False
    except OSError as error:
        if not keep and error.errno not in FULL:
            raise  # of something else
        said = (
            f"what is finished stays in '{stage}': move it from there"
            if keep
            else "make room, or choose another place"
        )
        raise OutputError(
            f"output folder '{out}' cannot be written: {error.strerror or error}; {said}"
        ) from error
    finally:
        if not keep:
            shutil.rmtree(stage, ignore_errors=True)


def _move(stage: Path, out: Path) -> None:
    """All files of the stage to `out`, from which an earlier run goes; the mark comes last."""
    out.mkdir(exist_ok=True)
    if (out / MARK).exists():
        for old in [old for name in WRITTEN for old in out.glob(name)]:
            old.unlink()
    for file in sorted(stage.iterdir(), key=lambda f: f.name == MARK):
        shutil.move(file, out / file.name)
