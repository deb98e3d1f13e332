"""A whole reconstruction: from a STAR file to half maps, a map and its resolution."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from instamap import __version__
from instamap.compose import Choice, Model, choose, compose, defaults, record
from instamap.data import noise
from instamap.data.particles import Particles
from instamap.errors import DataError
from instamap.fit import loop, normal, output, start
from instamap.fit.gather import gather
from instamap.fit.objective import EngineOptions, Evidence
from instamap.fit.record import Log, write_toml
from instamap.fit.statistics import Statistics
from instamap.forward.ctf import ctf
from instamap.maps import fsc, mask, mrc, slices
from instamap.registry import default
from instamap.scene import Scene

FIRST = 2000  # images, at most, of the first map of engines that gather no statistics
AUTO = Choice("auto", EngineOptions())


@dataclass(frozen=True)
class Settings:
    """All that decides the outcome of a reconstruction; run.toml keeps it.

    together: a column whose equal values stay in one half. held_out: share of the particles kept out of both halves.
    """

    particles: Path
    datadir: Path | None = None
    mask: Path | None = None
    halves: bool = True
    together: str | None = None
    held_out: float = 0.05
    seed: int = 0
    engine: Choice = AUTO
    parts: dict[str, Choice] = field(default_factory=defaults)

    def record(self, engine: Choice) -> dict:
        """As a dict of plain values for run.toml, with the engine that was used; unset ones are left out."""
        names = ("particles", "datadir", "mask", "halves", "together", "held_out", "seed")
        plain = {n: str(v.resolve()) if isinstance(v, Path) else v for n in names if (v := getattr(self, n)) is not None}
        return {"instamap": __version__, **plain, **record({"engine": engine, **self.parts})}


@dataclass(frozen=True)
class Data:
    """Particles that were read and checked: the scene, the engine, and what each fit may see."""

    particles: Particles
    scene: Scene
    engine: Choice
    evidence: dict[str, Evidence]
    found_mask: bool


Watch = Callable[[str, loop.Look], None]


@dataclass(frozen=True)
class Result:
    """Maps "D D D" by name (map, half1, half2), the looks of each fit, the mask, the FSC curves by name and their resolution in Å."""

    maps: dict[str, Tensor]
    looks: dict[str, list[loop.Look]]
    mask: Tensor | None
    curves: dict[str, Tensor]
    resolution: float | None


def prepare(settings: Settings, count: Callable[[int, int], None] = lambda done, total: None) -> Data:
    """Read and check the particles, estimate the noise, draw the sets, gather statistics, find the mask. Raises InstamapError.

    count(done, total) is told how many images have been read.
    """
    particles = Particles.open(settings.particles, datadir=settings.datadir)
    window = mask.load(settings.mask, particles.box, particles.pixel_size) if settings.mask else None
    levels = noise.estimate(particles, seed=settings.seed, transfer=ctf)
    scene = Scene(
        box=particles.box, pixel_size=particles.pixel_size, count=particles.count, premultiplied=particles.premultiplied,
        mask=window, noise_variance=levels.noise_variance.float(),
    )  # fmt: skip
    model = compose(settings.parts, scene)
    engine = settings.engine if settings.engine.name != "auto" else _automatic(model)
    if engine.name == "normal":
        normal.check(model)
    rows, held_out = draw_sets(particles, settings)
    statistics = _statistics(particles, rows, held_out, scene, engine, model, settings, count)
    first = start.least_squares(statistics["first"], start.sphere(scene.box, scene.pixel_size))
    window = start.find_mask(first, scene.pixel_size) if window is None else window
    scene = replace(scene, mask=window, density_scale=start.scale(first, window))
    evidence = {n: Evidence(particles, r, held_out, statistics.get(n), statistics.get("held_out")) for n, r in rows.items()}
    return Data(particles, scene, engine, evidence, settings.mask is None)


def _automatic(model: Model) -> Choice:
    return choose("engine", "images" if normal.fits(model) else "normal", [])


def _statistics(particles, rows, held_out, scene, engine, model, settings, count) -> dict[str, Statistics]:
    """Of each set and the held-out one for normal equations, and "first": of all that is fitted, or of a sample for other engines."""
    if engine.name == "normal":
        judge, sets = model.likelihood, {**rows, "held_out": held_out}
    else:
        kept = torch.cat(list(rows.values()))
        judge = compose({**settings.parts, "likelihood": choose("likelihood", "coloured", [])}, scene).likelihood
        sets = {"first": kept[:: max(1, len(kept) // FIRST)]}
    total, done = sum(len(r) for r in sets.values()), 0

    def watch(number: int) -> None:
        nonlocal done
        done += number
        count(done, total)

    found = gather(particles, sets, judge, watch=watch)
    return found if "first" in found else {**found, "first": sum((found[n] for n in rows), start=Statistics.empty(scene.box, scene.pixel_size))}


def draw_sets(particles: Particles, settings: Settings) -> tuple[dict[str, Tensor], Tensor]:
    """Row numbers of each fit and of the held-out set, drawn with the seed; rows that stay together are drawn together."""
    group = particles.groups(settings.together) if settings.together else torch.arange(particles.count)
    order = torch.randperm(int(group.max()) + 1, generator=torch.Generator().manual_seed(settings.seed))
    out = torch.isin(group, order[: max(1, round(settings.held_out * len(order)))])
    half = particles.split(settings.seed, settings.together) if settings.halves else torch.zeros(particles.count)
    names = ("half1", "half2") if settings.halves else ("map",)
    rows = {name: ((half == i) & ~out).nonzero()[:, 0] for i, name in enumerate(names)}
    for name, some in rows.items():
        if not len(some):
            raise DataError(
                f"no particles are left for {name} of the {particles.count} in '{settings.particles}'; give more, "
                "mend rlnRandomSubset, or add --no-halves"
            )
    return rows, out.nonzero()[:, 0]


def fit_one(settings: Settings, data: Data, name: str, watch: Watch) -> loop.Fit:
    """Fit to one set's evidence; the seed and the name alone decide its random numbers."""
    number = settings.seed * 1000 + list(data.evidence).index(name)
    with torch.random.fork_rng(devices=[]):  # initial values come from torch's global generator
        torch.manual_seed(number)
        model = compose(settings.parts, data.scene)
    engine = default().get("engine", data.engine.name).load()
    objective = engine(data.engine.options, model, data.evidence[name])
    return loop.fit(model, objective, generator=torch.Generator().manual_seed(number), watch=lambda look: watch(name, look))


