"""How long the images engine takes to find a map as likely as the normal engine's.

    python -m benchmarks.speed.engines --data T [--tolerance 0.02] [--limit 1200] [--make PATH]
        [--seeds 0] [--out FILE.json]

One half of the set, one mask, one held-out set, one judge: the held-out likelihood by the normal
equations, in nats per image beyond an empty map, of each look's map. The target is the normal
engine's best less --tolerance of it. The images engine has also arrived where its own judge (its
own operator on the held-out images) says so: the difference between both can only help it.

The time of the normal engine is all that it needs: STAR file, noise, statistics of *all* sets,
mask, and the fit of the half to its end, long after its best look. That of the images engine is its
fit alone until it arrives, its own looks included, the judge's not. If it has not arrived when
--limit seconds are over, the ratio is a lower bound. It runs with its defaults but for the last
step, which --limit sets.
"""

import contextlib
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.lib import runs, sets
from benchmarks.lib.common import environment
from benchmarks.lib.options import parser
from benchmarks.lib.report import median, number, save, show, table
from instamap.fit import loop
from instamap.model import compose
from instamap.plugin.choice import Choice, choose
from instamap.plugin.registry import default
from instamap.workflows.map import Data, prepare
from instamap.workflows.settings import Settings

HEAD = [
    "SET",
    "SEED",
    "TARGET",
    "NORMAL S",
    "(PREPARE)",
    "(FIT)",
    "IMAGES S",
    "REACHED",
    "ARRIVED",
    "RATIO",
]
HALF = "half1"


class Over(Exception):
    """The images engine has arrived, or its time is over."""


def fit(
    settings: Settings, data: Data, engine: Choice, limit: float, target: float | None = None
) -> list[dict]:
    """Looks of a fit to one half, judged by the normal equations, with the seconds of the engine
    alone; ends at `target` or `limit`.
    """
    evidence = data.evidence[HALF]
    torch.manual_seed(settings.seed)
    model = compose(settings.parts, data.scene)
    objective = default().get("engine", engine.name).load()(engine.options, model, evidence)
    looks = []
    judging = 0.0
    start = time.perf_counter()

    def watch(look: loop.Look) -> None:
        nonlocal judging
        now = time.perf_counter()
        seconds = now - start - judging
        map = objective.map() * (data.scene.mask > 0)
        judged = (
            -float(evidence.held_out_statistics.loss(map)) / evidence.held_out_statistics.weight
        )
        looks.append(
            {
                "step": look.step,
                "seconds": seconds,
                "held_out": judged,
                "own_held_out": look.held_out,
            }
        )
        judging += time.perf_counter() - now
        if seconds > limit or (target is not None and max(judged, look.held_out) >= target):
            raise Over

    with contextlib.suppress(Over):
        loop.fit(
            model, objective, generator=torch.Generator().manual_seed(settings.seed), watch=watch
        )
    return looks


def one(folder: Path, seed: int, tolerance: float, limit: float) -> dict:
    """Both engines with one seed."""
    start = time.perf_counter()
    settings = Settings(
        particles=folder / "particles.star", seed=seed, engine=choose("engine", "normal", [])
    )
    data = prepare(settings)
    prepared = time.perf_counter() - start
    quick = fit(settings, data, data.engine, limit)
    best = max(look["held_out"] for look in quick)
    target = best - tolerance * abs(best)
    normal = prepared + quick[-1]["seconds"]
    engine = choose("engine", "images", {})
    never = 10**9
    slow = fit(
        settings,
        data,
        replace(engine, options=replace(engine.options, steps=never, patience=never)),
        limit,
        target,
    )
    reached = max(max(look["held_out"], look["own_held_out"]) for look in slow)
    found = {
        "target": target,
        "best": best,
        "prepare_seconds": prepared,
        "fit_seconds": quick[-1]["seconds"],
        "normal_seconds": normal,
    }
    found |= {
        "images_seconds": slow[-1]["seconds"],
        "reached": reached,
        "arrived": reached >= target,
    }
    return {
        "set": folder.resolve().name,
        "seed": seed,
        **found,
        "ratio": slow[-1]["seconds"] / normal,
        "normal": quick,
        "images": slow,
    }


def row(r: dict) -> list:
    """As the table shows it."""
    times = [
        number(r[k], ".1f")
        for k in ("normal_seconds", "prepare_seconds", "fit_seconds", "images_seconds")
    ]
    bound = "" if r["arrived"] else "> "
    return [
        r["set"],
        str(r["seed"]),
        number(r["target"], "+.3f"),
        *times,
        number(r["reached"], "+.3f"),
        "yes" if r["arrived"] else "no",
        bound + number(r["ratio"], ".0f"),
    ]


def main() -> None:
    add = parser(__doc__, score=False, seeds=(0,))
    add.add_argument(
        "--tolerance",
        type=float,
        default=0.02,
        help="share of the normal engine's best that may be missing  [default: 0.02]",
    )
    add.add_argument(
        "--limit",
        type=float,
        default=1200.0,
        help="seconds for the images engine, each time  [default: 1200]",
    )
    options = add.parse_args()
    where = environment()
    folders = [sets.find(folder, options.make) for folder in options.data]
    runs.warm_up()
    results = [
        one(folder, seed, options.tolerance, options.limit)
        for seed in options.seeds
        for folder in folders
    ]
    middle = median(r["ratio"] for r in results)
    bound = "" if all(r["arrived"] for r in results) else "more than "
    words = f"the images engine takes {bound}{middle:.0f} x the time (median)"
    show("\n".join([table(HEAD, [row(r) for r in results]), "", words]))
    described = [sets.describe(folder) for folder in folders]
    save(
        options.out,
        "engines",
        where,
        results,
        sets=described,
        tolerance=options.tolerance,
        limit=options.limit,
    )


if __name__ == "__main__":
    main()
