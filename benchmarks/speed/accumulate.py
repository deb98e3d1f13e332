"""Time per image of gathering b and K from particles, beside relion_reconstruct in the same run.

    python -m benchmarks.speed.accumulate [--count 4000] [--box 64] [--repeats 5]

Writes a table, then all numbers and the environment as one line of JSON (`| tail -1`): milliseconds
per image, median (least to most). "each" is what one image more costs, from a set and a quarter of
it: (T(n) - T(n/4)) / (3n/4). The rest is "fixed", in seconds: RELION spends seconds on its gridding
correction however few the images, so ratios of whole runs say little of speed per image.

The floor, for a box of D = 64 and one image: π/8 D² = 1,600 Fourier components, each added to 5³
cells of 3 numbers. That is 6e5 multiply-adds in 4e4 vector operations of 16 numbers, each a load
and a store of 64 bytes in the cache: at two cycles apiece 80,000 cycles or 30 µs at 3 GHz. Window
weights, sorting (24 bytes written and read per component) and the pass over the image's transform
add as much again. Without sorting, each image would touch 0.6 MB of a grid of 30 MB: 10,000 cache
lines that are not in the cache. The FFTs at the end ("finish") cost the same whatever the number of
images.

RELION adds each component to 2³ cells of a grid of 128³. It reads the images too, so "whole" is
what to compare with it: STAR file, images, CTF, both sums and the last FFTs, but not the start of
Python. It uses one thread. CPU time ("cpu", and that of "each" and "fixed") is given beside wall
time, since other work on the machine disturbs it less.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.lib.common import environment
from instamap.data.particles import Particles
from instamap.fourier.ctf import ctf
from instamap.simulate import particle_set
from instamap.statistics.accumulator import Accumulator

BATCH = 512


def whole(path: Path, backend: str) -> dict[str, float]:
    """Seconds that reading, adding and finishing took, and their sum."""
    took = {"read": 0.0, "ctf": 0.0, "add": 0.0}
    start = time.perf_counter()
    particles = Particles.open(path)
    accumulator = Accumulator(particles.box, particles.pixel_size, backend=backend)
    noise = torch.ones(particles.box // 2 + 1)
    took["read"] += (now := time.perf_counter()) - start
    for rows in torch.arange(particles.count).split(BATCH):
        batch = particles.batch(rows)
        took["read"] += (then := time.perf_counter()) - now
        transfer = ctf(batch.views.optics, particles.box, particles.pixel_size)
        took["ctf"] += (now := time.perf_counter()) - then
        accumulator.add(batch.images, batch.views, noise_variance=noise, ctf=transfer)
        took["add"] += (then := time.perf_counter()) - now
        now = then
    accumulator.finish()
    return took | {"finish": time.perf_counter() - now, "whole": time.perf_counter() - start}


def relion(path: Path) -> dict[str, float]:
    """Wall seconds of relion_reconstruct, its start included."""
    start = time.perf_counter()
    command = ["relion_reconstruct", "--i", path.name, "--o", "relion.mrc", "--ctf"]
    subprocess.run(command, cwd=path.parent, check=True, capture_output=True)
    return {"whole": time.perf_counter() - start}


def measured(run: Callable[[], dict[str, float]], threads: int) -> dict[str, float]:
    """What `run` says it took, and the CPU seconds of this process and of its children."""
    torch.set_num_threads(threads)
    before = cpu_seconds()
    took = run()
    return took | {"cpu": cpu_seconds() - before}


def cpu_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def summary(turns: list[dict[str, dict[str, float]]], count: int) -> dict[str, dict[str, float]]:
    """Of turns with a "large" set of `count` images and a "small" one of a quarter: milliseconds
    per image of the large one by stage, CPU milliseconds of each further image, CPU seconds that
    are the same for both.
    """
    found = {
        stage: spread([1e3 * turn["large"][stage] / count for turn in turns])
        for stage in turns[0]["large"]
    }
    return found | {
        "each": spread([1e3 * each(turn, count) for turn in turns]),
        "fixed": spread([fixed(turn, count) for turn in turns]),
    }


def each(turn: dict[str, dict[str, float]], count: int) -> float:
    return (turn["large"]["cpu"] - turn["small"]["cpu"]) / (count - count // 4)


def fixed(turn: dict[str, dict[str, float]], count: int) -> float:
    return turn["large"]["cpu"] - count * each(turn, count)


def ratios(runs: dict[str, list[dict]], count: int) -> dict[str, dict[str, float]]:
    """RELION's time over that of each other way, of the pairs of one turn: for one image more, and
    for the whole of the large set.
    """
    theirs = runs.get("relion_reconstruct", [])
    of = {
        "each": lambda turn: each(turn, count),
        "cpu": lambda turn: turn["large"]["cpu"],
        "whole": lambda turn: turn["large"]["whole"],
    }
    pairs = (
        {name: list(zip(theirs, ours, strict=True)) for name, ours in runs.items()}
        if theirs
        else {}
    )
    return {
        name: {kind: spread([f(a) / f(b) for a, b in both]) for kind, f in of.items()}
        for name, both in pairs.items()
    }


def report(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """The table."""

    def cell(t):
        return f"{t['median']:.2f} ({t['least']:.2f}-{t['most']:.2f})" if t else "-"

    columns = ("read", "ctf", "add", "finish", "whole", "cpu", "each", "fixed")
    lines = [f"{'':20}" + "".join(f"{c:>19}" for c in columns)]
    return "\n".join(
        lines
        + [
            f"{name:20}" + "".join(f"{cell(times.get(c)):>19}" for c in columns)
            for name, times in results.items()
        ]
    )


def ways(threads: int) -> dict[str, tuple[Callable[[Path], dict[str, float]], int]]:
    """What is compared, and with how many threads."""
    fast = Accumulator(8, 1.0).backend
    found = {
        f"{fast}, {n} threads": (lambda path: whole(path, fast), n) for n in sorted({1, threads})
    }
    found["torch, 1 threads"] = (lambda path: whole(path, "torch"), 1)
    return found | (
        {"relion_reconstruct": (relion, 1)} if shutil.which("relion_reconstruct") else {}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=4000, help="simulated particles")
    parser.add_argument("--box", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    n = options.count
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:

        def make(name, count):
            return particle_set.demo(
                Path(folder) / name, count=count, box=options.box, pixel_size=3.0
            )

        sets = {"large": make("large", n), "small": make("small", n // 4)}
        whole(sets["small"], "auto")  # compiles, and warms the caches
        runs = {name: [] for name in ways(threads)}
        for _ in range(
            options.repeats
        ):  # in turn, so that other work on the machine meets all of them
            for name, (run, count) in ways(threads).items():
                runs[name].append(
                    {
                        which: measured(lambda path=path, run=run: run(path), count)
                        for which, path in sets.items()
                    }
                )
    torch.set_num_threads(threads)
    results = {name: summary(turns, n) for name, turns in runs.items()}
    sys.stdout.write(report(results) + "\n")
    what = {
        "benchmark": "accumulate",
        "box": options.box,
        "images": n,
        "environment": environment(),
    }
    sys.stdout.write(
        json.dumps(what | {"ms_per_image": results, "times_as_fast_as_relion": ratios(runs, n)})
        + "\n"
    )


if __name__ == "__main__":
    main()
