"""Time per image of `instamap simulate`, beside relion_project in the same run.

    python -m benchmarks.speed.simulate [--boxes 128 256] [--counts 2000 400] [--threads 1 2]
        [--repeats 3] [--model MODEL.pdb] [--model-count 10000] [--out FILE.json]

Both make images of one map at the same poses and with the same contrast transfer; instamap adds
noise, which RELION is not asked for. Each is a process of its own, start and reading included, for
a set and for a quarter of it: MS/IMAGE is what one image more costs, (T(n) - T(n/4)) / (3n/4), by
the clock and by the time of all cores; FIXED is the rest. relion_project has one thread. With
--model, one set of 128 px is made of an atomic model too, which RELION cannot do.

The floor, for a box of D = 256 and one image: the frame has 1.25 D pixels an edge, 40,000 Fourier
components in its half circle; each is a sum over 5³ cells, in 25 rows of 40 bytes. That is 25 loads
and multiply-adds of one vector, 50 cycles, so 2 million cycles or 0.7 ms at 3 GHz where the cells
are in the cache. They are not: an image touches a slab 5 cells thick of π/2 · 256² cells, 4 MB,
which arrives in pieces of 64 bytes of which a half is used, 1 ms at 8 GB/s. Three transforms of
10^5 numbers take 1 ms, contrast transfer 33,000 sines and cosines, 0.5 ms, noise 0.2 ms; 256 kB are
written, read and written again.
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.lib.common import environment
from benchmarks.lib.programs import INSTAMAP, Run, measure, succeeded
from benchmarks.lib.report import median, number, ratio, save, show, table
from benchmarks.lib.runs import warm_up
from instamap.maps import mrc
from instamap.simulate import particle_set
from instamap.simulate.beads import Beads, molecule
from instamap.simulate.exposure import Exposure

RELION = "relion_project"
EDGE = 205.0  # Å: of every box
POSES = "poses/particles.star"
MODEL_BOX = 128
HEAD = ["PROGRAM", "BOX", "IMAGES", "SECONDS", "CPU S", "MS/IMAGE", "CPU MS/IMAGE", "FIXED S", "MB"]


def prepare(folder: Path, box: int, counts: list[int]) -> None:
    """map.mrc of the demo's molecule, and for each count a folder with a STAR file of poses."""
    pixel_size = EDGE / box
    place, mass = molecule()
    beads = Beads(place * EDGE, mass, box, pixel_size)
    mrc.write(folder / "map.mrc", beads.density().float(), pixel_size)
    for count in counts:
        small = Beads(place * EDGE, mass, 8, EDGE / 8)
        plan = particle_set.Plan(count, shift=pixel_size)
        particle_set.simulate(folder / str(count) / "poses", small, plan, Exposure())


def by_instamap(folder: Path, count: int) -> Run:
    """Images of map.mrc at the poses of a set of `count`."""
    star = folder / str(count) / POSES
    with tempfile.TemporaryDirectory(dir=folder) as out:
        words = ["simulate", folder / "map.mrc", "--poses", star, "-o", Path(out) / "set"]
        return succeeded(measure([INSTAMAP, *words]))


def by_relion(folder: Path, count: int, pixel_size: float) -> Run:
    """The same by relion_project, without noise."""
    star = folder / str(count) / POSES
    with tempfile.TemporaryDirectory(dir=folder) as out:
        words = ["--i", folder / "map.mrc", "--ang", star, "--ctf", "--angpix", pixel_size]
        return succeeded(measure([RELION, *words, "--o", Path(out) / "images"]))


