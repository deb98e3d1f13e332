"""The output folder: refused if it holds a run, filled in one go when everything is there."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from instamap.errors import OutputError

MARK = "run.toml"
# What a run may leave: one that is replaced goes whole, so that no map of it is taken for one of the new run.
WRITTEN = (MARK, "map.mrc", "half1.mrc", "half2.mrc", "mask.mrc", "map.png", "fsc.csv", "fsc.png", "held_out.png", "log.jsonl",
           "latents.npy", "half1.pt", "half2.pt", "motion.json", "poses.json", "particles_refined.star", "bodies.npy",
           "particles_body*.star")  # fmt: skip


def check(out: Path, force: bool) -> None:
    """Raise OutputError if `out` holds a run (unless `force`) or cannot be a folder."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"output '{out}' is a file; name a folder")
    if (out / MARK).exists() and not force:
        raise OutputError(f"output folder '{out}' already holds a run; choose another or add --force to replace it")


@contextmanager
def staged(out: Path, force: bool) -> Iterator[Path]:
    """A temporary folder beside `out`; what is in it moves to `out` if the block succeeds and is removed if it fails."""
    check(out, force)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise OutputError(f"output folder '{out}' cannot be made: {error.strerror}; choose another") from None
    try:
        yield stage
        out.mkdir(exist_ok=True)
        if (out / MARK).exists():
            for old in [old for name in WRITTEN for old in out.glob(name)]:
                old.unlink()
        for file in sorted(stage.iterdir(), key=lambda f: f.name == MARK):  # the mark comes last
            file.replace(out / file.name)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
