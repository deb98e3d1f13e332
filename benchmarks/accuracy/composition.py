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
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.lib import coming_and_going, hidden_motion, runs
from benchmarks.lib.atomic_states import ANGLES
from benchmarks.lib.coming_and_going import FIRST_ARM, PRESENT, SECOND_ARM, STEM
from benchmarks.lib.hidden_motion import LAST_COLUMNS, listed, loaded
from benchmarks.lib.hidden_values import auc, read_off, spearman

RECIPE = ("count", "box", "pixel", "snr", "solvent")
HEAD = ["SET", "SEED", "AUC", "READ OFF", "SPEARMAN", "SHARES", *LAST_COLUMNS]


def set_in(folder: Path, options: argparse.Namespace) -> Path:
    """The set, made where it is missing. Exits where the folder has another one."""
    usual = hidden_motion.recipe_values(options, RECIPE)
    recipe = coming_and_going.Recipe(**usual)
    if "hinge" in folder.name:
        guests = (SECOND_ARM, STEM)
        recipe = coming_and_going.Recipe(**usual, guests=guests, arm=FIRST_ARM, seed=7)
    make = partial(coming_and_going.make, recipe)
    return hidden_motion.set_in(folder, make, PRESENT, "compositions")


def paired(occupancy: Tensor, present: Tensor) -> list[float]:
    """AUC of ROC of each true part "n G" by the occupancies "n R", in the pairing that is best; 0.5
    of a part that has none.
    """
    parts = present.shape[1]
    columns = [*occupancy.T, *[torch.zeros(len(present)) for _ in range(parts)]]
    each = [[auc(one, part) for one in columns] for part in present.T]
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
    guess, rest = read_off(z, present)
    pairs = zip(guess.T, present[rest].T, strict=True)
    scores = {
        "auc": paired(z[:, columns:], present) if regions else None,
        "read_off": [auc(*pair) for pair in pairs],
        "regions": regions,
        "motion": said,
        "verdict": result["verdict"],
        **runs.gains(said),
    }
    if (folder / ANGLES).exists():
        angle = loaded(folder / ANGLES)
        of_angle, rest = read_off(z, angle)
        each = [spearman(one, angle[:, 0]) for one in z[:, :columns].T]
        scores["spearman"] = max(map(abs, each), default=0.0)
        read = spearman(of_angle[:, 0], angle[rest, 0])
        scores["spearman_read_off"] = abs(read)
    return scores


def one(folder: Path, work: Path, seed: int, options: argparse.Namespace) -> dict:
    """A run and its scores."""
    flags = ("--deform", options.deform)
    result = hidden_motion.measured(folder, work, seed, options, flags, judge)
    return {**result, "deform": options.deform}


def row(result: dict) -> list[str]:
    """A line of the table."""
    scores = [listed(result.get(key)) for key in ("auc", "read_off")]
    ranks = "-"
    if "spearman" in result:
        ranks = f"{result['spearman']:.3f} ({result['spearman_read_off']:.3f})"
    shares = listed([region["share"] for region in result.get("regions", [])], ".2f")
    note = "failed" if "failed" in result else result["motion"]["description"]
    return hidden_motion.row(result, [*scores, ranks, shares], note or "no motion found")


def chosen() -> argparse.Namespace:
    """The options of the command line."""
    made = hidden_motion.options_of(__doc__, coming_and_going.Recipe(hidden_motion.MODEL), RECIPE)
    made.add_argument(
        "--deform",
        default="bending-field",
        help="deformation that instamap is asked for: bending-field or subspace  [default:"
        " %(default)s]",
    )
    return made.parse_args()


def main() -> None:
    options = chosen()
    hidden_motion.main(
        "composition",
        options,
        HEAD,
        partial(set_in, options=options),
        partial(one, options=options),
        row,
    )


if __name__ == "__main__":
    main()
