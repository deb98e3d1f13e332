"""The workflow of a map: half maps, their mean and its resolution, by any objective."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from instamap import memory
from instamap.data.splits import HALVES
from instamap.fitting.loop import FitResult, optimise
from instamap.fitting.objective import FitData, StatisticsData
from instamap.fitting.parallel import run_in_threads
from instamap.maps import fsc, mask
from instamap.model import Model, compose, part_classes
from instamap.motion.ring import CIRCLE
from instamap.parts import DiscreteDeformation
from instamap.plugin.choice import load_class
from instamap.plugin.options import CoordinateOptions
from instamap.plugin.options import Options as WorkflowOptions
from instamap.progress import SILENT, Progress
from instamap.scene import Scene
from instamap.statistics import initial_map
from instamap.threads import in_order
from instamap.workflows import middle, per_particle
from instamap.workflows.devices import CPU, described
from instamap.workflows.prepare import Prepared, prepare
from instamap.workflows.record import LoggedProgress
from instamap.workflows.result import Artefact, Result
from instamap.workflows.settings import Settings
from instamap.workflows.workflow import MAP_FILES, Workflow

GOLD_STANDARD = 0.143  # FSC of half maps at the resolution
SEEDS_PER_RUN = 1000  # each fit of a run has a seed of its own


class MapWorkflow(Workflow):
    """Reads the particles or their statistics, fits every set by itself, compares the half maps."""

    objectives = ("normal", "images")
    takes_device = True
    may_write = (*MAP_FILES, *per_particle.FILES)

    @dataclass(frozen=True)
    class Options(WorkflowOptions):
        """It has none: what there is to choose is the objective's."""

    @classmethod
    def unsuitable(cls, settings: Settings) -> str | None:
        classes = part_classes(settings.parts)
        if issubclass(classes["deformation"], DiscreteDeformation):
            return (
                f"deformation '{settings.deformation.name}' needs workflow 'motion'; leave"
                " --workflow out"
            )
        options = settings.deformation.options
        if isinstance(options, CoordinateOptions) and options.topology == CIRCLE:
            return "topology 'circle' is for workflow 'motion'; leave it or --objective out"
        named = settings.objective
        names = cls.objectives if named is None else (named.name,)
        reasons = {name: _against(name, settings, classes) for name in names}
        if None in reasons.values():
            return None
        return "; ".join(f"objective '{name}': {why}" for name, why in reasons.items())

    @classmethod
    def reload(cls, folder: Path, result: Result) -> Result:
        return replace(result, artefacts=per_particle.reload(folder))

    def run(self, settings: Settings, progress: Progress = SILENT) -> Result:
        logged = LoggedProgress(progress)
        prepared = prepare(settings, logged)
        describe(settings, prepared, logged)
        fits, models = fit_all(settings, prepared, logged)
        artefacts = per_particle.learned(settings, prepared, fits, models)
        del models  # half maps are compared in the memory that they leave
        return make_result(settings, prepared, fits, logged, artefacts)


def _against(objective: str, settings: Settings, classes: Mapping[str, type]) -> str | None:
    """Why an objective cannot be used with these settings, or None."""
    chosen = load_class("objective", objective)
    reason = chosen.reason_against(dict(classes))
    if reason is not None:
        return f"{reason}; choose another objective or other parts"
    if chosen.needs == "statistics":
        return None
    if chosen.needs != "images":
        return f"it needs {chosen.needs}, which workflow 'map' has not; choose another"
    if settings.statistics is not None:
        return (
            f"it needs images, and the statistics in '{settings.statistics}' hold none; choose"
            " another objective"
        )
    if settings.symmetry != "C1":
        return (
            f"it knows no symmetry, and symmetry is '{settings.symmetry}'; leave it out, or choose"
            " another objective"
        )
    if settings.weights is not None:
        return (
            f"it knows no weights, and weights is '{settings.weights}'; leave it out, or choose"
            " another objective"
        )
    return None


def describe(settings: Settings, prepared: Prepared, progress: Progress) -> None:
    """Tells what is about to be fitted."""
    scene = prepared.image_scene
    counts = dict(prepared.counts)
    held_out = counts.pop("held_out")
    if settings.device != CPU:
        progress.message(f"device          {described(torch.device(settings.device))}")
    kind = "premultiplied by the CTF" if scene.premultiplied else "with contrast transfer"
    sets = ", ".join(f"{name} {count}" for name, count in counts.items())
    progress.message(
        f"particles       {settings.particles}: {scene.count} images of {scene.box} px at"
        f" {scene.pixel_size:g} Å, {kind}"
    )
    progress.message(f"sets            {sets}, held out {held_out}")
    if prepared.particles is not None and prepared.particles.lattice_change:
        progress.message(f"images          {prepared.particles.lattice_change}")
    if prepared.particles is not None and prepared.particles.table.assumed:
        progress.message(f"assumed         {prepared.particles.table.assumed}")
    if prepared.particles is not None and prepared.particles.ignored:
        progress.message(f"not modelled    {', '.join(prepared.particles.ignored)}")
    window = prepared.scene.mask
    assert window is not None  # prepared scenes have one
    share = int((window > 0).sum()) / scene.box**3
    where = settings.mask or "found in a first map, written to mask.mrc"
    progress.message(f"mask            {where}: {share:.0%} of the box")


