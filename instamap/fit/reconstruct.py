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
from instamap.fit import loop, output
from instamap.fit.record import Log, write_toml
from instamap.forward.ctf import ctf
from instamap.maps import fsc, mask, mrc, slices
from instamap.options import to_dict
from instamap.registry import default
from instamap.scene import Scene

ENGINE = "images"


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
    engine: Choice = field(default_factory=lambda: choose("engine", ENGINE, []))
    parts: dict[str, Choice] = field(default_factory=defaults)

    def record(self) -> dict:
        """As a dict of plain values for run.toml; unset ones are left out."""
        names = ("particles", "datadir", "mask", "halves", "together", "held_out", "seed")
        plain = {n: str(v.resolve()) if isinstance(v, Path) else v for n in names if (v := getattr(self, n)) is not None}
        engine = {"engine": {"name": self.engine.name, **to_dict(self.engine.options)}}
        return {"instamap": __version__, **plain, **engine, **record(self.parts)}


@dataclass(frozen=True)
class Data:
    """Particles that were read and checked: the scene, and the row numbers of each fit and of the held-out set."""

    particles: Particles
    scene: Scene
    rows: dict[str, Tensor]
    held_out: Tensor


@dataclass(frozen=True)
class Result:
    """Maps "D D D" by name (map, half1, half2), looks of each fit, and the FSC curves by name with their resolution in Å."""

    maps: dict[str, Tensor]
    looks: dict[str, list[loop.Look]]
    curves: dict[str, Tensor]
    resolution: float | None


Watch = Callable[[str, loop.Look], None]


def prepare(settings: Settings) -> Data:
    """Read and check the particles, estimate the noise, draw the sets. Raises DataError."""
    particles = Particles.open(settings.particles, datadir=settings.datadir)
    levels = noise.estimate(particles, seed=settings.seed, transfer=ctf)
    window = mask.load(settings.mask, particles.box, particles.pixel_size) if settings.mask else None
    scene = Scene(
        box=particles.box, pixel_size=particles.pixel_size, count=particles.count, premultiplied=particles.premultiplied,
        mask=window, noise_variance=levels.noise_variance.float(),
    )  # fmt: skip
    scene = replace(scene, density_scale=levels.signal_scale / scene.radius)
    kept, held_out = draw_held_out(particles, settings)
    if not settings.halves:
        return Data(particles, scene, {"map": kept}, held_out)
    half = particles.split(settings.seed, settings.together)[kept]
    rows = {"half1": kept[half == 0], "half2": kept[half == 1]}
    for name, number in rows.items():
        if not len(number):
            raise DataError(f"{name} of '{settings.particles}' has no particles; mend rlnRandomSubset or add --no-halves")
    return Data(particles, scene, rows, held_out)


def draw_held_out(particles: Particles, settings: Settings) -> tuple[Tensor, Tensor]:
    """Row numbers to fit and to hold out, drawn with the seed; rows that stay together are drawn together."""
    group = particles.groups(settings.together) if settings.together else torch.arange(particles.count)
    generator = torch.Generator().manual_seed(settings.seed)
    order = torch.randperm(int(group.max()) + 1, generator=generator)
    out = torch.isin(group, order[: max(1, round(settings.held_out * len(order)))])
    if out.all():
        raise DataError(f"'{settings.particles}' has {particles.count} particles, too few to hold some out; give more")
    return (~out).nonzero()[:, 0], out.nonzero()[:, 0]


def fit_one(settings: Settings, data: Data, name: str, watch: Watch) -> tuple[Model, list[loop.Look]]:
    """Fit one of the sets of `data.rows`; the seed and the name alone decide its random numbers."""
    number = settings.seed * 1000 + list(data.rows).index(name)
    with torch.random.fork_rng(devices=[]):  # initial values come from torch's global generator
        torch.manual_seed(number)
        model = compose(settings.parts, data.scene)
    engine = default().get("engine", settings.engine.name).load()
    objective = engine(settings.engine.options, model, data.particles, data.rows[name], data.held_out)
    generator = torch.Generator().manual_seed(number)
    return model, loop.fit(model, objective, generator=generator, watch=lambda look: watch(name, look))


def reconstruct(settings: Settings, out: Path, *, force: bool = False, watch: Watch = lambda name, look: None,
                announce: Callable[[Data], None] = lambda data: None) -> Result:  # fmt: skip
    """Fit every set, write maps, curves and records to the folder `out`. Raises InstamapError before anything is written."""
    output.check(out, force)
    data, hook = prepare(settings), default().hook
    announce(data)
    with output.staged(out, force) as stage:
        hook.instamap_run_started(settings=settings.record())
        log = Log(stage / "log.jsonl")

        def look_at(name: str, look: loop.Look) -> None:
            metrics = {"loss": look.loss, "held_out": look.held_out, "seconds": round(look.seconds, 3)}
            log.write({"fit": name, "step": look.step, **metrics})
            hook.instamap_step_finished(name=name, step=look.step, metrics=metrics)
            watch(name, look)

        try:
            fits = {name: fit_one(settings, data, name, look_at) for name in data.rows}
        finally:
            log.close()
        maps = {name: model.raster() for name, (model, _) in fits.items()}
        result = finish(maps, {name: looks for name, (_, looks) in fits.items()}, data.scene)
        write(result, data.scene, stage)
        write_toml(stage / output.MARK, settings.record())
    return result


def finish(maps: dict[str, Tensor], looks: dict, scene: Scene) -> Result:
    """The mean map and, of half maps, the FSC curves and the resolution where the mask-corrected one falls to 0.143."""
    if "map" in maps:
        return Result(maps, looks, {}, None)
    one, two = maps["half1"], maps["half2"]
    mean = 0.5 * (one + two)
    inside = scene.mask if scene.mask is not None else mask.from_map(mean, scene.pixel_size)
    curves = {"unmasked": fsc.fsc(one, two), "masked": fsc.fsc(one, two, inside)}
    curves["corrected"] = fsc.phase_randomised(one, two, inside, generator=torch.Generator().manual_seed(0))
    resolution = fsc.resolution(curves["corrected"], scene.box, scene.pixel_size, 0.143)
    return Result({"map": mean, **maps}, looks, curves, resolution)


def write(result: Result, scene: Scene, folder: Path) -> None:
    """Maps as .mrc, curves as fsc.csv and fsc.png, and a look at the map as map.png."""
    for name, values in result.maps.items():
        mrc.write(folder / f"{name}.mrc", values, scene.pixel_size)
    if result.curves:
        fsc.write_csv(folder / "fsc.csv", result.curves, scene.box, scene.pixel_size)
        fsc.plot(folder / "fsc.png", result.curves, scene.box, scene.pixel_size)
    slices.plot(folder / "map.png", result.maps["map"], scene.pixel_size)