def reconstruct(settings: Settings, out: Path, *, force: bool = False, watch: Watch = lambda name, look: None,
                count: Callable[[int, int], None] = lambda done, total: None,
                announce: Callable[[Data], None] = lambda data: None) -> Result:  # fmt: skip
    """Fit every set, write maps, curves and records to the folder `out`. Raises InstamapError before anything is written."""
    output.check(out, force)
    data = prepare(settings, count)
    announce(data)
    record = settings.record(data.engine)
    with output.staged(out, force) as stage, Log(stage / "log.jsonl") as log:
        default().hook.instamap_run_started(settings=record)

        def look_at(name: str, look: loop.Look) -> None:
            metrics = {"loss": look.loss, "held_out": look.held_out, "seconds": round(look.seconds, 3)}
            log.write({"fit": name, "step": look.step, **metrics})
            default().hook.instamap_step_finished(name=name, step=look.step, metrics=metrics)
            watch(name, look)

        fits = {name: fit_one(settings, data, name, look_at) for name in data.evidence}
        result = finish(fits, data.scene)
        write(result, data, stage)
        write_toml(stage / output.MARK, record)
    return result


def finish(fits: dict[str, loop.Fit], scene: Scene) -> Result:
    """The mean map and, of half maps, the FSC curves and the resolution where the mask-corrected one falls to 0.143."""
    maps, looks = {name: fit.map for name, fit in fits.items()}, {name: fit.looks for name, fit in fits.items()}
    if "map" in maps:
        return Result(maps, looks, scene.mask, {}, None)
    one, two = maps["half1"], maps["half2"]
    curves = {"unmasked": fsc.fsc(one, two), "masked": fsc.fsc(one, two, scene.mask)}
    curves["corrected"] = fsc.phase_randomised(one, two, scene.mask, generator=torch.Generator().manual_seed(0))
    resolution = fsc.resolution(curves["corrected"], scene.box, scene.pixel_size, 0.143)
    return Result({"map": 0.5 * (one + two), **maps}, looks, scene.mask, curves, resolution)


def write(result: Result, data: Data, folder: Path) -> None:
    """Maps and a found mask as .mrc, curves as fsc.csv and fsc.png, and a look at the map as map.png."""
    scene = data.scene
    for name, values in {**result.maps, **({"mask": result.mask} if data.found_mask else {})}.items():
        mrc.write(folder / f"{name}.mrc", values, scene.pixel_size)
    if result.curves:
        fsc.write_csv(folder / "fsc.csv", result.curves, scene.box, scene.pixel_size)
        fsc.plot(folder / "fsc.png", result.curves, scene.box, scene.pixel_size)
    slices.plot(folder / "map.png", result.maps["map"], scene.pixel_size)
