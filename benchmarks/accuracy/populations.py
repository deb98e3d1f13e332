"""Populations of two states in known shares: are they found, and how sure is that?

    python -m benchmarks.accuracy.populations --data two-states [--make PATH] [--seeds 0]
        [--shares 0.1 0.3 0.5] [--count 5400] [--out FILE.json]

A set has particles of two states in equal shares, under real, uneven poses. For each share so many
are drawn of either state, and instamap runs on them as it does on a set whose states nobody knows:
`reconstruct --deform bending-field`, then `populations`, which has to find by itself that there are
two wells. The states, truth_labels.npz, are read for scoring alone.

TRUE: the first state's share of the particles. SHARE, LOW, HIGH: of the well that holds the median
coordinate of its particles, with the 95 % interval. INSIDE: whether the true share is in it. WIDTH:
of the interval. COUNTED: the share of the particles whose coordinates, as the run left them, lie in
the well: what a histogram of assignments says. WELLS: how many were found. SECONDS: of
`populations` alone.
"""

import json
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.lib import runs, sets
from benchmarks.lib.common import environment
from benchmarks.lib.options import parser
from benchmarks.lib.programs import INSTAMAP, measure
from benchmarks.lib.report import number, save, show, table
from instamap.data import formats

LABELS = "truth_labels.npz"
FORM = {
    "share": ".4f",
    "low": ".4f",
    "high": ".4f",
    "inside": "",
    "width": ".4f",
    "counted": ".4f",
    "wells": "d",
    "run_seconds": ".0f",
    "seconds": ".0f",
}
HEAD = [
    "SET",
    "SEED",
    "TRUE",
    "SHARE",
    "LOW",
    "HIGH",
    "INSIDE",
    "WIDTH",
    "COUNTED",
    "WELLS",
    "RUN SECONDS",
    "SECONDS",
]


def drawn(folder: Path, out: Path, share: float, count: int, seed: int) -> np.ndarray:
    """Write `count` particles of a set to the folder `out`, beside a link to their images, such
    that the first state has this share. Returns their states.
    """
    state = np.load(folder / LABELS)["state"]
    generator = np.random.default_rng(seed)
    first = round(share * count)
    chosen = []
    for number_of_state, wanted in enumerate((first, count - first)):
        rows = np.flatnonzero(state == number_of_state)
        chosen.append(generator.choice(rows, wanted, replace=False))
    rows = np.sort(np.concatenate(chosen))
    out.mkdir(parents=True)
    table_of_set = formats.read(folder / "particles.star")
    table_of_set.source.take(rows).write(out / "particles.star")
    for stack in folder.glob("*.mrcs"):
        (out / stack.name).symlink_to(stack.resolve())
    return state[rows]


def inside(z: float | np.ndarray, bounds: list):
    """Whether coordinates are between bounds, of which None is none."""
    low, high = bounds
    below = -np.inf if low is None else low
    above = np.inf if high is None else high
    return (z >= below) & (z < above)


def judge(state: np.ndarray, run: Path, out: Path) -> dict:
    """What the record in `out` says of the first state's share."""
    record = json.loads((out / "populations.json").read_text(encoding="utf-8"))
    z = np.load(run / "latents.npy")[:, 0]
    middle = float(np.median(z[state == 0]))
    wells = list(record["regions"].values())
    [well] = [one for one in wells if inside(middle, one["bounds"][0])]
    low, high = well["interval"]
    true = float((state == 0).mean())
    return {
        "share": well["share"],
        "low": low,
        "high": high,
        "inside": str(low <= true <= high),
        "width": high - low,
        "counted": float(inside(z, well["bounds"][0]).mean()),
        "wells": len(wells),
        "by_half": well["by_half"],
        "fits": record["fits"],
        "stiffness": record["stiffness"],
    }


def one(folder: Path, work: Path, share: float, seed: int, count: int) -> dict:
    """A run and what it says of the shares."""
    state = drawn(folder, work / "set", share, count, seed)
    result = {"set": folder.resolve().name, "seed": seed, "true": float((state == 0).mean())}
    run = runs.by_instamap(work / "set", work / "run", seed, "--deform", "bending-field")
    if run.code:
        show(f"reconstruct failed:\n{run.output[-800:]}")
        return {**result, "failed": run.output[-800:]}
    counting = measure([INSTAMAP, "populations", work / "run", "-o", work / "out"])
    result |= {"run_seconds": run.seconds, **counting.numbers()}
    if counting.code:
        show(f"populations failed:\n{counting.output[-800:]}")
        return {**result, "failed": counting.output[-800:]}
    return {**result, **judge(state, work / "run", work / "out")}


def main() -> None:
    made = parser(__doc__, score=False, seeds=(0,))
    made.add_argument(
        "--shares",
        type=float,
        nargs="+",
        default=[0.1, 0.3, 0.5],
        help="of the first state  [default: 0.1 0.3 0.5]",
    )
    made.add_argument("--count", type=int, default=5400, help="particles  [default: %(default)s]")
    options = made.parse_args()
    where = environment()
    folders = [sets.find(folder, options.make) for folder in options.data]
    runs.warm_up()
    results = []
    for folder in folders:
        for seed in options.seeds:
            for share in options.shares:
                with tempfile.TemporaryDirectory() as work:
                    results.append(one(folder, Path(work), share, seed, options.count))
                show(json.dumps(results[-1]))
    rows = []
    for result in results:
        cells = [number(result.get(key), form) for key, form in FORM.items()]
        rows.append([result["set"], str(result["seed"]), number(result["true"], ".4f"), *cells])
    show(table(HEAD, rows))
    described = [sets.describe(folder) for folder in folders]
    save(
        options.out,
        "populations",
        where,
        results,
        sets=described,
        shares=options.shares,
        count=options.count,
        seeds=options.seeds,
    )


if __name__ == "__main__":
    main()
