"""How long objective `images` takes to find a map as likely as that of objective `normal`.

    python -m benchmarks.speed.objectives --data T [--tolerance 0.02] [--limit 1200] [--make PATH]
        [--seeds 0] [--out FILE.json]

One half of the set, one mask, one held-out set, one judge: the held-out likelihood by the normal
equations, in nats per image beyond an empty map, of the map of each evaluation. The target is the
best of `normal` less --tolerance of it. `images` has also arrived where its own judge (its own
operator on the held-out images) says so: the difference between both can only help it.

The time of `normal` is all that it needs: STAR file, noise, statistics of *all* sets, mask, and the
fit of the half to its end, long after its best evaluation. That of `images` is its fit alone until
it arrives, its own evaluations included, the judge's not. If it has not arrived when --limit
seconds are over, the ratio is a lower bound. It runs with its defaults but for the last step, which
--limit sets.
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
from instamap.fitting import loop
from instamap.fitting.objective import FitData, ImageData, Objective
from instamap.model import compose
from instamap.plugin.choice import Choice, choose, load_class
from instamap.progress import Evaluation, Progress
from instamap.scene import Scene
from instamap.statistics.statistics import Statistics
from instamap.workflows.prepare import open_dataset, prepare_dataset
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
NEVER = 10**9


class Over(Exception):
    """The fit has arrived, or its time is over."""


class Judged(Progress):
    """Judges the map of each evaluation of a fit by the normal equations, and ends the fit at
    `target` or `limit`; the judge's time is not counted.
    """

    def __init__(
        self,
        objective: Objective,
        scene: Scene,
        judge: Statistics,
        limit: float,
        target: float | None,
    ):
        self.objective = objective
        self.scene = scene
        self.judge = judge
        self.limit = limit
        self.target = target
        self.evaluations: list[dict] = []
        self._judging = 0.0
        self._start = time.perf_counter()

    def evaluated(self, fit: str, evaluation: Evaluation, steps: int) -> None:
        now = time.perf_counter()
        seconds = now - self._start - self._judging
        density = self.objective.map() * (self.scene.mask > 0)
        judged = -float(self.judge.loss(density)) / self.judge.weight
        own = evaluation.held_out
        self.evaluations.append(
            {"step": evaluation.step, "seconds": seconds, "held_out": judged, "own_held_out": own}
        )
        self._judging += time.perf_counter() - now
        arrived = self.target is not None and max(judged, own) >= self.target
        if arrived or seconds > self.limit:
            raise Over


def fit(
    settings: Settings,
    scene: Scene,
    objective: Choice,
    data: FitData,
    judge: Statistics,
    limit: float,
    target: float | None = None,
) -> list[dict]:
    """Evaluations of a fit to one half, judged by the normal equations, with its own seconds."""
    model = compose(settings.parts, scene, settings.seed)
    made = load_class("objective", objective.name)(objective.options, model, data)
    judged = Judged(made, scene, judge, limit, target)
    generator = torch.Generator().manual_seed(settings.seed)
    with contextlib.suppress(Over):
        loop.optimise(model, made, generator=generator, progress=judged)
    return judged.evaluations


def one(folder: Path, seed: int, tolerance: float, limit: float) -> dict:
    """Both objectives with one seed."""
    start = time.perf_counter()
    normal = choose("objective", "normal")
    settings = Settings(particles=folder / "particles.star", seed=seed, objective=normal)
    dataset = open_dataset(settings)
    prepared = prepare_dataset(dataset, settings)
    prepare_seconds = time.perf_counter() - start
    scene = prepared.scene
    statistics = prepared.fits[HALF]
    judge = statistics.held_out

    quick = fit(settings, scene, normal, statistics, judge, limit)
    best = max(one["held_out"] for one in quick)
    target = best - tolerance * abs(best)

    pictures = ImageData(dataset.particles, dataset.rows[HALF], dataset.held_out)
    usual = choose("objective", "images")
    endless = replace(usual, options=replace(usual.options, steps=NEVER, patience=NEVER))
    slow = fit(settings, scene, endless, pictures, judge, limit, target)
    reached = max(max(one["held_out"], one["own_held_out"]) for one in slow)

    normal_seconds = prepare_seconds + quick[-1]["seconds"]
    return {
        "set": folder.resolve().name,
        "seed": seed,
        "target": target,
        "best": best,
        "prepare_seconds": prepare_seconds,
        "fit_seconds": quick[-1]["seconds"],
        "normal_seconds": normal_seconds,
        "images_seconds": slow[-1]["seconds"],
        "reached": reached,
        "arrived": reached >= target,
        "ratio": slow[-1]["seconds"] / normal_seconds,
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
        help="share of the best of `normal` that may be missing  [default: 0.02]",
    )
    add.add_argument(
        "--limit",
        type=float,
        default=1200.0,
        help="seconds for `images`, each time  [default: 1200]",
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
    words = f"objective images takes {bound}{middle:.0f} x the time (median)"
    show("\n".join([table(HEAD, [row(r) for r in results]), "", words]))
    described = [sets.describe(folder) for folder in folders]
    save(
        options.out,
        "objectives",
        where,
        results,
        sets=described,
        tolerance=options.tolerance,
        limit=options.limit,
    )


if __name__ == "__main__":
    main()
