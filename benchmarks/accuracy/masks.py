"""What a user's mask does: nothing outside it in any written map, and a step whose time falls with
the mask's volume.

    python -m benchmarks.accuracy.masks --data T [--shares 1 0.5 0.25] [--objectives normal images]
        [--steps 100] [--markdown] [--make PATH] [--score PATH] [--seeds 0] [--out FILE.json]

The whole mask is the automatic one of a run with defaults; a share of it is what lies on one side
of a plane across x that leaves so many of its voxels, with no soft edge there. All are given as
--mask FILE.mrc to runs of --steps steps that no evaluation stops, of both halves, so that times
differ by the mask alone. MS/STEP is that of the second half of the steps, with one evaluation; CPU
S the processor time of the whole process. OUTSIDE is the largest size of any value outside the mask
in any map that a run wrote: it must be 0. AUC and FSC 0.5 are those of half 1 in the smallest mask,
for all rows; the molecule beyond a mask is in the images, but may not be in the map.
"""

import json
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

from torch import Tensor

from benchmarks.lib import runs, sets
from benchmarks.lib.common import environment
from benchmarks.lib.curves import NEVER
from benchmarks.lib.options import parser
from benchmarks.lib.report import markdown, median, number, ratio, save, show, table
from instamap.maps import mrc

HEAD = [
    "SET",
    "OBJECTIVE",
    "SHARE",
    "VOXELS",
    "MAPS",
    "OUTSIDE",
    "MS/STEP",
    "OF WHOLE",
    "CPU S",
    "AUC",
    "FSC 0.5",
]


def cut(mask: Tensor, share: float) -> Tensor:
    """The mask "D D D" on the side of low x of the plane that leaves the given share of its voxels,
    to a layer of them.
    """
    layers = (mask > 0).sum((0, 1)).cumsum(0)
    kept = mask.clone()
    kept[..., int((layers < share * layers[-1]).sum()) + 1 :] = 0
    return kept


def automatic(folder: Path, seed: int, work: Path) -> Path:
    """The mask that a run with defaults found."""
    run = runs.by_instamap(
        folder, work / "automatic", seed, "-O", "steps=1", "--objective", "normal"
    )
    if run.code:
        sys.exit(f"instamap failed on {folder}:\n{run.output[-800:]}")
    return work / "automatic" / "mask.mrc"


def outside(out: Path, mask: Tensor) -> tuple[int, float]:
    """How many maps a run wrote, and the largest size of what is in them where the mask is zero."""
    maps = [mrc.read(path)[0] for path in sorted(out.glob("*.mrc"))]
    return len(maps), max(float(map[mask == 0].abs().max()) for map in maps)


def one(folder: Path, seed: int, objective: str, steps: int, file: Path, out: Path) -> dict:
    """A run of both halves with the mask of a file."""
    options = (f"steps={steps}", f"evaluate_every={steps // 2}", f"patience={NEVER}")
    fixed = [word for option in options for word in ("-O", option)]
    run = runs.by_instamap(folder, out, seed, "--objective", objective, "--mask", str(file), *fixed)
    if run.code:
        sys.exit(f"instamap failed on {folder}:\n{run.output[-800:]}")
    mask = mrc.read(file)[0]
    count, most = outside(out, mask)
    result = {
        "set": folder.resolve().name,
        "objective": objective,
        "seed": seed,
        "voxels": int((mask > 0).sum()),
        "maps": count,
        "outside": most,
    }
    return {**result, **run.numbers(), "step_ms": step_ms(out)}


def step_ms(out: Path) -> float:
    """Milliseconds of a step between the first evaluation and the last, the mean of all fits of the
    run in `out`.
    """
    fits: dict[str, list[dict]] = {}
    for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines():
        evaluation = json.loads(line)
        fits.setdefault(evaluation["fit"], []).append(evaluation)
    between = []
    for evaluations in fits.values():
        first = evaluations[0]
        last = evaluations[-1]
        between.append((last["seconds"] - first["seconds"]) / (last["step"] - first["step"]))
    return 1000 * sum(between) / len(between)


def row(some: list[dict], whole: list[dict]) -> list[str]:
    """Medians over the seeds, as text; `whole` are the same runs with the whole mask."""

    def middle(key):
        return median(r[key] for r in some)

    first = [
        some[0]["set"],
        some[0]["objective"],
        f"{some[0]['share']:g}",
        number(middle("voxels"), ",.0f"),
        number(middle("maps"), ".0f"),
    ]
    step = [
        number(middle("step_ms"), ".0f"),
        number(ratio(middle("step_ms"), median(r["step_ms"] for r in whole)), ".2f"),
    ]
    scores = [number(middle("auc"), ".4f"), number(middle("res_0.5"), ".2f")]
    return [
        *first,
        number(max(r["outside"] for r in some), "g"),
        *step,
        number(middle("cpu_seconds"), ".1f"),
        *scores,
    ]


def turn(folder: Path, seed: int, options: Namespace, work: Path) -> list[dict]:
    """All objectives and shares with one seed."""
    truth = sets.reference(folder)
    results = []
    files = {}
    whole, pixel_size = mrc.read(automatic(folder, seed, work))
    for share in options.shares:
        files[share] = work / f"{share:g}.mrc"
        mrc.write(files[share], cut(whole, share), pixel_size)
    for objective in options.objectives:
        for share, file in files.items():
            out = work / f"{objective}-{share:g}"
            found = one(folder, seed, objective, options.steps, file, out)
            scores = (
                runs.score(
                    options.score, "map", out / "half1.mrc", truth, "--mask", files[min(files)]
                )
                if truth
                else {}
            )
            results.append(
                {
                    **found,
                    "share": share,
                    "auc": scores.get("auc"),
                    "res_0.5": scores.get("res_0.5"),
                }
            )
            show("  ".join(row(results[-1:], [])))
    return results


def main() -> None:
    add = parser(__doc__, seeds=(0,))
    add.add_argument(
        "--shares",
        type=float,
        nargs="+",
        default=[1.0, 0.5, 0.25],
        help="of the mask's voxels  [default: 1 0.5 0.25]",
    )
    add.add_argument(
        "--objectives", nargs="+", choices=("normal", "images"), default=["normal", "images"]
    )
    add.add_argument("--steps", type=int, default=100, help="of each fit  [default: 100]")
    add.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    options = add.parse_args()
    where = environment()
    folders = [sets.find(folder, options.make) for folder in options.data]
    results = []
    runs.warm_up()
    for seed in options.seeds:
        for folder in folders:
            with tempfile.TemporaryDirectory() as work:
                results += turn(folder, seed, options, Path(work))
    kinds: dict[tuple, list[dict]] = {}
    for r in results:
        kinds.setdefault((r["set"], r["objective"], r["share"]), []).append(r)
    rows = [
        row(some, kinds.get((name, objective, 1.0), []))
        for (name, objective, _), some in kinds.items()
    ]
    show((markdown if options.markdown else table)(HEAD, rows))
    failed = [r for r in results if r["outside"] > 0]
    save(
        options.out,
        "masks",
        where,
        results,
        sets=[sets.describe(folder) for folder in folders],
        seeds=options.seeds,
        steps=options.steps,
    )
    if failed:
        sys.exit(f"{len(failed)} of {len(results)} runs wrote density outside their mask")


if __name__ == "__main__":
    main()
