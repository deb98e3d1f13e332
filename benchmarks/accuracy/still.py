"""Motion where none is known: does instamap invent any, how far does it move, and does its audit
believe it?

    python -m benchmarks.accuracy.still --data T ribosome-tilts [--group-by rlnGroupName]
        [--make PATH] [--seeds 0] [--out FILE.json]

Sets without known motion: homogeneous ones, in which there is nothing to find, and real ones, of
which nobody knows. Each is fitted by `instamap reconstruct --deform bending-field` and judged by
`instamap audit`, both as processes of their own. --group-by names a column by which images of one
particle (a tilt series) share coordinates, in sets that have it.

MOTION: whether the program says that it found any. GAIN: what bending gives held-out particles over
one rigid map, in nats each, the mean of both halves. RMS: displacement in Å from the median state,
root mean square over the audit's states and all voxels inside the mask; SOLID: the same where there
is density, as the audit says it; MOST: the largest of any voxel and state. DIFFER: rms distance in
Å of both halves' displacements where there is density. SECONDS: of the reconstruction; AUDIT S: of
the audit. The verdict is the audit's.
"""

import argparse
import json
from pathlib import Path

from benchmarks.lib import runs, sets
from benchmarks.lib.common import environment
from benchmarks.lib.options import parser
from benchmarks.lib.programs import INSTAMAP, measure
from benchmarks.lib.report import megabytes, number, save, show, table
from instamap.data.formats import star

HEAD = [
    "SET",
    "SEED",
    "MOTION",
    "GAIN",
    "AGREEMENT",
    "RMS",
    "SOLID",
    "MOST",
    "DIFFER",
    "SECONDS",
    "AUDIT S",
    "ANON MB",
    "VERDICT",
]


def audited(said: dict) -> dict:
    """The numbers of an audit.json that are shown."""
    states = said["states"]
    rms = (sum(state["displacement_rms"] ** 2 for state in states) / len(states)) ** 0.5
    return {
        "rms": rms,
        "solid": said["motion_rms"],
        "most": max(state["displacement_max"] for state in states),
        "differ": said["disagreement_rms"],
        "verdict": said["verdict"],
    }


def one(folder: Path, work: Path, seed: int, options: argparse.Namespace) -> dict:
    """A run, its audit, and what both say."""
    result = {"set": folder.resolve().name, "seed": seed}
    column = options.group_by
    shared = column and column in star.read(folder / "particles.star", ctf=False).columns
    extra = ["--group-by", column] if shared else []
    run = runs.by_instamap(
        folder,
        work / "run",
        seed,
        "--deform",
        "bending-field",
        "-D",
        f"latent={options.latent}",
        *extra,
    )
    result |= {
        "together": column if shared else None,
        **run.numbers(),
        "output": run.output[-3000:],
    }
    if run.code:
        return {**result, "failed": run.output[-800:]}
    said = json.loads((work / "run" / "motion.json").read_text(encoding="utf-8"))
    result |= {"motion": said, **runs.gains(said)}
    audit = measure([INSTAMAP, "audit", work / "run", "-o", work / "audit"])
    result["audit_seconds"] = audit.seconds
    if audit.code:
        return {**result, "failed": audit.output[-800:]}
    found = json.loads((work / "audit" / "audit.json").read_text(encoding="utf-8"))
    return {**result, **audited(found), "audit": found}


def row(result: dict) -> list[str]:
    """A line of the table."""
    form = {
        "gain": "+.3g",
        "agreement": ".3f",
        "rms": ".2f",
        "solid": ".2f",
        "most": ".2f",
        "differ": ".2f",
        "seconds": ".0f",
        "audit_seconds": ".0f",
    }
    motion = {True: "found", False: "none"}.get(result.get("found"), "-")
    numbers = [
        *(number(result.get(key), text) for key, text in form.items()),
        number(megabytes(result.get("anonymous")), ".0f"),
    ]
    return [
        result["set"],
        str(result["seed"]),
        motion,
        *numbers,
        "failed" if "failed" in result else result["verdict"],
    ]


def main() -> None:
    made = parser(__doc__, score=False, seeds=(0,))
    made.add_argument(
        "--group-by",
        metavar="COLUMN",
        help="images with one value in it are of one particle, in sets that have it",
    )
    made.add_argument(
        "--latent",
        default="1",
        help="coordinates that instamap is asked for, or auto  [default: %(default)s]",
    )
    options = made.parse_args()
    where = environment()
    folders = [sets.find(folder, options.make) for folder in options.data]
    runs.warm_up()
    results = runs.each(
        folders, options.seeds, lambda folder, work, seed: one(folder, work, seed, options)
    )
    show(table(HEAD, [row(result) for result in results]))
    for result in results:
        if "failed" in result:
            show(f"\n{result['set']}, seed {result['seed']}, failed:\n{result['failed']}")
    said = {
        "sets": [sets.describe(folder) for folder in folders],
        "latent": options.latent,
        "seeds": options.seeds,
    }
    save(options.out, "still", where, results, **said)


if __name__ == "__main__":
    main()
