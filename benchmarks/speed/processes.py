"""How much faster two processes gather statistics than one, each with one thread, in one run.

    python -m benchmarks.speed.processes [--count 16000] [--box 64] [--repeats 3] [--particles STAR]

Writes a table, then all numbers and the environment as one line of JSON (`| tail -1`). In each of
--repeats turns torchrun starts one process and then two of this file, which open the particles and
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
from instamap.progress import Progress
from instamap.simulate import particle_set
from instamap.workflows import processes, team
from instamap.workflows.choose import resolve
from instamap.workflows.prepare import open_dataset
from instamap.workflows.processes import Processes
from instamap.workflows.settings import Settings
from instamap.workflows.shared_statistics import Gather, gather
from instamap.workflows.team import ImageSource, Member, Task, Team

BAR = 1.7
WARM_AND_MEASURED = 2
SHARE = "--share"  # for torchrun: be one of the processes
COUNTS = (1, 2)


@dataclass(frozen=True)
class Turn:
    """Seconds by the clock, and the processor seconds of each process."""

    wall: float
    processor: list[float]


class Alone(Processes):
    """One process, to which nobody listens."""

    def tell_all(self, what: object) -> None:
        pass


class ProcessorSeconds(Task):
    """What each process has used so far, all its threads together."""

    def carry_out(self, member: Member, progress: Progress) -> list[torch.Tensor]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return [torch.tensor(used.ru_utime + used.ru_stime, dtype=torch.float64)]


def share(star: Path) -> None:
    """Gathers this process's share as often as is needed; the first writes what it took."""
    torch.set_num_threads(1)
    settings = resolve(Settings(particles=star))
    with processes.joined() as together:
        if together is not None and not together.leads:
            team.contribute(together, settings)
            return
        turns = _turns(settings, together or Alone(0, 1))
        if together is not None:
            team.dismiss(together)
    sys.stdout.write(json.dumps(vars(turns[-1])) + "\n")


def _turns(settings: Settings, together: Processes) -> list[Turn]:
    """What each of the passes took, as the first process sees it."""
    dataset = open_dataset(settings)
    source = ImageSource.of(dataset.particles)
    task = Gather(source, dataset.scene, dataset.sets, dataset.cube)
    everybody = Team(together, settings, dataset.particles)
    turns = []
    for _ in range(WARM_AND_MEASURED):
        before = everybody.ask(ProcessorSeconds())
        start = time.perf_counter()
        gather(everybody, task)
        wall = time.perf_counter() - start
        after = everybody.ask(ProcessorSeconds())
        used = [float(b[0] - a[0]) for a, b in zip(before, after, strict=True)]
        turns.append(Turn(wall, used))
    return turns


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
