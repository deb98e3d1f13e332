"""Composition beside motion: are parts that come and go told from each other, and from a part that
swings?

    python -m benchmarks.accuracy.composition --data parts parts-hinge [--model 1igt.pdb.gz]
        [--seeds 0] [--deform bending-field] [--out FILE.json]

A set that is missing is made first, by instamap's own simulator, of the antibody 1igt: in a folder
whose name has no "hinge" in it both arms are present in 50 % of the particles each, whatever the
other does; in one whose name has, the second arm and the stem are, while the first arm swings about
its hinge by +-45 degrees. What is present, truth_present.npy, and the angles, truth_angles.npy, are
read for scoring alone; instamap runs once, as a process of its own.

AUC: for each part the area under the ROC of the occupancies that instamap wrote, the best pairing
of parts and occupancies; a dash where it wrote none. READ OFF: the same of a quadratic function of
all coordinates, fitted to every other particle with the truth and judged on the rest: what the
coordinates hold, whatever they are called. SPEARMAN: correlation of ranks of angle and motion's
coordinate; of the angle read off all coordinates in parentheses. SHARES: of the particles that have
each part, as instamap counts them. GAIN and AGREEMENT: as in `benchmarks.accuracy.two_motions`.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.lib import coming_and_going, runs, sets
from benchmarks.lib.coming_and_going import ANGLES, FIRST_ARM, PRESENT, SECOND_ARM, STEM, Recipe
from benchmarks.lib.common import environment
from benchmarks.lib.options import DATA, parser
from benchmarks.lib.report import megabytes, number, save, show, table

MODEL = DATA / "models" / "1igt.pdb.gz"
HEAD = [
    "SET",
    "SEED",
    "AUC",
    "READ OFF",
    "SPEARMAN",
    "SHARES",
    "GAIN",
    "AGREEMENT",
    "SECONDS",
    "CPU S",
    "ANON MB",
    "NOTE",
]


def found(folder: Path, options: argparse.Namespace) -> Path:
    """The set, made where it is missing. Exits where the folder has another one."""
    if not (folder / "particles.star").exists():
        usual = {
            name: getattr(options, name)
            for name in ("model", "count", "box", "pixel", "snr", "solvent")
        }
        recipe = Recipe(**usual)
        if "hinge" in folder.name:
            recipe = Recipe(**usual, guests=(SECOND_ARM, STEM), arm=FIRST_ARM, seed=7)
        show(f"making '{folder}': {options.count} images")
        coming_and_going.make(recipe, folder)
    if not (folder / PRESENT).exists():
        sys.exit(
            f"'{folder}' has no {PRESENT}, so no composition that is known; name a folder that is"
            " not there"
        )
    return folder


def loaded(file: Path) -> Tensor:
    return torch.from_numpy(np.load(file)).double()


def paired(occupancy: Tensor, present: Tensor) -> list[float]:
    """AUC of ROC of each true part "n G" by the occupancies "n R", in the pairing that is best; 0.5
    of a part that has none.
    """
    parts = present.shape[1]
    columns = [*occupancy.T, *[torch.zeros(len(present)) for _ in range(parts)]]
    each = [[coming_and_going.auc(one, part) for one in columns] for part in present.T]
    best = max(
        itertools.permutations(range(len(columns)), parts),
        key=lambda chosen: sum(each[part][column] for part, column in enumerate(chosen)),
    )
    return [each[part][column] for part, column in enumerate(best)]


def judge(folder: Path, out: Path) -> dict:
    """What the coordinates of the run in `out` say of parts and angles."""
    z = loaded(out / "latents.npy")
    present = loaded(folder / PRESENT)
    said = json.loads((out / "motion.json").read_text(encoding="utf-8"))
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    regions = said.get("regions", [])
    columns = z.shape[1] - len(regions)
    guess, rest = coming_and_going.read_off(z, present)
    pairs = zip(guess.T, present[rest].T, strict=True)
    scores = {
        "auc": paired(z[:, columns:], present) if regions else None,
        "read_off": [coming_and_going.auc(*pair) for pair in pairs],
        "regions": regions,
        "motion": said,
        "verdict": result["verdict"],
        **runs.gains(said),
    }
    if (folder / ANGLES).exists():
        angle = loaded(folder / ANGLES)
        of_angle, rest = coming_and_going.read_off(z, angle)
        each = [coming_and_going.spearman(one, angle[:, 0]) for one in z[:, :columns].T]
        scores["spearman"] = max(map(abs, each), default=0.0)
        read = coming_and_going.spearman(of_angle[:, 0], angle[rest, 0])
        scores["spearman_read_off"] = abs(read)
    return scores


def one(folder: Path, work: Path, seed: int, options: argparse.Namespace) -> dict:
    """A run and its scores."""
    result = {"set": folder.resolve().name, "seed": seed, "deform": options.deform}
    if options.fitted:
        return {**result, **judge(folder, options.fitted)}
    run = runs.by_instamap(folder, work, seed, "--deform", options.deform)
    if run.code:
        show(f"instamap failed on {folder.name}:\n{run.output[-800:]}")
        return {**result, "failed": run.output[-800:]}
    return {**result, **run.numbers(), **judge(folder, work), "output": run.output[-3000:]}


def row(result: dict) -> list[str]:
    """A line of the table."""
    scores = [_list(result.get(key)) for key in ("auc", "read_off")]
    spearman = "-"
    if "spearman" in result:
        spearman = f"{result['spearman']:.3f} ({result['spearman_read_off']:.3f})"
    shares = _list([region["share"] for region in result.get("regions", [])], ".2f")
    form = {"gain": "+.3g", "agreement": ".3f", "seconds": ".0f", "cpu_seconds": ".0f"}
    rest = [number(result.get(key), text) for key, text in form.items()]
    note = "failed" if "failed" in result else result["motion"]["description"]
    return [
        result["set"],
        str(result["seed"]),
        *scores,
        spearman,
        shares,
        *rest,
        number(megabytes(result.get("anonymous")), ".0f"),
        note or "no motion found",
    ]


def _list(values: list[float] | None, form: str = ".3f") -> str:
    return ", ".join(number(value, form) for value in values or []) or "-"


def chosen() -> argparse.Namespace:
    """The options of the command line."""
    made = parser(__doc__, score=False, make=False, seeds=(0,))
    usual = Recipe(MODEL)
    made.add_argument(
        "--model",
        type=Path,
        default=MODEL,
        help="of the antibody 1igt, of which missing sets are made",
    )
    for name, kind, text in (
        ("count", int, "images"),
        ("box", int, "pixels"),
        ("pixel", float, "Å a pixel"),
        ("snr", float, "as of `instamap simulate`"),
        ("solvent", float, "as of `instamap simulate`"),
    ):
        made.add_argument(
            f"--{name}",
            type=kind,
            default=getattr(usual, name),
            help=f"of missing sets: {text}  [default: %(default)s]",
        )
    made.add_argument(
        "--deform",
        default="bending-field",
        help="deformation that instamap is asked for: bending-field or subspace  [default:"
        " %(default)s]",
    )
    made.add_argument(
        "--fitted",
        type=Path,
        metavar="RUN",
        help="score this finished run instead of a new one, without times",
    )
    return made.parse_args()


def main() -> None:
    options = chosen()
    where = environment()
    if options.fitted and len(options.data) * len(options.seeds) > 1:
        sys.exit("--fitted is one run; give one set in --data and one seed")
    folders = [found(folder, options) for folder in options.data]
    if not options.fitted:
        runs.warm_up()
    results = runs.each(
        folders, options.seeds, lambda folder, work, seed: one(folder, work, seed, options)
    )
    show(table(HEAD, [row(result) for result in results]))
    told = {
        "sets": [sets.describe(folder) for folder in folders],
        "seeds": options.seeds,
    }
    save(options.out, "composition", where, results, **told)


if __name__ == "__main__":
    main()
