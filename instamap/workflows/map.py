"""A whole reconstruction: from a STAR file to half maps, a map and its resolution."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from instamap.data.particles import Particles
from instamap.errors import CompositionError
from instamap.fit import loop, normal, stages
from instamap.fit.objective import Evidence
from instamap.fit.parallel import side_by_side
from instamap.maps import fsc, mask, mrc
from instamap.model import Choice, Model, born, choose, compose
from instamap.plugin.registry import default
from instamap.report import likelihood_plot, slices
from instamap.scene import Scene
from instamap.statistics import initial_map
from instamap.statistics.statistics import Statistics
from instamap.statistics.streaming import counter, gather
from instamap.workflows import output
from instamap.workflows.prepare import Survey, survey
from instamap.workflows.record import Log, reporting, write_toml
from instamap.workflows.settings import Settings
from instamap.workflows.statistics_folder import SETS, Folder

FIRST = 2000  # images, at most, of the first map of engines that gather no statistics


@dataclass(frozen=True)
class Data:
    """Particles, or statistics (then particles is None), that were read and checked: the scene, the
    engine, and what each fit may see.
    """

    particles: Particles | None
    scene: Scene
    engine: Choice
    evidence: dict[str, Evidence]
    found_mask: bool


Watch = Callable[[str, loop.Look], None]
Keep = Callable[[str, Model], None]


@dataclass(frozen=True)
class Result:
    """Maps "D D D" by name (map, half1, half2), the looks of each fit, the mask, the FSC curves by
    name and their resolution in Å.

    nothing: names of the fits that found no signal; their maps are empty, and there is no
    resolution.
    """

    maps: dict[str, Tensor]
    looks: dict[str, list[loop.Look]]
    mask: Tensor | None
    curves: dict[str, Tensor]
    resolution: float | None
    nothing: list[str]


def prepare(
    settings: Settings, count: Callable[[int, int], None] = lambda done, total: None
) -> Data:
    """Read and check the particles, estimate the noise, draw the sets, gather statistics, find the
    mask. Raises InstamapError.

    Statistics that are kept in a folder take the place of the particles. count(done, total) is told
    how many images have been read.
    """
    return _stored(settings) if settings.statistics else surveyed(survey(settings), settings, count)


def surveyed(
    known: Survey, settings: Settings, count: Callable[[int, int], None] = lambda done, total: None
) -> Data:
    """As `prepare`, of particles that have been read and checked, and may have other poses since.
    Raises InstamapError.
    """
    model = compose(settings.parts, known.scene)
    stages.check(model, settings.stages or ())
    engine = _engine(settings, model)
    for name, value, usual in (
        ("symmetry", settings.symmetry, "C1"),
        ("weights", settings.weights, None),
    ):
        if engine.name != "normal" and value != usual:
            raise CompositionError(
                f"{name} '{value}' needs engine 'normal', but engine is '{engine.name}'; leave it"
                " out, or choose others"
            )
    statistics = _statistics(known, engine, model, settings, count)
    each = {
        n: Evidence(
            known.particles, r, known.held_out, statistics.get(n), statistics.get("held_out")
        )
        for n, r in known.rows.items()
    }
    return _aimed(known.scene, engine, each, known.particles, statistics.get("first"))


def _stored(settings: Settings) -> Data:
    """From statistics on disk alone."""
    folder = Folder.open(settings.statistics)
    folder.check(settings)
    scene = folder.scene
    if settings.mask:
        scene = replace(scene, mask=mask.load(settings.mask, scene.box, scene.pixel_size))
    model = compose(settings.parts, scene)
    stages.check(model, settings.stages or ())
    engine = _engine(settings, model)
    if engine.name != "normal":
        raise CompositionError(
            f"engine '{engine.name}' needs images: the statistics in '{folder.path}' hold no"
            " images; choose normal"
        )
    one, two, held_out = (folder.statistics(name) for name in SETS)
    sets = {"half1": one, "half2": two} if settings.halves else {"map": one + two}
    each = {
        name: Evidence(statistics=some, held_out_statistics=held_out) for name, some in sets.items()
    }
    return _aimed(scene, engine, each)


def _engine(settings: Settings, model: Model) -> Choice:
    """The engine that was asked for, or the automatic one. Raises CompositionError where the normal
    equations do not hold.
    """
    if model.deformation.states == "weigh":
        name = settings.parts["deformation"].name
        raise CompositionError(
            f"deformation '{name}' needs engine 'states', but engine is '{settings.engine.name}';"
            " leave --engine out"
        )
    reason = normal.fits(model)
    chosen = (
        settings.engine
        if settings.engine.name != "auto"
        else choose("engine", "images" if reason else "normal", [])
    )
    if chosen.name == "normal":
        normal.check(model)
    return chosen


def _statistics(
    known: Survey, engine: Choice, model: Model, settings: Settings, count
) -> dict[str, Statistics]:
    """Of each set and the held-out one for normal equations; for other engines "first", of a sample
    of all that is fitted.
    """
    symmetry = known.symmetry
    weights = known.weights
    judge = model.likelihood
    sets = {**known.rows, "held_out": known.held_out}
    if engine.name != "normal":
        kept = torch.cat(list(known.rows.values()))
        judge = compose(
            {**settings.parts, "likelihood": choose("likelihood", "coloured", [])}, known.scene
        ).likelihood
        sets = {"first": kept[:: -(-len(kept) // FIRST)]}
    watch = counter(sets, count)
    return gather(known.particles, sets, judge, symmetry=symmetry, weights=weights, watch=watch)


def _aimed(
    scene: Scene,
    engine: Choice,
    evidence: dict[str, Evidence],
    particles: Particles | None = None,
    sample: Statistics | None = None,
) -> Data:
    """With the mask (found, if the scene has none) and the density's scale, from a first map of the
    sample or of all that is fitted.
    """
    sample = sample or sum(
        (e.statistics for e in evidence.values()),
        start=Statistics.empty(scene.box, scene.pixel_size),
    )
    first = initial_map.least_squares(
        sample, mask.sphere(scene.box, scene.pixel_size, scene.radius, 0.0)
    )
    window = initial_map.find_mask(first, scene.pixel_size) if scene.mask is None else scene.mask
    aimed = replace(scene, mask=window, density_scale=initial_map.scale(first, window))
    return Data(particles, aimed, engine, evidence, scene.mask is None)


def fit_one(
    settings: Settings, data: Data, name: str, watch: Watch, keep: Keep = lambda name, model: None
) -> loop.Fit:
    """Fit to one set's evidence; the seed and the name alone decide its random numbers. keep(name,
    model): of the best look.
    """
    number = settings.seed * 1000 + list(data.evidence).index(name)
    model = born(settings.parts, data.scene, number)
    engine = default().get("engine", data.engine.name).load()
    objective = engine(data.engine.options, model, data.evidence[name])
    generator = torch.Generator().manual_seed(number)
    done = loop.fit(
        model, objective, settings.stages, generator=generator, watch=lambda look: watch(name, look)
    )
    keep(name, objective.average if isinstance(objective.average, Model) else model)
    return done


def fit_all(
    settings: Settings, data: Data, watch: Watch, keep: Keep = lambda name, model: None
) -> dict[str, loop.Fit]:
    """Every set's fit, side by side."""
    return side_by_side(
        data.evidence, lambda name, guard: fit_one(settings, data, name, guard(watch), keep)
    )


