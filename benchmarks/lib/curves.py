"""Fits of half 1 that are followed evaluation by evaluation, each in a process of its own, and
scored afterwards: what benchmarks draw curves of.
"""

import argparse
import contextlib
import math
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.lib import runs
from benchmarks.lib.memory import Memory
from benchmarks.lib.options import parser
from instamap.fitting import loop
from instamap.fitting.objective import Objective, ObjectiveOptions
from instamap.maps import mrc
from instamap.model import compose
from instamap.plugin.choice import choose, load_class
from instamap.progress import Evaluation, Progress
from instamap.workflows.map import SEEDS_PER_RUN
from instamap.workflows.prepare import Prepared, prepare
from instamap.workflows.settings import Settings

HALF = "half1"
NEVER = 10**9


@dataclass(frozen=True)
class Case:
    """A fit to half 1 of the set in `folder`, with the defaults but for the objective's
    `options`.

    steps: None stops where the defaults stop; else no evaluation stops the fit before so many.
    limit: seconds of the fit, after which it ends.
    """

    folder: Path
    seed: int
    representation: str
    objective: str
    options: tuple[tuple[str, float], ...] = ()
    steps: int | None = None
    limit: float = math.inf


class Over(Exception):
    """The fit's time is over."""


def follow(case: Case, out: Path) -> dict:
    """Carries out a case in a fresh process, whose peak memory is then its own; the map of
    every evaluation, zero outside the mask, is out/STEP.mrc.

    Returns prepare_seconds (STAR file, noise, statistics, mask), parameters, rss, anonymous
    (bytes), changes (whether the objective goes on from its best evaluation with something changed,
    so that a fit with defaults is no part of an endless one), and evaluations: step, seconds (of
    the fit alone: its evaluations included, written maps not), held_out (nats per image beyond an
    empty map).
    """
    out.mkdir(parents=True)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_follow, case, out, torch.get_num_threads()).result()


def _follow(case: Case, out: Path, threads: int) -> dict:
    torch.set_num_threads(threads)
    objective = choose("objective", case.objective, dict(case.options))
    if case.steps is not None:
        endless = replace(objective.options, steps=case.steps, patience=NEVER)
        objective = replace(objective, options=endless)
    settings = Settings(
        particles=case.folder / "particles.star",
        seed=case.seed,
        representation=case.representation,
        objective=objective,
    )
    one_step = replace(objective, options=replace(objective.options, steps=1))
    with Memory() as memory:
        start = time.perf_counter()
        prepared = prepare(settings)
        seconds = time.perf_counter() - start
        # Loads kernels, so that the fit that is measured does not.
        _fit(replace(settings, objective=one_step), prepared, None, math.inf)
        found = _fit(settings, prepared, out, case.limit)
    return {**found, "prepare_seconds": seconds, "rss": memory.rss, "anonymous": memory.anonymous}


def _fit(settings: Settings, prepared: Prepared, out: Path | None, limit: float) -> dict:
    """The fit of half 1 with the random numbers that the program has for it."""
    seed = settings.seed * SEEDS_PER_RUN + list(prepared.fits).index(HALF)
    model = compose(settings.parts, prepared.scene, seed)
    objective_class = load_class("objective", settings.objective.name)
    objective = objective_class(settings.objective.options, model, prepared.fits[HALF])
    followed = _Followed(objective, prepared, out, limit)
    generator = torch.Generator().manual_seed(seed)
    with contextlib.suppress(Over):
        loop.optimise(model, objective, generator=generator, progress=followed)
    return {
        "evaluations": followed.evaluations,
        "parameters": sum(p.numel() for p in model.parameters()),
        "changes": objective_class.retry is not Objective.retry,
    }


class _Followed(Progress):
    """Keeps all evaluations of a fit and their maps, and ends it after `limit` seconds; the time
    that maps take to be written is not counted.
    """

    def __init__(self, objective: Objective, prepared: Prepared, out: Path | None, limit: float):
        self.objective = objective
        self.scene = prepared.scene
        self.out = out
        self.limit = limit
        self.evaluations: list[dict] = []
        self._aside = 0.0
        self._start = time.perf_counter()

    def evaluated(self, fit: str, evaluation: Evaluation, steps: int) -> None:
        now = time.perf_counter()
        seconds = now - self._start - self._aside
        if self.out is not None:
            inside = self.objective.map() * (self.scene.mask > 0)
            mrc.write(self.out / f"{evaluation.step}.mrc", inside, self.scene.pixel_size)
        self.evaluations.append(
            {"step": evaluation.step, "seconds": seconds, "held_out": evaluation.held_out}
        )
        self._aside += time.perf_counter() - now
        if seconds > self.limit:
            raise Over


def stop(evaluations: list[dict], options: ObjectiveOptions) -> int | None:
    """How many evaluations of an endless fit an objective with these options would have had before
    it found them stalled; None if all and more.
    """
    seen = [
        Evaluation(one["step"], 0.0, one["held_out"], False, one["seconds"]) for one in evaluations
    ]
    for count, last in enumerate(seen, 1):
        if last.step >= options.steps or loop.stalled(seen[:count], options):
            return count
    return None


def best(evaluations: list[dict]) -> dict:
    """The evaluation at which held-out images are likeliest."""
    return max(evaluations, key=lambda one: one["held_out"])


def score(
    evaluations: list[dict], maps: Path, tool: Path, truth: Path, count: int, also: list[dict]
) -> None:
    """Adds auc and res_0.5 (Å) against the truth to about `count` evaluations, evenly over the log
    of the step, to the last and to `also`.
    """
    low = math.log(evaluations[0]["step"])
    high = math.log(evaluations[-1]["step"])
    chosen = []
    for i in range(count):
        wanted = low + (high - low) * i / max(1, count - 1)
        distances = [abs(math.log(one["step"]) - wanted) for one in evaluations]
        chosen.append(evaluations[distances.index(min(distances))])
    for one in [*chosen, evaluations[-1], *also]:
        if "auc" in one:
            continue
        found = runs.score(tool, "map", maps / f"{one['step']}.mrc", truth)
        one |= {"auc": found["auc"], "res_0.5": found["res_0.5"]}


def options(doc: str) -> argparse.ArgumentParser:
    """The options of benchmarks with curves: all of `parser`, --figure, --markdown and --points."""
    made = parser(doc, seeds=(0,))
    made.add_argument(
        "--figure", type=Path, metavar="FILE.png", help="curves of the first set and seed"
    )
    made.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    made.add_argument(
        "--points",
        type=int,
        default=40,
        help="evaluations of a fit that are scored, about  [default: 40]",
    )
    return made
