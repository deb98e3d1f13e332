"""Two motions at once: are two hidden angles, which have nothing to do with each other, in the two
coordinates that instamap finds?

    python -m benchmarks.accuracy.two_motions --data two-hinges [--model 1igt.pdb.gz] [--seeds 0]
        [--latent 2] [--out FILE.json]

A set that is missing is made first, by instamap's own simulator: both arms of an antibody swing
about their hinges by +-45 degrees, each for itself (12 x 12 states). The angles, truth_angles.npy,
are read for scoring alone; instamap runs once, as a process of its own.

Coordinates may be any smooth function of the angles, so R2 1 and R2 2 are of quadratic regressions
of each angle on both coordinates, fitted to every other particle and judged on the others: 1 says
that the angle is known, 0 that nothing is, below 0 that the mean would be better. CANONICAL:
correlations of the best linear combinations; 1 and 0 say that one motion was found and one not.
GAIN: what bending gives held-out particles over one rigid map, in nats each, the mean of both
halves. AGREEMENT: correlation of the halves' coordinates.
"""

import argparse
import json
from functools import partial
from pathlib import Path

from benchmarks.lib import hidden_motion, runs, swinging
from benchmarks.lib.atomic_states import ANGLES
from benchmarks.lib.hidden_motion import LAST_COLUMNS, listed, loaded
from benchmarks.lib.hidden_values import canonical, explained
from benchmarks.lib.report import number

RECIPE = ("count", "states", "amplitude", "box", "pixel", "snr", "solvent")
HEAD = ["SET", "SEED", "R2 1", "R2 2", "CANONICAL", *LAST_COLUMNS]


def set_in(folder: Path, options: argparse.Namespace) -> Path:
    """The set, made where it is missing. Exits where the folder has another one."""
    recipe = swinging.Recipe(**hidden_motion.recipe_values(options, RECIPE))
    return hidden_motion.set_in(folder, partial(swinging.make, recipe), ANGLES, "two motions")


def judge(folder: Path, out: Path) -> dict:
    """What the coordinates of the run in `out` say of the angles."""
    z = loaded(out / "latents.npy")
    truth = loaded(folder / ANGLES)
    said = json.loads((out / "motion.json").read_text(encoding="utf-8"))
    return {
        "r2": explained(z, truth),
        "canonical": canonical(z, truth),
        "motion": said,
        **runs.gains(said),
    }


def one(folder: Path, work: Path, seed: int, options: argparse.Namespace) -> dict:
    """A run and its scores."""
    flags = ("--deform", "bending-field", "-D", f"latent={options.latent}")
    return hidden_motion.measured(folder, work, seed, options, flags, judge)


def row(result: dict) -> list[str]:
    """A line of the table."""
    r2 = [number(value, ".3f") for value in result.get("r2", [None, None])]
    note = "failed" if "failed" in result else "-" if result["found"] else "no motion found"
    return hidden_motion.row(result, [*r2, listed(result.get("canonical"))], note)


def chosen() -> argparse.Namespace:
    """The options of the command line."""
    made = hidden_motion.options_of(__doc__, swinging.Recipe(hidden_motion.MODEL), RECIPE)
    made.add_argument(
        "--latent",
        default="2",
        help="coordinates that instamap is asked for, or auto  [default: %(default)s]",
    )
    return made.parse_args()


def main() -> None:
    options = chosen()
    hidden_motion.main(
        "two_motions",
        options,
        HEAD,
        partial(set_in, options=options),
        partial(one, options=options),
        row,
        latent=options.latent,
    )


if __name__ == "__main__":
    main()