def reconstruct(
    settings: Settings,
    out: Path,
    *,
    force: bool = False,
    watch: Watch = lambda name, look: None,
    count: Callable[[int, int], None] = lambda done, total: None,
    announce: Callable[[Data], None] = lambda data: None,
    learned: Callable[[Settings, Data, dict[str, Model], Path], None] = lambda *given: None,
) -> Result:
    """Fit every set, write maps, curves and records to the folder `out`. Raises InstamapError
    before anything is written.

    learned(settings, data, models, folder) may write there what the models, by set, have learned of
    particles, where they found a signal.
    """
    output.check(out, force)
    data = prepare(settings, count)
    announce(data)
    record = settings.record(data.engine)
    with output.staged(out, force) as stage, Log(stage / "log.jsonl") as log:
        default().hook.instamap_run_started(settings=record)
        models: dict[str, Model] = {}
        result = finish(
            fit_all(settings, data, reporting(log, watch), models.__setitem__),
            data.scene,
            data.evidence,
        )
        write(result, data, stage)
        if data.particles is not None and not result.nothing:
            learned(settings, data, models, stage)
        write_toml(stage / output.MARK, record)
    return result


def finish(
    fits: dict[str, loop.Fit], scene: Scene, evidence: dict[str, Evidence] | None = None
) -> Result:
    """The mean map and, of half maps, the FSC curves and the resolution: where the last of them
    falls to 0.143.

    masked: FSC inside the mask. corrected: less what the mask brings about, by phase randomisation.
    unbiased: what it would be if no prior were shared, from direct inversions of each half's
    statistics, where `evidence` has them.
    """
    inside = (
        1.0 if scene.mask is None else (scene.mask > 0).float()
    )  # voxels moved by jitter may have carried density over the edge
    maps = {name: fit.map * inside for name, fit in fits.items()}
    looks = {name: fit.looks for name, fit in fits.items()}
    nothing = [name for name, fit in fits.items() if not fit.signal]
    if "map" in maps:
        return Result(maps, looks, scene.mask, {}, None, nothing)
    one = maps["half1"]
    two = maps["half2"]
    known = [evidence[name].statistics for name in ("half1", "half2")] if evidence else [None]
    curves = {"masked": fsc.fsc(*(fsc.levelled(half, scene.mask) for half in (one, two)))}
    curves["corrected"] = fsc.phase_randomised(
        one, two, scene.mask, generator=torch.Generator().manual_seed(0)
    )
    if all(known):
        sphere = mask.sphere(scene.box, scene.pixel_size, scene.radius, 0.0)
        curves["unbiased"] = fsc.cross(
            one, two, *(initial_map.least_squares(some, sphere) for some in known), scene.mask
        )["unbiased"]
    judges = [curves[name] for name in ("corrected", "unbiased") if name in curves]
    found = [fsc.resolution(curve, scene.box, scene.pixel_size, 0.143) for curve in judges]
    return Result(
        {"map": 0.5 * (one + two), **maps},
        looks,
        scene.mask,
        curves,
        None if nothing else max(found),
        nothing,
    )


def write(result: Result, data: Data, folder: Path) -> None:
    """Maps and a found mask as .mrc, held_out.png, curves as fsc.csv and fsc.png, and a look at the
    map as map.png.
    """
    scene = data.scene
    likelihood_plot.plot(
        folder / "held_out.png",
        {n: [(look.step, look.held_out) for look in some] for n, some in result.looks.items()},
    )
    for name, values in {
        **result.maps,
        **({"mask": result.mask} if data.found_mask else {}),
    }.items():
        mrc.write(folder / f"{name}.mrc", values, scene.pixel_size)
    if result.curves:
        fsc.write_csv(folder / "fsc.csv", result.curves, scene.box, scene.pixel_size)
    if result.nothing:
        return  # nothing to draw
    if result.curves:
        fsc.plot(folder / "fsc.png", result.curves, scene.box, scene.pixel_size)
    slices.plot(folder / "map.png", result.maps["map"], scene.pixel_size)
