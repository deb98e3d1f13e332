"""Hidden motion found by instamap and, in the same time, by cryoDRGN: the order of the particles,
the maps of states, time and memory.

    python -m benchmarks.peers.motion --data hinge dihedral pair [--cryodrgn ENV] [--make PATH]
        [--score PATH] [--out FILE.json]

A set holds truth_labels.npz (the state of each particle) and truth_states.npy (their maps), which
are read for scoring alone. SPEARMAN: rank correlation of the best coordinate with the hidden one,
sign ignored. AUC: mean FSC over all shells against the true map of a state, mean over --states,
each at the median of the coordinates of the particles that truly are in that state; WORST and BEST
of them. instamap runs once, with its defaults, as a process of its own; its maps of states are
means of both halves'. Its held-out gains are in the JSON. Beside it:

- (consensus): the one map of `instamap reconstruct` without deformation against every state: what
ignoring the motion costs.
- (oracle window): relion_reconstruct on the images whose true state is at most --window away: what
sorting without error would give to a
  program that does not pool images over states. It reads the truth; nothing else here does.
- cryoDRGN 4.3.1 with --cryodrgn, the folder of its own virtual environment: see
`benchmarks.peers.cryodrgn`. It gets the wall time of instamap
  on that set, or --budget seconds.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.lib import runs, sets
from benchmarks.lib.common import environment
from benchmarks.lib.options import parser
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
    "SPEARMAN",
    "AUC",
    "WORST",
    "BEST",
    "SECONDS",
    "CPU S",
    "RSS MB",
    "ANON MB",
    "NOTE",
]
STATES = (2, 10, 18, 25, 33, 40, 47)


def labels(folder: Path) -> torch.Tensor:
    """True state of every particle "n"."""
    file = folder / "truth_labels.npz"
    if not file.exists():
        sys.exit(
            f"'{folder}' has no {file.name}, so no motion that is known; give a set with --motion"
            " of make_particles.py"
        )
    return torch.from_numpy(np.load(file)["state"])


def places(latents: torch.Tensor, truth: torch.Tensor, states: list[int]) -> torch.Tensor:
    """Median coordinates "S L" of the particles that truly are in each state, of "n L" and "n"."""
    return torch.stack([latents[truth == state].double().quantile(0.5, dim=0) for state in states])


def judge(options, folder: Path, maps: list[Path], latents: Path | None = None) -> dict:
    """What the outside tool says of one map for each of --states and of the coordinates."""
    found = runs.score(
        options.score, "states", folder, *maps, "--state", ",".join(map(str, options.states))
    )
    kept = {
        "auc": found["auc_mean"],
        "auc_each": found["auc_each"],
        "res_0.5_each": found["res_0.5_each"],
    }
    if latents is None:
        return kept
    said = runs.score(options.score, "latents", folder, latents)
    return {
        **kept,
        "spearman": said["best_spearman"],
        "neighbour_distance": said["neighbour_over_random_distance"],
    }


def by_bending(options, folder: Path, work: Path, seed: int) -> dict:
    """`instamap reconstruct --deform bending-field`, its coordinates and its maps of states."""
    out = options.fitted or work / "bending"
    timed = {}
    if options.fitted is None:
        run = runs.by_instamap(
            folder, out, seed, "--deform", "bending-field", "-D", f"latent={options.latent}"
        )
        if run.code:
            return {"failed": run.output[-800:]}
        timed = run.numbers()
    try:
        motion = MotionModel.open(out)
    except InstamapError as error:
        return {"failed": str(error)}
    maps = [work / f"bending_{state}.mrc" for state in options.states]
    for place, file in zip(
        places(motion.latents, labels(folder), options.states), maps, strict=True
    ):
        mrc.write(file, motion.conformation(place), motion.scene.pixel_size)
    said = json.loads((out / "motion.json").read_text(encoding="utf-8"))
    note = f"halves' coordinates correlate by {number(said.get('agreement'), '+.2f')}"
    return {
        **timed,
        **judge(options, folder, maps, out / "latents.npy"),
        "motion": said,
        "note": note,
    }


def by_consensus(options, folder: Path, work: Path, seed: int) -> dict:
    """One map for all states."""
    run = runs.by_instamap(folder, work / "consensus", seed)
    if run.code:
        return {"failed": run.output[-800:]}
    return {
        **run.numbers(),
        **judge(options, folder, [work / "consensus" / "map.mrc"] * len(options.states)),
    }


def by_oracle(options, folder: Path, work: Path) -> dict:
    """relion_reconstruct on the images near each state; the truth chooses them."""
    truth = labels(folder)
    particles = star.read(folder / "particles.star", ctf=False)
    total = None
    maps = []
    counts = []
    for state in options.states:
        rows = ((truth - state).abs() <= options.window).nonzero()[:, 0]
        file = work / f"window_{state}.mrc"
        run = runs.relion_of_rows(folder, particles, rows, file)
        total = run if total is None else total + run
        if run.code:
            return {"failed": run.output[-800:]}
        maps.append(file)
        counts.append(len(rows))
    return {
        **total.numbers(),
        **judge(options, folder, maps),
        "images": counts,
        "note": f"{min(counts)} to {max(counts)} images a map",
    }


def by_cryodrgn(options, folder: Path, work: Path, seed: int, budget: float) -> dict:
    """cryoDRGN in `budget` seconds, its coordinates and its maps of states."""
    settings = cryodrgn.Settings(options.width, options.depth, options.learning_rate, options.box)
    try:
        fit = cryodrgn.fit(options.cryodrgn, folder, work / "cryodrgn", budget, settings, seed)
        where = places(fit.latents, labels(folder), options.states)
        maps, checks = cryodrgn.maps(options.cryodrgn, fit, where, work / "consensus" / "map.mrc")
    except cryodrgn.Failed as failure:
        return {"failed": str(failure)}
    np.save(fit.folder / "latents.npy", fit.latents.numpy())
    note = f"{fit.epochs} epochs; consensus correlation {checks['correlation']:+.2f}"
    scores = judge(options, folder, maps, fit.folder / "latents.npy")
    return {
        **fit.run.numbers(),
        **scores,
        **fit.numbers(),
        **checks,
        "budget": budget,
        "note": note,
    }


def turn(options, folder: Path, work: Path, seed: int) -> list[dict]:
    """All programs on one set, one by one: cryoDRGN's time is known only after instamap's."""
    found = {
        "instamap": by_bending(options, folder, work, seed),
        "(consensus)": by_consensus(options, folder, work, seed),
    }
    budget = options.budget or found["instamap"].get("seconds")
    if options.cryodrgn and budget and "failed" not in found["(consensus)"]:
        found["cryoDRGN"] = by_cryodrgn(options, folder, work, seed, budget)
    if shutil.which(runs.RELION) and seed == options.seeds[0]:  # it draws nothing at random
        found["(oracle window)"] = by_oracle(options, folder, work)
    for name, result in found.items():
        if "failed" in result:
            show(f"{name} failed on {folder.name}:\n{result['failed']}")
    return [
        {"set": folder.resolve().name, "seed": seed, "program": name, **result}
        for name, result in found.items()
    ]


def row(result: dict) -> list[str]:
    """A line of the table."""
    each = result.get("auc_each") or [None]
    scores = [
        number(result.get("spearman"), ".4f"),
        number(result.get("auc"), ".4f"),
        number(min(each, key=lambda v: v or 0), ".3f"),
    ]
    times = [number(result.get(key), ".0f") for key in ("seconds", "cpu_seconds")]
    sizes = [number(megabytes(result.get(key)), ".0f") for key in ("rss", "anonymous")]
    best = number(max(each, key=lambda v: v or 0), ".3f")
    note = "failed" if "failed" in result else result.get("note", "-")
    return [
        result["set"],
        str(result["seed"]),
        result["program"],
        *scores,
        best,
        *times,
        *sizes,
        note,
    ]


def chosen() -> argparse.Namespace:
    """The options of the command line."""
    made = parser(__doc__, seeds=(0,))
    made.add_argument(
        "--states",
        type=lambda text: [int(word) for word in text.split(",")],
        default=list(STATES),
        metavar="I,J,...",
    )
    made.add_argument(
        "--latent",
        default="auto",
        help="coordinates that instamap is asked for  [default: %(default)s, as instamap's]",
    )
    made.add_argument(
        "--window", type=int, default=3, help="states to either side that the oracle may use"
    )
    made.add_argument(
        "--fitted",
        type=Path,
        metavar="DIR",
        help="score this finished run of instamap instead of a new one, without times",
    )
    made.add_argument(
        "--cryodrgn", type=Path, metavar="ENV", help="virtual environment with cryoDRGN"
    )
    made.add_argument(
        "--budget", type=float, help="seconds for cryoDRGN  [default: what instamap took]"
    )
    made.add_argument("--width", type=int, default=64, help="of cryoDRGN's networks")
    made.add_argument("--depth", type=int, default=2, help="of cryoDRGN's networks")
    made.add_argument(
        "--box",
        type=int,
        default=0,
        help="of cryoDRGN's images, cropped: more epochs, coarser maps  [default: theirs]",
    )
    made.add_argument("--learning-rate", type=float, default=1e-3, help="of cryoDRGN")
    made.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    return made.parse_args()


def main() -> None:
    options = chosen()
    where = environment()
    folders = [sets.find(folder, options.make) for folder in options.data]
    results = []
    if options.fitted and len(folders) * len(options.seeds) > 1:
        sys.exit("--fitted is one run; give one set in --data and one seed")
    runs.warm_up()
    for folder in folders:
        labels(folder)  # before hours are spent on what cannot be scored
        for seed in options.seeds:
            with tempfile.TemporaryDirectory() as work:
                results += turn(options, folder, Path(work), seed)
    rows = [row(result) for result in results]
    show((markdown if options.markdown else table)(HEAD, rows))
    said = {
        "sets": [sets.describe(folder) for folder in folders],
        "states": options.states,
        "seeds": options.seeds,
    }
    save(options.out, "motion", where, results, **said)


if __name__ == "__main__":
    main()
