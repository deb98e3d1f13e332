"""A motion that is a circle: a replica of IgG-1D of CryoBench, one Fab of an antibody turned all
the way round about its hinge.

    python -m benchmarks.accuracy.igg1d --data DIR [--make make_igg1d.py]
        [--score score_cryobench.py] [--python PYTHON] [--per-state 100] [--seeds 0]
        [--cryodrgn ENV] [--fitted RUN] [--out FILE.json]

A set that is missing is made first, by the outside tool --make: 100 states of 128 px of 3 Å,
--per-state images of each. It needs finufft, which instamap does not: --python names the
interpreter of both outside tools. instamap runs once, with its defaults, as a process of its own.
Its maps of --count states are those at the median coordinate of the particles that truly are at
most one state away; the truth (truth_labels.npz, truth_states.npy) is read for this and for scoring
alone.

AUC, SD, WORST: by --score, area under the FSC of a state's map against the true one in one fixed
mask, over the frequency in 1/px, as CryoBench counts it: mean, deviation and the smallest over the
states. A perfect map has 0.492. ANGLE: median error in degrees of the angle that a particle's 16
nearest neighbours have; neighbours are sought among every other particle, errors are those of the
rest. GAIN and AGREEMENT: as in `benchmarks.accuracy.two_motions`. Beside it:

- (consensus): the one map of `instamap reconstruct` without deformation against all states.
- (true labels): relion_reconstruct on a state's own images, for --relion states.
- cryoDRGN 4.3.1 with --cryodrgn, the folder of its own virtual environment: see
`benchmarks.peers.cryodrgn`. It gets the wall time of instamap (--budget to change it).
- Rows of CryoBench IgG-1D: areas that others published, of the original set (100,000 images) and
not of the replica (NeurIPS 2025, CryoSPIRE, table 2).
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.lib import runs, sets
from benchmarks.lib.common import environment
from benchmarks.lib.options import SCORE, parser
from benchmarks.lib.report import markdown, megabytes, number, save, show, table
from benchmarks.peers import cryodrgn
from instamap.data.formats import star
from instamap.errors import InstamapError
from instamap.maps import mrc
from instamap.motion.motion_model import MotionModel

HEAD = [
    "SET",
    "SEED",
    "PROGRAM",
    "STATES",
    "AUC",
    "SD",
    "WORST",
    "ANGLE",
    "GAIN",
    "AGREEMENT",
    "SECONDS",
    "CPU S",
    "RSS MB",
    "ANON MB",
    "NOTE",
]
PUBLISHED = {
    "CryoSPIRE": 0.402,
    "recovar": 0.391,
    "cryoDRGN": 0.366,
    "3DVA": 0.351,
    "3DFlex": 0.336,
    "3D classification": 0.297,
}
SOURCE = "table 2 of CryoSPIRE, NeurIPS 2025; 100,000 images"
NEIGHBOURS = 16
ROWS_AT_ONCE = 1000  # of particles, while neighbours are sought
WINDOW = 1  # states to either side whose particles say where a state is


def found(folder: Path, options: argparse.Namespace) -> Path:
    """The set, made where it is missing. Exits where it cannot be, or has no truth."""
    if not (folder / "particles.star").exists():
        if options.make is None:
            sys.exit(f"no set in '{folder}'; give a folder with particles.star, or --make")
        show(f"making '{folder}': {options.per_state} images of each state")
        words = ["--out", folder, "--per-state", options.per_state, "--seed", options.set_seed]
        command = [options.python, options.make, *words]
        if subprocess.run([str(word) for word in command]).returncode:
            sys.exit(f"'{options.make}' could not make the set '{folder}'; see above")
    for name in ("truth_labels.npz", "truth_states.npy", "recipe.json"):
        if not (folder / name).exists():
            sys.exit(f"'{folder}' has no {name}, so no motion that is known; give another folder")
    return folder


def labels(folder: Path) -> Tensor:
    """The true state "n" of every particle."""
    return torch.from_numpy(np.load(folder / "truth_labels.npz")["state"])


def spread_out(states: int, count: int) -> list[int]:
    """The numbers of `count` states at equal distances on the circle."""
    return list(range(0, states, max(1, states // count)))[:count]


def places(z: Tensor, truth: Tensor, chosen: Iterable[int], states: int) -> Tensor:
    """Median of the coordinates "n L" of particles that truly are near each state, "S L"."""
    medians = []
    for state in chosen:
        away = (truth - state + states // 2) % states - states // 2
        near = z[away.abs() <= WINDOW].double()
        medians.append(near.quantile(0.5, dim=0))
    return torch.stack(medians)


def angle_error(z: Tensor, angle: Tensor) -> float:
    """Median error in degrees of the angles "n" (radians) that neighbours in the coordinates "n L"
    have: those of every other particle, held against the rest.
    """
    known = z[::2].double()
    of_known = torch.polar(torch.ones_like(angle[::2]), angle[::2])
    errors = []
    for rows in torch.arange(1, len(z), 2).split(ROWS_AT_ONCE):
        distance = torch.cdist(z[rows].double(), known)
        nearest = distance.topk(min(NEIGHBOURS, len(known)), largest=False).indices
        guess = of_known[nearest].mean(1)
        off = guess * torch.polar(torch.ones_like(angle[rows]), -angle[rows])
        errors.append(off.angle().abs())
    return math.degrees(torch.cat(errors).median())


def judge(
    options: argparse.Namespace, folder: Path, maps: Iterable[Tensor], chosen: list[int]
) -> dict:
    """What the outside tool says of one map for each of the chosen states."""
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / "maps.npy"
        stack = None
        for row, volume in enumerate(maps):
            if stack is None:
                shape = (len(chosen), *volume.shape)
                stack = np.lib.format.open_memmap(file, "w+", np.float32, shape)
            stack[row] = volume.numpy()
        del stack
        listed = Path(work) / "states.txt"
        listed.write_text("\n".join(map(str, chosen)) + "\n")
        words = [options.python, options.score, folder, file, listed]
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"'{options.score}' failed; give --score, or --python:\n{done.stderr}")
    told = json.loads(done.stdout.splitlines()[-1])
    return {
        "states": chosen,
        "auc": told["auc_masked"],
        "sd": told["sd"],
        "worst": told["worst"],
        "auc_whole": told["auc_whole"],
        "ceiling": told["ceiling"],
    }


def by_motion(options: argparse.Namespace, folder: Path, work: Path, seed: int) -> dict:
    """`instamap reconstruct --deform bending-field`: its verdict, coordinates, maps of states."""
    out = options.fitted or work / "moving"
    timed = {}
    if options.fitted is None:
        run = runs.by_instamap(folder, out, seed, "--deform", "bending-field")
        if run.code:
            return {"failed": run.output[-800:]}
        timed = run.numbers()
    try:
        motion = MotionModel.open(out)
    except InstamapError as error:
        return {"failed": str(error)}
    recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    truth = labels(folder)
    chosen = spread_out(recipe["states"], options.count)
    where = places(motion.latents, truth, chosen, recipe["states"])
    angle = truth.double() * math.radians(recipe["amplitude"]) / recipe["states"]
    record = json.loads((out / "motion.json").read_text(encoding="utf-8"))
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    return {
        **timed,
        **judge(options, folder, (motion.conformation(z) for z in where), chosen),
        **runs.gains(record),
        "angle": angle_error(motion.latents, angle),
        "verdict": result["verdict"],
        "motion": record,
        "note": described(record),
    }


def described(record: dict) -> str:
    """What motion.json says was found, in a few words."""
    if not record["motion_found"]:
        return "no motion found"
    shape = "a circle" if record["closed"] else f"{record['coordinates']} coordinate(s)"
    return f"{record['description']}, {shape}"


def by_consensus(options: argparse.Namespace, folder: Path, work: Path, seed: int) -> dict:
    """One map for all states."""
    out = options.consensus or work / "consensus"
    timed = {}
    if options.consensus is None:
        run = runs.by_instamap(folder, out, seed)
        if run.code:
            return {"failed": run.output[-800:]}
        timed = run.numbers()
    volume, _ = mrc.read(out / "map.mrc")
    recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    chosen = spread_out(recipe["states"], options.count)
    return {
        **timed,
        **judge(options, folder, (volume for _ in chosen), chosen),
    }


def by_labels(options: argparse.Namespace, folder: Path, work: Path) -> dict:
    """relion_reconstruct on the images of each of some states; the truth chooses them."""
    truth = labels(folder)
    recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    chosen = spread_out(recipe["states"], options.relion)
    particles = star.read(folder / "particles.star", ctf=False)
    total = None
    maps = []
    counts = []
    for state in chosen:
        rows = (truth == state).nonzero()[:, 0]
        file = work / f"state_{state}.mrc"
        run = runs.relion_of_rows(folder, particles, rows, file)
        total = run if total is None else total + run
        if run.code:
            return {"failed": run.output[-800:]}
        maps.append(mrc.read(file)[0])
        counts.append(len(rows))
    return {
        **total.numbers(),
        **judge(options, folder, maps, chosen),
        "images": counts,
        "note": f"{min(counts)} to {max(counts)} images a map",
    }


def by_cryodrgn(
    options: argparse.Namespace, folder: Path, work: Path, seed: int, budget: float
) -> dict:
    """cryoDRGN in `budget` seconds, its coordinates and its maps of states."""
    settings = cryodrgn.Settings(
        options.width, options.depth, options.learning_rate, options.box, options.latent
    )
    truth = labels(folder)
    recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    chosen = spread_out(recipe["states"], options.count)
    consensus = (options.consensus or work / "consensus") / "map.mrc"
    try:
        fit = cryodrgn.fit(options.cryodrgn, folder, work / "cryodrgn", budget, settings, seed)
        where = places(fit.latents, truth, chosen, recipe["states"])
        files, checks = cryodrgn.maps(options.cryodrgn, fit, where, consensus)
    except cryodrgn.Failed as failure:
        return {"failed": str(failure)}
    angle = truth.double() * math.radians(recipe["amplitude"]) / recipe["states"]
    return {
        **fit.run.numbers(),
        **judge(options, folder, (mrc.read(file)[0] for file in files), chosen),
        **fit.numbers(),
        **checks,
        "angle": angle_error(fit.latents, angle),
        "budget": budget,
        "note": f"{fit.epochs} epochs; consensus correlation {checks['correlation']:+.2f}",
    }


def turn(options: argparse.Namespace, folder: Path, work: Path, seed: int) -> list[dict]:
    """All programs on one set, one by one."""
    results = {"instamap": by_motion(options, folder, work, seed)}
    if options.consensus or not options.fitted:
        results["(consensus)"] = by_consensus(options, folder, work, seed)
    budget = options.budget or results["instamap"].get("seconds")
    if options.cryodrgn and budget:
        results["cryoDRGN"] = by_cryodrgn(options, folder, work, seed, budget)
    first = seed == options.seeds[0]  # relion_reconstruct draws nothing at random
    if first and options.relion and shutil.which(runs.RELION):
        results["(true labels)"] = by_labels(options, folder, work)
    for name, result in results.items():
        if "failed" in result:
            show(f"{name} failed on {folder.name}:\n{result['failed']}")
    what = f"{folder.resolve().name} (replica)"
    return [
        {"set": what, "seed": seed, "program": name, **result} for name, result in results.items()
    ]


def published() -> list[dict]:
    """What others reached on the original set, as they published it."""
    what = "CryoBench IgG-1D (published)"
    return [
        {"set": what, "program": name, "auc": auc, "note": SOURCE}
        for name, auc in PUBLISHED.items()
    ]


def row(result: dict) -> list[str]:
    """A line of the table."""
    states = result.get("states")
    scores = [number(result.get(key), ".4f") for key in ("auc", "sd", "worst")]
    motion = [
        number(result.get("angle"), ".1f"),
        number(result.get("gain"), "+.3g"),
        number(result.get("agreement"), ".3f"),
    ]
    times = [number(result.get(key), ".0f") for key in ("seconds", "cpu_seconds")]
    sizes = [number(megabytes(result.get(key)), ".0f") for key in ("rss", "anonymous")]
    return [
        result["set"],
        number(result.get("seed"), "d"),
        result["program"],
        number(states and len(states), "d"),
        *scores,
        *motion,
        *times,
        *sizes,
        "failed" if "failed" in result else result.get("note", "-"),
    ]


def chosen_options() -> argparse.Namespace:
    """The options of the command line."""
    made = parser(__doc__, score=False, make=False, seeds=(0,))
    made.add_argument("--make", type=Path, help="make_igg1d.py, to make sets that are missing")
    made.add_argument(
        "--score",
        type=Path,
        default=SCORE.with_name("score_cryobench.py"),
        help="score_cryobench.py, independent of instamap  [default: beside $INSTAMAP_SCORE]",
    )
    made.add_argument(
        "--python",
        type=Path,
        default=Path(sys.executable),
        help="interpreter of --make and --score, which need mrcfile, and finufft to make sets "
        " [default: the one that runs this]",
    )
    made.add_argument(
        "--per-state", type=int, default=100, help="of missing sets: images of each of 100 states"
    )
    made.add_argument("--set-seed", type=int, default=1, help="of missing sets")
    made.add_argument("--count", type=int, default=20, help="states whose maps are scored")
    made.add_argument(
        "--relion", type=int, default=20, help="states that relion_reconstruct gets; 0 for none"
    )
    made.add_argument(
        "--fitted",
        type=Path,
        metavar="RUN",
        help="score this finished run of instamap instead of a new one, without times",
    )
    made.add_argument(
        "--consensus",
        type=Path,
        metavar="RUN",
        help="a finished run without deformation, instead of a new one; with --fitted alone there"
        " is none",
    )
    made.add_argument(
        "--cryodrgn", type=Path, metavar="ENV", help="virtual environment with cryoDRGN"
    )
    made.add_argument(
        "--budget", type=float, help="seconds for cryoDRGN  [default: what instamap took]"
    )
    for name, value, what in (
        ("latent", 8, "dimensions of its coordinates"),
        ("width", 256, "of its networks"),
        ("depth", 3, "of its networks"),
        ("box", 64, "of its images, cropped: more epochs, coarser maps; 0 for theirs"),
    ):
        made.add_argument(
            f"--{name}", type=int, default=value, help=f"cryoDRGN: {what}  [default: %(default)s]"
        )
    made.add_argument("--learning-rate", type=float, default=1e-3, help="of cryoDRGN")
    made.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    return made.parse_args()


def main() -> None:
    options = chosen_options()
    where = environment()
    before = [run for run in (options.fitted, options.consensus) if run is not None]
    if options.cryodrgn and options.fitted and not (options.consensus and options.budget):
        sys.exit("beside --fitted cryoDRGN needs --consensus, and --budget for its time")
    if before and len(options.data) * len(options.seeds) > 1:
        sys.exit("--fitted and --consensus are one run; give one set in --data and one seed")
    folders = [found(folder, options) for folder in options.data]
    if not options.fitted:
        runs.warm_up()
    results = []
    for folder in folders:
        for seed in options.seeds:
            with tempfile.TemporaryDirectory() as work:
                results += turn(options, folder, Path(work), seed)
    results += published()
    rows = [row(result) for result in results]
    show((markdown if options.markdown else table)(HEAD, rows))
    told = {
        "sets": [sets.describe(folder) for folder in folders],
        "seeds": options.seeds,
        "finished_before": [run.name for run in before],
    }
    save(options.out, "igg1d", where, results, **told)


if __name__ == "__main__":
    main()
