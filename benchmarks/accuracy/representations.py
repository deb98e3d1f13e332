"""The paper's comparison: every registered representation through both objectives, against steps
and seconds, and relion_reconstruct.

    python -m benchmarks.accuracy.representations --data T [--only NAME ...]
        [--objectives normal images] [--steps 400] [--limit 120] [--figure FILE.png] [--markdown]
        [--make PATH] [--score PATH] [--seeds 0] [--out FILE.json]

Half 1, one process a fit, each representation with its own defaults. Curves are fits that no
evaluation stops: of --steps steps (normal) or --limit seconds (images). A row of the table is what
the defaults keep of half 1: the average at the evaluation where held-out images were likeliest.
STEP is that evaluation's, STEPS and FIT S end where the fit does; PREPARE S is all before the fit.
HELD-OUT is in nats per image beyond an empty map. The normal objective widens its jitter before it
stops, so its rows are fits of their own; the images objective does not: its rows are read from its
curves, and STOPPED says whether it would have stopped before they end. PASSES is where a curve,
looked at in --points places, first has a higher AUC than relion_reconstruct.
"""

import tempfile
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from benchmarks.lib import curves, runs, sets
from benchmarks.lib.common import environment
from benchmarks.lib.report import markdown, median, megabytes, number, save, show, spread, table
from instamap.plugin.choice import choose
from instamap.plugin.registry import default

HEAD = [
    "SET",
    "REPRESENTATION",
    "OBJECTIVE",
    "AUC",
    "SPREAD",
    "FSC 0.5",
    "HELD-OUT",
    "STEP",
    "STEPS",
    "STOPPED",
    "FIT S",
    "PREPARE S",
    "PASSES STEP",
    "PASSES S",
    "PARAMETERS",
    "ANON MB",
]
RELION = "(relion_reconstruct)"
OBJECTIVES = ("normal", "images")


def one(case: curves.Case, tool: Path, points: int, reference: dict | None, work: Path) -> dict:
    """One representation through one objective with one seed: what the defaults keep; evaluations
    of the endless fit, some of them scored, and where it passes relion_reconstruct's AUC
    (`reference`).
    """
    truth = sets.reference(case.folder)
    settings = choose("objective", case.objective, []).options
    endless = curves.follow(case, work / "endless")
    cut = curves.stop(endless["evaluations"], settings)
    evaluations = endless["evaluations"][:cut]
    maps = work / "endless"
    rest = endless
    if endless["changes"]:
        rest = curves.follow(
            curves.Case(case.folder, case.seed, case.representation, case.objective),
            work / "default",
        )
        evaluations = rest["evaluations"]
        maps = work / "default"
        cut = len(rest["evaluations"])
    kept = curves.best(evaluations)
    marked = curves.best(endless["evaluations"][: curves.stop(endless["evaluations"], settings)])
    curves.score(endless["evaluations"], work / "endless", tool, truth, points, [marked])
    curves.score([kept], maps, tool, truth, 1, [])
    found = {key: kept[key] for key in ("auc", "res_0.5", "held_out", "step")}
    found |= {
        "steps": evaluations[-1]["step"],
        "seconds": evaluations[-1]["seconds"],
        "stopped": cut is not None,
        "marked": marked,
    }
    found |= {key: rest[key] for key in ("prepare_seconds", "parameters", "rss", "anonymous")}
    passes = next(
        (k for k in endless["evaluations"] if reference and k.get("auc", 0.0) > reference["auc"]),
        {},
    )
    found |= {"passes_step": passes.get("step"), "passes_seconds": passes.get("seconds")}
    result = {
        "set": case.folder.resolve().name,
        "representation": case.representation,
        "objective": case.objective,
        "seed": case.seed,
    }
    return {**result, **found, "evaluations": endless["evaluations"]}


def relion(folder: Path, seed: int, tool: Path, work: Path) -> dict | None:
    """relion_reconstruct's half 1, in half of the time of both."""
    run = runs.by_relion(folder, work / "relion")
    if run is None or run.code:
        show(
            "no row of relion_reconstruct:"
            f" {'it is not installed' if run is None else run.output[-800:]}"
        )
        return None
    found = runs.score(tool, "map", work / "relion" / "half1.mrc", sets.reference(folder))
    result = {
        "set": folder.resolve().name,
        "representation": RELION,
        "objective": "-",
        "seed": seed,
        "seconds": run.seconds / 2,
    }
    return {
        **result,
        "auc": found["auc"],
        "res_0.5": found["res_0.5"],
        "rss": run.rss,
        "anonymous": run.anonymous,
    }


