"""Statistics gathered in shards, on many machines or with interruptions, and added up."""

import hashlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from instamap import __version__
from instamap.errors import DataError
from instamap.fit import normal
from instamap.model import compose, record
from instamap.statistics.statistics import Statistics
from instamap.statistics.streaming import counter, gather
from instamap.workflows.prepare import Survey, survey
from instamap.workflows.settings import Settings
from instamap.workflows.statistics_folder import SETS, Folder, Shard

WHOLE = Shard(1, 1)


def accumulate(
    settings: Settings,
    out: Path,
    *,
    shard: Shard = WHOLE,
    force: bool = False,
    count: Callable[[int, int], None] = lambda done, total: None,
    announce: Callable[[Folder, dict[str, int]], None] = lambda folder, done: None,
) -> Folder:
    """Gather the statistics of a shard's images in the folder `out`, for which nothing is fitted.

    Noise and sets are those of all particles, so shards of one STAR file and seed add up. What is
    done is kept each time the Fourier grid is emptied (every 16,384 images over the order of the
    symmetry): the same call after an interruption goes on from there, with the same outcome to the
    last bit, and does nothing if all is done. announce(folder, done) is told how many images of
    each set were kept; count(done, total) how many of those left have been read. Raises
    InstamapError, before anything is written if the particles, the settings or the folder are to
    blame.
    """
    known = survey(settings)
    model = compose(settings.parts, known.scene)
    normal.check(model)
    rows = {
        name: some[shard.holds(some)]
        for name, some in {**known.rows, "held_out": known.held_out}.items()
    }
    folder = Folder(
        out, _said(settings, known, shard, {name: len(some) for name, some in rows.items()})
    )
    state = folder.begin(force)
    if state == "done":
        announce(folder, folder.said["sets"])
        return folder
    before = {
        name: Statistics.load(folder.file(name))
        for name in rows
        if state == "resumed" and folder.file(name).exists()
    }
    announce(folder, {name: some.count for name, some in before.items()})
    left = {
        name: some[before[name].count if name in before else 0 :] for name, some in rows.items()
    }
    gather(
        known.particles,
        rows,
        model.likelihood,
        symmetry=known.symmetry,
        weights=known.weights,
        watch=counter(left, count),
        before=before,
        keep=lambda name, some: some.save(folder.file(name)),
    )
    folder.end()
    return folder


def _said(settings: Settings, known: Survey, shard: Shard, counts: dict[str, int]) -> dict:
    """What accumulate.toml says."""
    scene = known.scene
    names = ("particles", "datadir", "together", "weights", "held_out", "seed", "symmetry")
    plain = {
        n: str(v.resolve()) if isinstance(v, Path) else v
        for n in names
        if (v := getattr(settings, n)) is not None
    }
    with settings.particles.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    done = {"preprocess": settings.preprocess.record()} if settings.preprocess else {}
    return {
        "instamap": __version__,
        **plain,
        **done,
        "digest": digest,
        "shards": [str(shard)],
        "box": scene.box,
        "pixel_size": scene.pixel_size,
        "premultiplied": scene.premultiplied,
        "count": scene.count,
        "noise_variance": scene.noise_variance.tolist(),
        "sets": counts,
        **record({"likelihood": settings.parts["likelihood"]}),
    }


def merge(paths: list[Path], out: Path, *, force: bool = False) -> Folder:
    """Add the statistics of disjoint shards and write them to the folder `out`.

    Raises DataError, naming both, if two folders share a shard or were not gathered alike; nothing
    is written then.
    """
    folders = [Folder.open(path) for path in paths]
    for i, one in enumerate(folders):
        for two in folders[:i]:
            _check(two, one)
    counts = {name: sum(folder.said["sets"][name] for folder in folders) for name in SETS}
    shards = sorted(
        (s for folder in folders for s in folder.shards), key=lambda s: (s.of, s.number)
    )
    shards = [WHOLE] if missing(shards) == 0 else shards
    target = Folder(out, {**folders[0].said, "shards": [str(s) for s in shards], "sets": counts})
    sums = {name: _sum(folders, name) for name in SETS}
    if target.begin(force) != "done":
        for name, total in sums.items():
            total.save(target.file(name))
        target.end()
    return target


def missing(shards: list[Shard]) -> Fraction:
    """The share of all rows that is in none of these disjoint shards."""
    return 1 - sum(Fraction(1, shard.of) for shard in shards)


def _sum(folders: list[Folder], name: str) -> Statistics:
    """One file in memory at a time, beside the sum."""
    total = folders[0].statistics(name)
    for folder in folders[1:]:
        total = total + folder.statistics(name)
    return total


def _check(one: Folder, two: Folder) -> None:
    reason = one.difference(two, beside=("shards", "sets"))
    if reason:
        raise DataError(
            f"'{one.path}' and '{two.path}' cannot be merged: {reason}; accumulate both with the"
            " same settings"
        )
    for a in one.shards:
        for b in two.shards:
            if a.meets(b):
                raise DataError(
                    f"'{one.path}' and '{two.path}' cannot be merged: shards {a} and {b} share"
                    " images; give each image once"
                )