@contextmanager
def threads_of_children(count: int) -> Iterator[None]:
    """As many threads in the programs of the block."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def compare(box: int, count: int, threads: list[int], repeats: int) -> list[dict]:
    """Both programs in turn, on a set and a quarter of it."""
    counts = [count // 4, count]
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, box, counts)
        for _ in range(repeats):
            for number_of_threads in threads:
                with threads_of_children(number_of_threads):
                    pair = [by_instamap(folder, each) for each in counts]
                results.append(numbers(f"instamap, {number_of_threads} threads", box, counts, pair))
            if shutil.which(RELION):
                pair = [by_relion(folder, each, EDGE / box) for each in counts]
                results.append(numbers(RELION, box, counts, pair))
    return results


def numbers(program: str, box: int, counts: list[int], pair: list[Run]) -> dict:
    """One program on a small and a large set."""
    small, large = pair
    between = counts[1] - counts[0]
    each = (large.seconds - small.seconds) / between
    each_cpu = (large.cpu_seconds - small.cpu_seconds) / between
    return {
        "program": program,
        "box": box,
        "images": counts[1],
        "seconds": large.seconds,
        "cpu_seconds": large.cpu_seconds,
        "ms_each": 1e3 * each,
        "cpu_ms_each": 1e3 * each_cpu,
        "fixed_seconds": large.seconds - counts[1] * each,
        "memory": large.anonymous,
    }


def of_model(model: Path, count: int, threads: list[int]) -> list[dict]:
    """One set of an atomic model, whole."""
    results = []
    for number_of_threads in threads:
        with tempfile.TemporaryDirectory() as out, threads_of_children(number_of_threads):
            words = [
                "simulate",
                model,
                "-n",
                count,
                "--box",
                MODEL_BOX,
                "--pixel",
                EDGE / MODEL_BOX,
            ]
            run = succeeded(measure([INSTAMAP, *words, "-o", Path(out) / "set"]))
        results.append(
            {
                "program": f"instamap, {number_of_threads} threads, {model.name}",
                "box": MODEL_BOX,
                "images": count,
                "seconds": run.seconds,
                "cpu_seconds": run.cpu_seconds,
                "memory": run.anonymous,
            }
        )
    return results


KEYS = ("seconds", "cpu_seconds", "ms_each", "cpu_ms_each", "fixed_seconds")


def summary(results: list[dict]) -> tuple[list[list], list[str]]:
    """Rows of medians, and ratios of these to relion_project's, in words."""
    cases = dict.fromkeys((one["program"], one["box"], one["images"]) for one in results)
    middle = {}
    for case in cases:
        of_case = [one for one in results if (one["program"], one["box"], one["images"]) == case]
        middle[case] = {key: median(one.get(key) for one in of_case) for key in (*KEYS, "memory")}
    rows = []
    words = []
    for (program, box, images), values in middle.items():
        memory = values["memory"]
        shown = [number(values[key]) for key in KEYS]
        megabytes = number(None if memory is None else memory / 1e6, ".0f")
        rows.append([program, str(box), str(images), *shown, megabytes])
        theirs = middle.get((RELION, box, images))
        if theirs and program != RELION:
            each = number(ratio(values["ms_each"], theirs["ms_each"]), ".2f")
            cpu = number(ratio(values["cpu_ms_each"], theirs["cpu_ms_each"]), ".2f")
            whole = number(ratio(values["seconds"], theirs["seconds"]), ".2f")
            words.append(
                f"{program}, {box} px: {each} of {RELION}'s time for one image more ({cpu} of its"
                f" processor time), {whole} for the whole set"
            )
    return rows, words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boxes", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--counts", type=int, nargs="+", default=[2000, 400], help="of each box")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", type=Path, help="PDB or mmCIF file, perhaps gzipped")
    parser.add_argument("--model-count", type=int, default=10_000)
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    where = environment()
    warm_up()
    results = []
    for box, count in zip(options.boxes, options.counts, strict=True):
        results += compare(box, count, options.threads, options.repeats)
    if options.model:
        results += of_model(options.model, options.model_count, options.threads)
    rows, words = summary(results)
    show(table(HEAD, rows))
    for line in words:
        show(line)
    save(options.out, "simulate", where, results)


if __name__ == "__main__":
    main()