def row(some: list[dict]) -> list[str]:
    """Medians over the seeds, as text."""

    def middle(key, form):
        return number(median(r.get(key) for r in some), form)

    memory = number(megabytes(median(r.get("anonymous") for r in some)), ".0f")
    stopped = (
        "-" if "stopped" not in some[0] else "yes" if all(r["stopped"] for r in some) else "no"
    )
    scores = [
        middle("auc", ".4f"),
        number(spread(r["auc"] for r in some) if len(some) > 1 else None, ".4f"),
        middle("res_0.5", ".2f"),
    ]
    fit = [middle("held_out", "+.3f"), middle("step", ".0f"), middle("steps", ".0f"), stopped]
    times = [middle("seconds", ".1f"), middle("prepare_seconds", ".1f")]
    passes = [
        middle("passes_step", ".0f"),
        middle("passes_seconds", ".1f"),
        middle("parameters", ",.0f"),
    ]
    return [
        some[0]["set"],
        some[0]["representation"],
        some[0]["objective"],
        *scores,
        *fit,
        *times,
        *passes,
        memory,
    ]


def draw(path: Path, results: list[dict]) -> None:
    """AUC against steps and seconds, a row of panels for each objective; a ring is the evaluation
    that held-out images would have stopped at.
    """
    objectives = [e for e in OBJECTIVES if any(r["objective"] == e for r in results)]
    names = list(
        dict.fromkeys(r["representation"] for r in results if r["representation"] != RELION)
    )
    figure = Figure(figsize=(9, 3.2 * len(objectives) + 0.5), layout="constrained")
    panels = figure.subplots(len(objectives), 2, squeeze=False, sharey="row")
    for objective, pair in zip(objectives, panels, strict=True):
        for axes, key, unit in zip(
            pair, ("step", "seconds"), ("step", "seconds of the fit"), strict=True
        ):
            for r in (r for r in results if r["objective"] == objective):
                scored = [evaluation for evaluation in r["evaluations"] if "auc" in evaluation]
                colour = f"C{names.index(r['representation'])}"
                axes.plot(
                    [evaluation[key] for evaluation in scored],
                    [evaluation["auc"] for evaluation in scored],
                    color=colour,
                    label=r["representation"],
                    lw=1.3,
                )
                axes.plot(
                    r["marked"][key], r["marked"]["auc"], "o", color=colour, mfc="white", ms=5
                )
            for r in (r for r in results if r["representation"] == RELION):
                axes.axhline(r["auc"], color="0.4", ls="--", lw=1, label="relion_reconstruct")
            axes.set(xscale="log", xlabel=unit)
            axes.spines[["top", "right"]].set_visible(False)
        pair[0].set_ylabel(f"objective {objective}\nAUC of half 1 against the truth")
    for axes in panels.flat:
        axes.xaxis.set_minor_formatter(NullFormatter())
    handles = {
        label: handle
        for handle, label in zip(*panels[0][0].get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper center",
        ncols=4,
        frameon=False,
        fontsize=9,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    add = curves.options(__doc__)
    add.add_argument("--only", nargs="+", help="of the representations  [default: all]")
    add.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=OBJECTIVES)
    add.add_argument(
        "--steps", type=int, default=400, help="of the normal objective's curves  [default: 400]"
    )
    add.add_argument(
        "--limit",
        type=float,
        default=120.0,
        help="seconds of the images objective's curves  [default: 120]",
    )
    options = add.parse_args()
    where = environment()
    names = options.only or [part.name for part in default().parts("representation")]
    folders = [sets.find(folder, options.make) for folder in options.data]
    results = []
    runs.warm_up()
    said = {
        "sets": [sets.describe(folder) for folder in folders],
        "seeds": options.seeds,
        "steps": options.steps,
        "limit": options.limit,
    }
    ends = {
        "normal": {"steps": options.steps},
        "images": {"steps": curves.NEVER, "limit": options.limit},
    }
    for seed in options.seeds:
        for folder in folders:
            reference = attempt(partial(relion, folder, seed, options.score), results)
            for case in (
                curves.Case(folder, seed, name, objective, **ends[objective])
                for objective in options.objectives
                for name in names
            ):
                fit = partial(one, case, options.score, options.points, reference)
                attempt(fit, results)
                if options.out:  # it takes long: what is known is kept
                    save(options.out, "representations", where, results, **said)
    report(results, options)
    if not options.out:
        save(None, "representations", where, results, **said)


def attempt(measure: Callable[[Path], dict | None], results: list[dict]) -> dict | None:
    """What is measured in a folder that is then removed, shown and added to the results."""
    with tempfile.TemporaryDirectory() as work:
        found = measure(Path(work))
    if found:
        results.append(found)
        show("  ".join(row([found])))
    return found


def report(results: list[dict], options: Namespace) -> None:
    """Table and figure."""
    groups: dict[tuple, list[dict]] = {}
    for r in results:
        groups.setdefault((r["set"], r["representation"], r["objective"]), []).append(r)
    show((markdown if options.markdown else table)(HEAD, [row(some) for some in groups.values()]))
    if options.figure:
        first = [
            r for r in results if (r["set"], r["seed"]) == (results[0]["set"], results[0]["seed"])
        ]
        draw(options.figure, first)


if __name__ == "__main__":
    main()
