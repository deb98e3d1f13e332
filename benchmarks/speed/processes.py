"""How much faster two processes gather statistics than one, each with one thread, in one run.

    python -m benchmarks.speed.processes [--count 16000] [--box 64] [--repeats 3] [--particles STAR]

Writes a table, then all numbers and the environment as one line of JSON (`| tail -1`). In each of
--repeats turns torchrun starts one process and then two of this file, which open the particles, and
gather the statistics of all sets as `reconstruct` does: the first time to be warm, the second to be
measured, from when all are ready until the first process has the sums.

The bar is 1.7. "wall" is the ratio of medians of the time by the clock; on a machine that others
use it says little, since one process is given a larger share of the time that is left than each of
two. "processor" is the ratio of what one process uses to what the busier of two uses, which is the
ratio of times on two cores that nobody else uses, but for waiting. "load" is that of the machine
before each turn.

What is not shared out: the transforms by which each process ends each set ("finish" of
`benchmarks.speed.accumulate`, 0.1 s at 64 px), and adding up. It is as much for few images as for
many, so with few of them the ratio falls.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.lib.common import environment
from instamap.model import make_part
from instamap.progress import SILENT
from instamap.simulate import particle_set
from instamap.statistics.streaming import accumulate
from instamap.workflows import processes, shared_statistics
from instamap.workflows.choose import resolve
from instamap.workflows.prepare import open_dataset
from instamap.workflows.settings import Settings

BAR = 1.7
WARM_AND_MEASURED = 2
SHARE = "--share"  # for torchrun: be one of the processes
COUNTS = (1, 2)


@dataclass(frozen=True)
class Turn:
    """Seconds by the clock, and the processor seconds of each process."""

    wall: float
    processor: list[float]


def processor_seconds() -> float:
    """What this process has used, all threads together."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def share(star: Path) -> None:
    """Gathers this process's share as often as is needed; the first writes what it took."""
    torch.set_num_threads(1)
    settings = resolve(Settings(particles=star))
    with processes.joined() as together:
        leads = together is None or together.leads
        gather = _leader(settings, together) if leads else _worker(settings, together)
        for _ in range(WARM_AND_MEASURED):
            if together is not None:
                torch.distributed.barrier()
            start = time.perf_counter()
            used = processor_seconds()
            gather()
            turn = Turn(time.perf_counter() - start, _of_all(processor_seconds() - used, together))
        if leads:
            sys.stdout.write(json.dumps({"wall": turn.wall, "processor": turn.processor}) + "\n")


def _leader(settings, together):
    dataset = open_dataset(settings)
    likelihood = make_part("likelihood", settings.likelihood, dataset.scene)
    if together is None:
        return lambda: accumulate(dataset.particles, dataset.sets, likelihood, cube=dataset.cube)
    task = shared_statistics.Task(dataset.scene, dataset.sets, dataset.cube, None, None, None)
    return lambda: shared_statistics.gather(together, dataset.particles, task, likelihood, SILENT)


def _worker(settings, together):
    return lambda: shared_statistics.contribute(together, settings)


def _of_all(seconds: float, together) -> list[float]:
    if together is None:
        return [seconds]
    each = [None] * together.count
    torch.distributed.all_gather_object(each, seconds)
    return each


def started(star: Path, count: int) -> Turn:
    """A turn of so many processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command = [sys.executable, *torchrun, "-m", "benchmarks.speed.processes", SHARE, str(star)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{count} processes have not ended well:\n{done.stderr}")
    return Turn(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=16000, help="simulated particles")
    parser.add_argument("--box", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--particles", type=Path, help="a STAR file, in place of simulated ones")
    parser.add_argument(SHARE, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.share is not None:
        share(options.share)
        return
    turns: dict[int, list[Turn]] = {count: [] for count in COUNTS}
    load = []
    with tempfile.TemporaryDirectory() as folder:
        star = options.particles or particle_set.demo(
            Path(folder) / "set", count=options.count, box=options.box, pixel_size=3.0
        )
        for _ in range(options.repeats):  # in turn, so that other work meets both
            load.append(round(os.getloadavg()[0], 2))
            for count in COUNTS:
                turns[count].append(started(star, count))
    report(options, turns, load)


def report(options: argparse.Namespace, turns: dict[int, list[Turn]], load: list[float]) -> None:
    """The table and the line of JSON."""
    wall = {n: statistics.median(one.wall for one in some) for n, some in turns.items()}
    busiest = {
        n: statistics.median(max(one.processor) for one in some) for n, some in turns.items()
    }
    sys.stdout.write(f"{'processes':>10}{'wall, s':>12}{'processor of the busiest, s':>30}\n")
    for count in COUNTS:
        sys.stdout.write(f"{count:>10}{wall[count]:>12.2f}{busiest[count]:>30.2f}\n")
    one, two = COUNTS
    ratios = {"wall": wall[one] / wall[two], "processor": busiest[one] / busiest[two]}
    told = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    sys.stdout.write(f"times as fast: {told} (bar {BAR}); load {load}\n")
    what = {
        "benchmark": "processes",
        "images": None if options.particles else options.count,
        "box": None if options.particles else options.box,
        "particles": options.particles and options.particles.name,
        "environment": environment(),
        "load": load,
        "seconds": {n: [vars(one) for one in some] for n, some in turns.items()},
        "times_as_fast": ratios,
        "bar": BAR,
    }
    sys.stdout.write(json.dumps(what) + "\n")


if __name__ == "__main__":
    main()
