"""Fits of half 1 that are followed look by look, each in a process of its own, and scored
afterwards: what benchmarks draw curves of.
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
from instamap.fit import loop
from instamap.fit.objective import EngineOptions, Objective
from instamap.maps import mrc
from instamap.model import compose
from instamap.plugin.choice import choose, default_parts
from instamap.plugin.registry import default
from instamap.workflows.map import Data, prepare
from instamap.workflows.settings import Settings

HALF = "half1"
NEVER = 10**9


@dataclass(frozen=True)
class Case:
    """A fit to half 1 of the set in `folder`, with the defaults but for the engine's `options`.

    steps: None stops where the defaults stop; else no look stops the fit before so many. limit:
    seconds of the fit, after which it ends.
    """

    folder: Path
    seed: int
    representation: str
    engine: str
    options: tuple[tuple[str, float], ...] = ()
    steps: int | None = None
    limit: float = math.inf


class Over(Exception):
    """The fit's time is over."""


def follow(case: Case, out: Path) -> dict:
    """Carries out a case in a fresh process, whose peak memory is then its own; every look's map,
    zero outside the mask, is out/STEP.mrc.

    Returns prepare_seconds (STAR file, noise, statistics, mask), parameters, rss, anonymous
    (bytes), changes (whether the engine goes on from its best look with something changed, so that
    a fit with defaults is no part of an endless one), and looks: step, seconds (of the fit alone:
    its own looks included, written maps not), held_out (nats per image beyond an empty map).
    """
    out.mkdir(parents=True)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_follow, case, out, torch.get_num_threads()).result()


def _follow(case: Case, out: Path, threads: int) -> dict:
    torch.set_num_threads(threads)
    engine = choose("engine", case.engine, dict(case.options))
    if case.steps is not None:
        engine = replace(engine, options=replace(engine.options, steps=case.steps, patience=NEVER))
    parts = {**default_parts(), "representation": choose("representation", case.representation, [])}
    settings = Settings(
        particles=case.folder / "particles.star", seed=case.seed, engine=engine, parts=parts
    )
    with Memory() as memory:
        start = time.perf_counter()
        data = prepare(settings)
        prepared = time.perf_counter() - start
        _fit(
            settings,
            replace(data, engine=replace(engine, options=replace(engine.options, steps=1))),
            None,
            math.inf,
        )  # loads kernels
        found = _fit(settings, data, out, case.limit)
    return {**found, "prepare_seconds": prepared, "rss": memory.rss, "anonymous": memory.anonymous}


def _fit(settings: Settings, data: Data, out: Path | None, limit: float) -> dict:
    """As `fit.reconstruct.fit_one` does it, with the same random numbers."""
    number = settings.seed * 1000 + list(data.evidence).index(HALF)
    scene = data.scene
    torch.manual_seed(number)
    model = compose(settings.parts, scene)
    objective = (
        default()
        .get("engine", data.engine.name)
        .load()(data.engine.options, model, data.evidence[HALF])
    )
    looks = []
    aside = 0.0
    start = time.perf_counter()

    def watch(look: loop.Look) -> None:
        nonlocal aside
        now = time.perf_counter()
        seconds = now - start - aside
        if out is not None:
            mrc.write(
                out / f"{look.step}.mrc", objective.map() * (scene.mask > 0), scene.pixel_size
            )
        looks.append({"step": look.step, "seconds": seconds, "held_out": look.held_out})
        aside += time.perf_counter() - now
        if seconds > limit:
            raise Over

    with contextlib.suppress(Over):
        loop.fit(model, objective, generator=torch.Generator().manual_seed(number), watch=watch)
    changes = type(objective).retry is not Objective.retry
    return {
        "looks": looks,
        "parameters": sum(p.numel() for p in model.parameters()),
        "changes": changes,
    }


def stop(looks: list[dict], options: EngineOptions) -> int | None:
    """How many looks of an endless fit an engine with these options would have taken before it
    found them stalled; None if all and more.
    """
    seen = [
        loop.Look(look["step"], 0.0, look["held_out"], False, look["seconds"]) for look in looks
    ]
    return next(
        (
            n
            for n in range(1, len(seen) + 1)
            if seen[n - 1].step >= options.steps or loop.stalled(seen[:n], options)
        ),
        None,
    )


def best(looks: list[dict]) -> dict:
    """The look at which held-out images are likeliest."""
    return max(looks, key=lambda look: look["held_out"])


def score(
    looks: list[dict], maps: Path, tool: Path, truth: Path, count: int, also: list[dict]
) -> None:
    """Adds auc and res_0.5 (Å) against the truth to about `count` looks, evenly over the log of the
    step, to the last and to `also`.
    """
    low = math.log(looks[0]["step"])
    high = math.log(looks[-1]["step"])
    wanted = [low + (high - low) * i / max(1, count - 1) for i in range(count)]
    for look in [
        *(min(looks, key=lambda one: abs(math.log(one["step"]) - w)) for w in wanted),
        looks[-1],
        *also,
    ]:
        if "auc" not in look:
            found = runs.score(tool, "map", maps / f"{look['step']}.mrc", truth)
            look |= {"auc": found["auc"], "res_0.5": found["res_0.5"]}


def options(doc: str) -> argparse.ArgumentParser:
    """What benchmarks with curves offer: those of `options.parser`, --figure, --markdown and
    --points.
    """
    made = parser(doc, seeds=(0,))
    made.add_argument(
        "--figure", type=Path, metavar="FILE.png", help="curves of the first set and seed"
    )
    made.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    made.add_argument(
        "--points",
        type=int,
        default=40,
        help="looks of a fit that are scored, about  [default: 40]",
    )
    return made
