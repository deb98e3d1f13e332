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
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.lib import runs, sets
from benchmarks.lib.common import environment
from benchmarks.lib.options import DATA, parser
from benchmarks.lib.report import megabytes, number, save, show, table
from benchmarks.lib.swinging import ANGLES, Recipe, canonical, make, read_off

MODEL = DATA / "models" / "1igt.pdb.gz"
HEAD = [
    "SET",
    "SEED",
    "R2 1",
    "R2 2",
    "CANONICAL",
    "GAIN",
    "AGREEMENT",
    "SECONDS",
    "CPU S",
    "ANON MB",
    "NOTE",
]


def found(folder: Path, options) -> Path:
    """The set, made where it is missing. Exits where the folder has another one."""
    if not (folder / "particles.star").exists():
        chosen = {
            name: getattr(options, name)
            for name in ("model", "count", "states", "amplitude", "box", "pixel", "snr", "solvent")
        }
        show(f"making '{folder}': {options.count} images")
        make(Recipe(**chosen), folder)
    if not (folder / ANGLES).exists():
        sys.exit(
            f"'{folder}' has no {ANGLES}, so no two motions that are known; name a folder that is"
            " not there"
        )
    return folder


def judge(folder: Path, out: Path) -> dict:
    """What the coordinates of the run in `out` say of the angles."""
    z, truth = (
        torch.from_numpy(np.load(file)).double() for file in (out / "latents.npy", folder / ANGLES)
    )
    said = json.loads((out / "motion.json").read_text(encoding="utf-8"))
    return {
        "r2": read_off(z, truth),
        "canonical": canonical(z, truth),
        "motion": said,
        **runs.gains(said),
    }


def one(folder: Path, work: Path, seed: int, options) -> dict:
    """A run and its scores."""
    result = {"set": folder.resolve().name, "seed": seed}
    if options.fitted:
        return {**result, **judge(folder, options.fitted)}
    run = runs.by_instamap(
        folder, work, seed, "--deform", "bending-field", "-D", f"latent={options.latent}"
    )
    if run.code:
        show(f"instamap failed on {folder.name}:\n{run.output[-800:]}")
        return {**result, "failed": run.output[-800:]}
    return {**result, **run.numbers(), **judge(folder, work), "output": run.output[-3000:]}


def row(result: dict) -> list[str]:
    """A line of the table."""
    r2 = [number(value, ".3f") for value in result.get("r2", [None, None])]
    pair = ", ".join(number(value, ".3f") for value in result.get("canonical", [])) or "-"
    form = {"gain": "+.3g", "agreement": ".3f", "seconds": ".0f", "cpu_seconds": ".0f"}
    rest = [number(result.get(key), text) for key, text in form.items()]
    note = "failed" if "failed" in result else "-" if result["found"] else "no motion found"
    return [
        result["set"],
        str(result["seed"]),
        *r2,
        pair,
        *rest,
        number(megabytes(result.get("anonymous")), ".0f"),
        note,
    ]


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
    for name, text in (("count", "images"), ("states", "angles of each arm"), ("box", "pixels")):
        made.add_argument(
            f"--{name}",
            type=int,
            default=getattr(usual, name),
            help=f"of missing sets: {text}  [default: %(default)s]",
        )
    for name, text in (
        ("amplitude", "degrees to either side"),
        ("pixel", "Å a pixel"),
        ("snr", "as of `instamap simulate`"),
        ("solvent", "as of `instamap simulate`"),
    ):
        made.add_argument(
            f"--{name}",
            type=float,
            default=getattr(usual, name),
            help=f"of missing sets: {text}  [default: %(default)s]",
        )
    made.add_argument(
        "--latent",
        default="2",
        help="coordinates that instamap is asked for, or auto  [default: %(default)s]",
    )
    made.add_argument(
        "--fitted",
        type=Path,
        metavar="DIR",
        help="score this finished run instead of a new one, without times",
    )
    return made.parse_args()


def main() -> None:
    options = chosen()
    where = environment()
    if options.fitted and len(options.data) * len(options.seeds) > 1:
        sys.exit("--fitted is one run; give one set in --data and one seed")
    folders = [found(folder, options) for folder in options.data]
    runs.warm_up()
    results = runs.each(
        folders, options.seeds, lambda folder, work, seed: one(folder, work, seed, options)
    )
    show(table(HEAD, [row(result) for result in results]))
    said = {
        "sets": [sets.describe(folder) for folder in folders],
        "latent": options.latent,
        "seeds": options.seeds,
    }
    save(options.out, "two_motions", where, results, **said)


if __name__ == "__main__":
    main()
