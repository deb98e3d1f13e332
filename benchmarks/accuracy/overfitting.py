"""Noise overfitting: held-out likelihood and AUC against the truth over the steps, without jitter,
with it, and with held-out stopping.

    python -m benchmarks.accuracy.overfitting --data T [--only hash-grid voxel] [--steps 400]
        [--figure FILE.png] [--markdown] [--make PATH] [--score PATH] [--seeds 0] [--out FILE.json]

Half 1 through the normal objective, one process a fit, the average map of each evaluation. "no
jitter" and "jitter" are not stopped by any evaluation; "held-out stopping" is the default: back to
the best evaluation, a wider jitter, and the end. HELD-OUT, in nats per image beyond an empty map,
and STEP are those of the best evaluation; AUC is that of its map, which a fit keeps that knows no
truth; AT END that of the last evaluation, which one keeps that has no held-out images either.
TRUTH'S BEST is the highest of the scored evaluations, for reference: nobody without the truth can
stop there.
"""

import tempfile
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.lib import curves, runs, sets
from benchmarks.lib.common import environment
from benchmarks.lib.report import markdown, median, number, save, show, table

HEAD = [
    "SET",
    "REPRESENTATION",
    "FIT",
    "HELD-OUT",
    "STEP",
    "AUC",
    "STEPS",
    "AT END",
    "TRUTH'S BEST",
    "ITS STEP",
]
FITS = ("no jitter", "jitter", "held-out stopping")


def case(folder: Path, seed: int, representation: str, fit: str, steps: int) -> curves.Case:
    """The fit that a word of FITS stands for."""
    options = {"no jitter": (("jitter", 0.0),)}.get(fit, ())
    return curves.Case(
        folder,
        seed,
        representation,
        "normal",
        options,
        None if fit == "held-out stopping" else steps,
    )


def one(some: curves.Case, fit: str, tool: Path, points: int, work: Path) -> dict:
    """One fit, followed and scored."""
    evaluations = curves.follow(some, work / "maps")["evaluations"]
    kept = curves.best(evaluations)
    curves.score(evaluations, work / "maps", tool, sets.reference(some.folder), points, [kept])
    truth = max(
        (evaluation for evaluation in evaluations if "auc" in evaluation),
        key=lambda evaluation: evaluation["auc"],
    )
    result = {
        "set": some.folder.resolve().name,
        "representation": some.representation,
        "fit": fit,
        "seed": some.seed,
    }
    result |= {
        "held_out": kept["held_out"],
        "step": kept["step"],
        "auc": kept["auc"],
        "steps": evaluations[-1]["step"],
    }
    return {
        **result,
        "end_auc": evaluations[-1]["auc"],
        "truth_auc": truth["auc"],
        "truth_step": truth["step"],
        "evaluations": evaluations,
    }


def row(some: list[dict]) -> list[str]:
    """Medians over the seeds, as text."""
    forms = {
        "held_out": "+.3f",
        "step": ".0f",
        "auc": ".4f",
        "steps": ".0f",
        "end_auc": ".4f",
        "truth_auc": ".4f",
        "truth_step": ".0f",
    }
    first = [some[0]["set"], some[0]["representation"], some[0]["fit"]]
    return first + [number(median(r[key] for r in some), form) for key, form in forms.items()]


def draw(path: Path, results: list[dict]) -> None:
    """Held-out likelihood above AUC over the steps, a column of panels for each representation; a
    ring is the best evaluation.
    """
    names = list(dict.fromkeys(r["representation"] for r in results))
    figure = Figure(figsize=(4.5 * len(names), 6), layout="constrained")
    panels = figure.subplots(2, len(names), squeeze=False, sharex=True, sharey="row")
    for r in results:
        column = names.index(r["representation"])
        colour = f"C{FITS.index(r['fit'])}"
        for axes, key in zip(panels[:, column], ("held_out", "auc"), strict=True):
            seen = [evaluation for evaluation in r["evaluations"] if key in evaluation]
            axes.plot(
                [evaluation["step"] for evaluation in seen],
                [evaluation[key] for evaluation in seen],
                color=colour,
                lw=1.3,
                label=r["fit"],
            )
            axes.plot(r["step"], r[key], "o", color=colour, mfc="white", ms=5)
    for axes, name in zip(panels[0], names, strict=True):
        axes.set_title(name, fontsize=10)
    for axes in panels.flat:
        axes.set_xscale("log")
        axes.spines[["top", "right"]].set_visible(False)
    _frame(panels, results)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _frame(panels, results: list[dict]) -> None:
    """Words, and limits that leave out the first rise and how deep a fit of noise falls."""
    for axes, key in zip(panels[:, 0], ("held_out", "auc"), strict=True):
        top = max(r[key] for r in results)
        axes.set_ylim(0.6 * top, 1.05 * top)
    panels[0, 0].set_ylabel("held-out likelihood\n(nats per image beyond an empty map)")
    panels[1, 0].set_ylabel("AUC of half 1 against the truth")
    for axes in panels[1]:
        axes.set_xlabel("step")
    panels[1, 0].legend(frameon=False, fontsize=8)


def main() -> None:
    add = curves.options(__doc__)
    add.add_argument(
        "--only",
        nargs="+",
        default=["hash-grid", "voxel"],
        help="representations  [default: hash-grid voxel]",
    )
    add.add_argument(
        "--steps",
        type=int,
        default=400,
        help="of the fits that no evaluation stops  [default: 400]",
    )
    options = add.parse_args()
    where = environment()
    folders = [sets.find(folder, options.make) for folder in options.data]
    results = []
    runs.warm_up()
    plan = [
        (folder, name, fit, seed)
        for folder in folders
        for name in options.only
        for fit in FITS
        for seed in options.seeds
    ]
    for folder, name, fit, seed in plan:
        with tempfile.TemporaryDirectory() as work:
            results.append(
                one(
                    case(folder, seed, name, fit, options.steps),
                    fit,
                    options.score,
                    options.points,
                    Path(work),
                )
            )
        show("  ".join(row(results[-1:])))
    kinds = {(r["set"], r["representation"], r["fit"]): [] for r in results}
    for r in results:
        kinds[r["set"], r["representation"], r["fit"]].append(r)
    show((markdown if options.markdown else table)(HEAD, [row(some) for some in kinds.values()]))
    if options.figure:
        draw(
            options.figure,
            [
                r
                for r in results
                if (r["set"], r["seed"]) == (results[0]["set"], results[0]["seed"])
            ],
        )
    save(
        options.out,
        "overfitting",
        where,
        results,
        sets=[sets.describe(folder) for folder in folders],
        seeds=options.seeds,
    )


if __name__ == "__main__":
    main()
