"""What more images cost: statistics and fits of sets of different size, and relion_reconstruct's
time per image.

    python -m benchmarks.speed.scaling --data T large [--relion 8000] [--make PATH] [--seeds 0 1 2]
        [--out FILE.json]

Each turn measures one set in a fresh process, as `instamap reconstruct` works (both halves and
held-out images, default parts):

- prepare: STAR file, noise, statistics, FFTs, first map and mask. MS/IMAGE is that time by the
number of images, STREAM MS the time between
  the first and the last chunk of images by the images between them: what one image more costs.
- fit: both halves until the held-out likelihood stops them. MS/STEP is free of the number of steps,
which depends on the noise.
- memory: the most that was resident without pages of mapped files, in either stage. Images are
mapped, so all of the stack may be resident
  when memory is plentiful, and none of it has to be: see `memory`.

relion_reconstruct gets the first --relion images of the last set, and half as many: the difference
by the images between is what one more costs, with neither its start nor its gridding correction,
and is to be held against STREAM MS. `whole` includes both.
"""

import multiprocessing
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.lib import runs, sets
from benchmarks.lib.common import environment
from benchmarks.lib.memory import Memory
from benchmarks.lib.options import parser
from benchmarks.lib.programs import measure
from benchmarks.lib.report import median, megabytes, number, ratio, save, show, table
from instamap.progress import SILENT, Progress
from instamap.workflows.choose import resolve
from instamap.workflows.map import fit_one
from instamap.workflows.prepare import prepare
from instamap.workflows.settings import Settings

HEAD = [
    "SET",
    "IMAGES",
    "PREPARE S",
    "MS/IMAGE",
    "STREAM MS",
    "FIT S",
    "STEPS",
    "MS/STEP",
    "PREPARE MB",
    "FIT MB",
    "RSS MB",
]
KEYS = (
    "images",
    "prepare_seconds",
    "whole_ms",
    "stream_ms",
    "fit_seconds",
    "steps",
    "step_ms",
    "prepare_memory",
    "fit_memory",
    "rss",
)


class Ticks(Progress):
    """Notes when how many of the images had been read."""

    def __init__(self):
        self.ticks: list[tuple[int, float]] = []

    def images_read(self, done: int, total: int) -> None:
        self.ticks.append((done, time.perf_counter()))


def one(star: Path, seed: int) -> dict:
    """Times and memory of one set in this process."""
    settings = resolve(Settings(particles=star, seed=seed))
    reading = Ticks()
    with Memory() as preparing:
        start = time.perf_counter()
        prepared = prepare(settings, reading)
        prepare_seconds = time.perf_counter() - start
    with Memory() as fitting:
        start = time.perf_counter()
        fits = [fit_one(settings, prepared, name, SILENT)[0] for name in prepared.fits]
        fit_seconds = time.perf_counter() - start
    first, begun = reading.ticks[0]
    last, ended = reading.ticks[-1]
    steps = sum(fit.evaluations[-1].step for fit in fits)
    images = prepared.scene.count
    return {
        "images": images,
        "prepare_seconds": prepare_seconds,
        "whole_ms": 1e3 * prepare_seconds / images,
        "stream_ms": 1e3 * (ended - begun) / (last - first) if last > first else None,
        "fit_seconds": fit_seconds,
        "steps": steps,
        "step_ms": 1e3 * fit_seconds / steps,
        "prepare_memory": preparing.anonymous,
        "fit_memory": fitting.anonymous,
        "rss": max(preparing.rss or 0, fitting.rss or 0) or None,
        "held_out": [fit.best.held_out for fit in fits],
    }


def apart(star: Path, seed: int) -> dict:
    """`one` in a process that has done nothing else."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(one, star, seed).result()


def subsets(folder: Path, work: Path, count: int) -> list[Path]:
    """Sets of the first half `count` and the first `count` images, with a stack of their own: a
    program may read the whole of it.
    """

    def images(particles, rows):
        return particles.images(rows)

    return [sets.rewrite(folder, work / str(n), images, n) for n in (count // 2, count)]


def relion(folders: list[Path]) -> dict | None:
    """Milliseconds per image of the larger subset, and of each image that it has more than the
    smaller.
    """
    took = []
    for folder in folders:
        run = measure(
            [runs.RELION, "--i", "particles.star", "--o", "relion.mrc", "--ctf"], cwd=folder
        )
        if run.code:
            show(f"relion_reconstruct failed:\n{run.output[-800:]}")
            return None
        took.append((int(folder.name), run))
    (few, small), (many, large) = took
    kept = {
        "images": many,
        "seconds": large.seconds,
        "anonymous": large.anonymous,
        "whole_ms": 1e3 * large.seconds / many,
    }
    return kept | {"stream_ms": 1e3 * (large.seconds - small.seconds) / (many - few)}


def summary(names: list[str], results: list[dict]) -> tuple[list[list[str]], list[str]]:
    """Rows of medians over the seeds, and ratios to the first set and to relion_reconstruct, in
    words.
    """
    middle = {
        n: {k: median(r.get(k) for r in results if r["set"] == n) for k in KEYS}
        for n in dict.fromkeys(r["set"] for r in results)
    }
    rows = []
    words = []
    for name, m in middle.items():
        memory = [number(megabytes(m[k]), ".0f") for k in KEYS[7:]]
        times = [
            number(m["prepare_seconds"], ".1f"),
            number(m["whole_ms"]),
            number(m["stream_ms"]),
            number(m["fit_seconds"], ".2f"),
        ]
        rows.append(
            [
                name,
                number(m["images"], ",.0f"),
                *times,
                number(m["steps"], ".0f"),
                number(m["step_ms"]),
                *memory,
            ]
        )
    first = middle[names[0]]
    last = middle[names[-1]]
    if len(names) > 1:
        fit, step = (number(ratio(last[k], first[k]), ".2f") for k in ("fit_seconds", "step_ms"))
        words.append(
            f"{names[-1]} against {names[0]}: {fit} x the time of fitting, {step} x the time of a"
            " step"
        )
    if "(relion)" in middle:
        whole, stream = (
            number(ratio(middle["(relion)"][k], last[k]), ".2f") for k in ("whole_ms", "stream_ms")
        )
        words.append(
            f"relion_reconstruct takes {stream} x the time for one more image, {whole} x over the"
            f" whole of {names[-1]}"
        )
    return rows, words


def main() -> None:
    add = parser(__doc__, score=False)
    add.add_argument(
        "--relion",
        type=int,
        default=8000,
        metavar="N",
        help="images of the last set for relion_reconstruct; 0 leaves it out",
    )
    options = add.parse_args()
    where = environment()
    folders = [sets.find(folder, options.make) for folder in options.data]
    results = []
    runs.warm_up()
    with tempfile.TemporaryDirectory() as work:
        compare = options.relion and shutil.which(runs.RELION)
        small = subsets(folders[-1], Path(work), options.relion) if compare else []
        for seed in options.seeds:
            for folder in folders:
                results.append(
                    {
                        "set": folder.resolve().name,
                        "seed": seed,
                        **apart(folder / "particles.star", seed),
                    }
                )
            if small and (found := relion(small)):
                results.append({"set": "(relion)", "seed": seed, **found})
    rows, words = summary([folder.resolve().name for folder in folders], results)
    show("\n".join([table(HEAD, rows), "", *words]))
    save(
        options.out,
        "scaling",
        where,
        results,
        sets=[sets.describe(folder) for folder in folders],
        seeds=options.seeds,
    )


if __name__ == "__main__":
    main()