def fit_all(
    settings: Settings, prepared: Prepared, progress: Progress, suffix: str = ""
) -> tuple[dict[str, FitResult], dict[str, Model]]:
    """Fits every set, side by side: the results and the models of the best evaluations.

    suffix: what is added to the fits' names where progress is told of them.
    """
    models: dict[str, Model] = {}

    def task(name: str, serialised: Progress) -> FitResult:
        result, models[name] = fit_one(settings, prepared, name, serialised, suffix)
        return result

    memory.give_back()  # of the images
    fits = run_in_threads(prepared.fits, task, progress)
    memory.give_back()
    return fits, {name: models[name] for name in prepared.fits}


def fit_one(
    settings: Settings, prepared: Prepared, name: str, progress: Progress, suffix: str = ""
) -> tuple[FitResult, Model]:
    """Fits one set; the seed and the set's place alone decide its random numbers."""
    assert settings.objective is not None  # settings are resolved
    seed = settings.seed * SEEDS_PER_RUN + list(prepared.fits).index(name)
    model = compose(settings.parts, prepared.scene, seed).to(settings.device)
    objective_class = load_class("objective", settings.objective.name)
    objective = objective_class(settings.objective.options, model, prepared.fits[name])
    memory.give_back()  # of what model and objective were made with
    result = optimise(
        model,
        objective,
        settings.stages,
        generator=torch.Generator().manual_seed(seed),
        progress=progress,
        name=name + suffix,
    )
    fitted = objective.fitted_model(model).cpu()
    return replace(result, map=result.map.cpu()), fitted


def make_result(
    settings: Settings,
    prepared: Prepared,
    fits: dict[str, FitResult],
    logged: LoggedProgress,
    artefacts: Sequence[Artefact] = (),
) -> Result:
    """The result of fits of all sets."""
    maps, curves = whole_maps_and_curves(fits, prepared)
    scene = prepared.whole_scene()
    fits = {name: replace(fit, map=maps[name]) for name, fit in fits.items()}
    signal = all(fit.signal for fit in fits.values())
    return Result(
        settings=settings,
        scene=scene,
        maps=maps,
        fits=fits,
        fsc=curves,
        resolution=resolution_of(curves, scene) if signal else None,
        counts=prepared.counts,
        mask_was_found=prepared.mask_was_found,
        log=logged.entries,
        artefacts=artefacts,
        rotations=None if prepared.particles is None else prepared.particles.views.rotation,
        contrast=prepared.contrast,
    )


def whole_maps_and_curves(
    fits: Mapping[str, FitResult], prepared: Prepared
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The maps of the fits and the FSC curves of half maps, in the box of the images."""
    scene = prepared.scene
    maps = maps_of(fits, scene)
    curves = compare_halves(maps, scene, prepared.fits)
    return middle.whole_maps(maps, scene), middle.whole_curves(curves, scene)


def maps_of(fits: Mapping[str, FitResult], scene: Scene) -> dict[str, Tensor]:
    """The maps of the fits, empty outside the mask, and the mean of half maps first."""
    # Voxels that jitter moved may have carried density over the edge of the mask.
    inside = 1.0 if scene.mask is None else (scene.mask > 0).float()
    maps = {name: fit.map * inside for name, fit in fits.items()}
    if "map" in maps:
        return maps
    one, two = (maps[name] for name in HALVES)
    return {"map": 0.5 * (one + two), **maps}


def compare_halves(
    maps: Mapping[str, Tensor], scene: Scene, data: Mapping[str, FitData]
) -> dict[str, Tensor]:
    """FSC curves of half maps by name; none without halves.

    masked: inside the mask. corrected: less what the mask brings about, by phase randomisation.
    unbiased: what it would be if no prior were shared, from direct inversions of each half's
    statistics, where `data` has them.
    """
    if "half1" not in maps:
        return {}
    assert scene.mask is not None  # prepared scenes have one
    one, two = (maps[name] for name in HALVES)
    generator = torch.Generator().manual_seed(0)  # the same maps have the same curve
    correction = fsc.correct_for_mask(one, two, scene.mask, generator=generator)
    curves = {"masked": correction.masked, "corrected": correction.corrected}
    known = [data[name] for name in HALVES] if data else []
    statistics = [one.fitted for one in known if isinstance(one, StatisticsData)]
    if len(statistics) == len(HALVES):
        sphere = mask.sphere(scene.box, scene.pixel_size, scene.radius, 0.0)
        first, second = in_order(lambda each: initial_map.solve(each, sphere), statistics)
        curves["unbiased"] = fsc.cross(one, two, first, second, scene.mask)["unbiased"]
    return curves


def resolution_of(curves: Mapping[str, Tensor], scene: Scene) -> float | None:
    """Å where the last of the honest curves falls to 0.143; None without any."""
    honest = [curves[name] for name in ("corrected", "unbiased") if name in curves]
    if not honest:
        return None
    return max(fsc.resolution(c, scene.box, scene.pixel_size, GOLD_STANDARD) for c in honest)
