"""Direct inversion: the maps that a few steps of conjugate gradients make of the statistics."""

from dataclasses import dataclass

from instamap import GaussianLikelihood, Options, Result, Workflow, option
from instamap.maps import mask
from instamap.model import make_part, part_classes
from instamap.progress import SILENT
from instamap.statistics import initial_map
from instamap.statistics.streaming import accumulate
from instamap.workflows.map import compare_halves, resolution_of
from instamap.workflows.prepare import open_dataset, with_mask_and_scale
from instamap.workflows.record import LoggedProgress
from instamap.workflows.workflow import MAP_FILES


class Inversion(Workflow):
    """Solves the normal equations of each half by itself, inside the largest sphere."""

    may_write = MAP_FILES

    @dataclass(frozen=True)
    class Options(Options):
        steps: int = option(4, "steps of conjugate gradients; few regularise", low=1)

    @classmethod
    def unsuitable(cls, settings):
        likelihood = part_classes(settings.parts)["likelihood"]
        if not issubclass(likelihood, GaussianLikelihood):
            name = settings.likelihood.name
            return f"it needs Gaussian noise, likelihood '{name}' is not; choose gaussian"
        if not settings.halves or settings.statistics is not None:
            return "it needs images and two halves; leave --no-halves and statistics out"
        return None

    def run(self, settings, progress=SILENT):
        logged = LoggedProgress(progress)
        dataset = open_dataset(settings)
        likelihood = make_part("likelihood", settings.likelihood, dataset.scene)
        found = accumulate(dataset.particles, dataset.sets, likelihood, progress=logged)
        halves = [found["half1"], found["half2"]]
        scene, mask_was_found = with_mask_and_scale(dataset.scene, halves)
        sphere = mask.sphere(scene.box, scene.pixel_size, scene.radius, 0.0)
        steps = self.options.steps
        one, two = (initial_map.solve(half, sphere, steps) for half in halves)
        maps = {"map": 0.5 * (one + two), "half1": one, "half2": two}
        curves = compare_halves(maps, scene, {})
        counts = {name: len(rows) for name, rows in dataset.sets.items()}
        return Result(
            settings=settings,
            scene=scene,
            maps=maps,
            fits={},
            fsc=curves,
            resolution=resolution_of(curves, scene),
            counts=counts,
            mask_was_found=mask_was_found,
            log=logged.entries,
        )
