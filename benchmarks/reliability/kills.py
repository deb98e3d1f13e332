"""Commands that are killed at random moments and go on: the outcome is that of an unbroken run.

    python -m benchmarks.reliability.kills [--kills 50] [--commands map motion ...] [--seed 0]
        [--out FILE.json]

Each command runs on a small set, with one thread and a checkpoint at every evaluation, and is ended
by SIGKILL at a moment drawn between a fifth of its usual time and its end, up to three times in a
row before it may go on to its end: with --resume (reconstruct, states) or by the same command again
(accumulate). Then all its arrays and tables are compared with those of an
unbroken run, byte for byte, and nothing hidden may be left in the folder. What holds times
(log.jsonl, result.json and so their checksums) is not compared.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.lib.common import environment
from benchmarks.lib.report import save, show, table
from instamap.simulate import particle_set

SHORTER = 0.7  # moments are drawn sooner where a run ended before
IN_A_ROW = 3  # kills before a run may end
EARLIEST = 0.2  # of the time of an unbroken run: libraries load before
COMPARED = (".mrc", ".npy", ".npz", ".safetensors", ".csv", ".star")
PROGRAM = (
    "import instamap.fitting.checkpoint as checkpoint;"
    " checkpoint.SECONDS_BETWEEN_CHECKPOINTS = 0.0;"
    " from instamap.cli import main; main()"
)
QUICK = ("-O", "steps=30", "-O", "evaluate_every=5")


@dataclass(frozen=True)
class Command:
    """A command line without its output folder, and the words that make it go on."""

    words: tuple[str, ...]
    resume: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What one command came to under its kills. differing: names of files; left: hidden ones."""

    kills: int
    runs: int
    differing: list[str]
    left: list[str]
    failed: str


def commands(star: Path, motion: Path) -> dict[str, Command]:
    """The commands by name. motion: the folder of a run, for the command `states`."""
    reconstruct = ("reconstruct", str(star))
    resume = ("--resume",)
    moving = ("--deform", "bending-field", "-W", "nodes=3", "-W", "dimensions=1", "-O", "steps=10")
    poses = ("--deform", "rigid", "--workflow", "poses", "-W", "rounds=1", "-O", "steps=10")
    return {
        "map": Command((*reconstruct, *QUICK), resume),
        "motion": Command((*reconstruct, *moving, "--held-out", "0.3"), resume),
        "poses": Command((*reconstruct, *poses, "--held-out", "0.2"), resume),
        "accumulate": Command(("accumulate", str(star))),
        "states": Command(("states", str(motion), "--frames", "0", "--kmeans", "3"), resume),
    }


def start(command: Command, out: Path, goes_on: bool) -> subprocess.Popen[str]:
    words = [*command.words, "-o", str(out), *(command.resume if goes_on else ())]
    one_thread = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **one_thread},
    )


def whole(command: Command, out: Path) -> float:
    """An unbroken run; its seconds."""
    began = time.monotonic()
    process = start(command, out, False)
    _, errors = process.communicate()
    if process.returncode:
        sys.exit(f"{' '.join(command.words)} failed: {errors}")
    return time.monotonic() - began


def files(folder: Path) -> dict[str, bytes]:
    """What is compared, by name."""
    found = sorted(path for path in folder.iterdir() if path.suffix in COMPARED)
    return {path.name: path.read_bytes() for path in found}


def one(command: Command, out: Path, seconds: float, draw: np.random.Generator) -> Outcome:
    """One run, killed up to three times; `seconds` is what an unbroken one takes."""
    kills = 0
    runs = 0
    goes_on = False
    while True:
        process = start(command, out, goes_on)
        runs += 1
        killed = False
        wait = draw.uniform(EARLIEST, 1) * seconds if kills < IN_A_ROW else None
        try:
            _, errors = process.communicate(timeout=wait)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            _, errors = process.communicate()
            killed = True
        kills += killed
        if not killed and process.returncode == 0:
            return Outcome(kills, runs, [], _hidden(out), "")
        if not killed and "already holds" in errors:  # killed after all was written
            return Outcome(kills, runs, [], _hidden(out), "")
        if not killed and "nothing to go on from" not in errors:
            return Outcome(kills, runs, [], _hidden(out), errors[-300:])
        goes_on = killed and bool(command.resume)


def _hidden(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir() if path.name.startswith("."))


def try_command(command: Command, work: Path, kills: int, seed: int) -> dict:
    """Kills a command so many times, in as many runs as that takes."""
    draw = np.random.default_rng(seed)
    seconds = whole(command, work / "whole")
    expected = files(work / "whole")
    outcomes = []
    while sum(outcome.kills for outcome in outcomes) < kills:
        outcome = one(command, work / "out", seconds, draw)
        if not outcome.kills:  # the machine is faster now
            seconds *= SHORTER
        found = files(work / "out")
        names = sorted({*expected, *found})
        differing = [name for name in names if expected.get(name) != found.get(name)]
        outcomes.append(
            Outcome(outcome.kills, outcome.runs, differing, outcome.left, outcome.failed)
        )
        shutil.rmtree(work / "out")
        show(f"{outcomes[-1]}")
    return {
        "seconds": seconds,
        "kills": sum(outcome.kills for outcome in outcomes),
        "outcomes": len(outcomes),
        "same": sum(not outcome.differing for outcome in outcomes),
        "failed": [outcome.failed for outcome in outcomes if outcome.failed],
        "differing": [outcome.differing for outcome in outcomes if outcome.differing],
        "left": [outcome.left for outcome in outcomes if outcome.left],
    }


def main() -> None:
    names = list(commands(Path(), Path()))
    add = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add.add_argument("--kills", type=int, default=50, help="of each command, at least")
    add.add_argument("--commands", nargs="+", default=names, choices=names)
    add.add_argument("--seed", type=int, default=0)
    add.add_argument("--out", type=Path, metavar="FILE.json")
    options = add.parse_args()
    where = environment()
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        star = particle_set.demo(work / "data", count=60, box=16, pixel_size=6.0, snr=1.0)
        every = commands(star, work / "moving")
        if "states" in options.commands:
            whole(every["motion"], work / "moving")
        for name in options.commands:
            folder = work / name
            folder.mkdir()
            result = {
                "command": name,
                **try_command(every[name], folder, options.kills, options.seed),
            }
            results.append(result)
            show(" ".join(f"{key} {value}" for key, value in result.items()))
    head = ["command", "kills", "outcomes", "same"]
    show(table(head, [[str(result[key]) for key in head] for result in results]))
    save(options.out, "kills", where, results, seed=options.seed)
    bad = [r for r in results if r["failed"] or r["left"] or r["same"] < r["outcomes"]]
    if bad:
        sys.exit(1)


if __name__ == "__main__":
    main()
