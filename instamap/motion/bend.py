"""The schedule that bends one density into all conformations: a sharp one first, then its
neighbours in turn, then all, then finer.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace

import torch
from torch import Tensor

from instamap.fitting.conformations import ConformationData, Conformations
from instamap.fitting.loop import FitResult, optimise
from instamap.fitting.normal import NormalEquations
from instamap.fitting.objective import ObjectiveOptions, StatisticsData
from instamap.fitting.stage import Stage
from instamap.fourier.rescale import rescale
from instamap.maps import mask
from instamap.model import Model, compose
from instamap.motion.posterior import spacing
from instamap.plugin.choice import Choices
from instamap.progress import Progress
from instamap.scene import Scene
from instamap.statistics import initial_map
from instamap.statistics.statistics import Statistics

# Stages in which more and more conformations are drawn in, outwards from the densest.
DRAWING_STAGES = 4
MASK_THRESHOLD = 0.15  # of the highest value of any conformation's map
MASK_EXTEND = 2
MASK_EDGE = 2


@dataclass(frozen=True)
class MotionFit:
    """What the fits of one set have in common: parts, scene, options and seed.

    progress, name: what is told of their evaluations, and of whom ("half1"). device: where they
    run; models and maps that come out of them are on the CPU.
    """

    parts: Choices
    scene: Scene
    options: Conformations.Options
    seed: int
    progress: Progress
    name: str
    device: str = "cpu"

    def model(self) -> Model:
        """A new model, on the device."""
        return compose(self.parts, self.scene, self.seed).to(self.device)

    def generator(self) -> torch.Generator:
        """A new generator of random numbers."""
        return torch.Generator().manual_seed(self.seed)


def with_mask_and_scale(scene: Scene, maps: Tensor) -> Scene:
    """The scene with a mask that holds all conformations, and the density's scale.

    The mask is found in their maps "K N N N", of the scene's box or with fewer voxels, unless the
    scene has one.
    """
    middle = rescale(maps[len(maps) // 2], scene.box).float()
    window = scene.mask
    if window is None:
        highest = middle
        for one in maps:  # one by one: all would fill the memory
            highest = torch.maximum(highest, rescale(one, scene.box).float())
        window = mask.from_map(
            highest,
            scene.pixel_size,
            threshold=MASK_THRESHOLD,
            extend=MASK_EXTEND,
            edge=MASK_EDGE,
        )
    scale = initial_map.density_scale(middle, window)
    return replace(scene, mask=window, density_scale=scale)


def bend(fit: MotionFit, data: ConformationData) -> Model:
    """A model whose density is the densest conformation's, bent into all others."""
    model = fit.model()
    generator = fit.generator()
    order = _outwards(data)
    pair = beginning(data, order)
    sharp = NormalEquations(
        single_density_options(fit.options),
        model,
        StatisticsData(_total(data.fitted, pair), held_out=_total(data.held_out, pair)),
    )
    optimise(
        model,
        sharp,
        (Stage(deformation=0.0),),
        generator=generator,
        progress=fit.progress,
        name=f"{fit.name} conformation",
    )
    for reach in _reaches(len(pair), len(order)):
        some = _subset(data, order[:reach])
        _run(fit, model, some, (Stage(representation=0.0),), generator)
    _run(fit, model, _subset(data, order), (Stage(),), generator)
    return model.cpu()


def beginning(data: ConformationData, order: Sequence[int]) -> list[int]:
    """The first of the conformations in `order`, from which the density begins: one more than there
    are coordinates, or as many as it takes for held-out particles to be among them.
    """
    count = 1 + data.z.shape[1]
    while count < len(order) and not any(data.held_out[k].weight for k in order[:count]):
        count += 1
    return list(order[:count])


def _outwards(data: ConformationData) -> list[int]:
    """The numbers of all conformations, by their distance from the one with most particles near."""
    z = data.z
    mass = torch.tensor([one.weight for one in data.fitted])
    relative = torch.cdist(z, z) / spacing(z)
    near = torch.exp(-0.5 * relative**2) @ mass
    densest = z[near.argmax()]
    return (z - densest).norm(dim=1).argsort().tolist()


def _reaches(first: int, last: int) -> list[int]:
    """How many conformations each stage draws in, `first` at least and `last` at the end."""
    shares = [-(-last * number // DRAWING_STAGES) for number in range(1, DRAWING_STAGES + 1)]
    return sorted({max(first, share) for share in shares})


def _total(statistics: Sequence[Statistics], chosen: list[int]) -> Statistics:
    """The sum of the chosen ones."""
    total = statistics[chosen[0]]
    for k in chosen[1:]:
        total = total + statistics[k]
    return total


def _subset(data: ConformationData, chosen: list[int]) -> ConformationData:
    """The data of some conformations, in the order of their numbers in `chosen`."""
    fitted = [data.fitted[k] for k in chosen]
    held_out = [data.held_out[k] for k in chosen]
    return ConformationData(fitted, held_out, data.z[chosen])


@dataclass(frozen=True)
class DensityFit:
    """A density that was fitted: its model, and the result."""

    model: Model
    result: FitResult


def fit_density(fit: MotionFit, data: StatisticsData, what: str) -> DensityFit:
    """One density that nothing bends, in as many steps as `bend` has for a density, and to where
    one map would be fitted.

    what: it is called. A rival that is cut short would flatter motion, and the map of a domain
    would be less sharp than without motion.
    """
    usual = single_density_options(fit.options)
    model = fit.model()
    share = min(usual.tolerance, NormalEquations.Options().tolerance)
    longer = replace(usual, steps=2 * usual.steps, tolerance=share)
    result = optimise(
        model,
        NormalEquations(longer, model, data),
        (Stage(deformation=0.0),),
        generator=fit.generator(),
        progress=fit.progress,
        name=f"{fit.name} {what}",
    )
    return DensityFit(model.cpu(), on_cpu(result))


def sharpen(
    fit: MotionFit,
    data: ConformationData,
    coarse: Model | None,
) -> tuple[Model, FitResult]:
    """The bent density at the scene's resolution: a new density with the deformation held, then
    both, then the density alone.

    coarse: the model that has the deformation; None where nothing moves, and only the density is
    fitted.
    """
    model = fit.model()
    stages: tuple[Stage, ...] = (Stage(deformation=0.0),)
    if coarse is not None:
        model.deformation.load_state_dict(coarse.deformation.state_dict())
        stages = (
            Stage(deformation=0.0),
            Stage(representation=0.5, deformation=0.3),
            Stage(deformation=0.0, representation=0.3),
        )
    result = _run(fit, model, data, stages, fit.generator())
    return model.cpu(), on_cpu(result)


def on_cpu(result: FitResult) -> FitResult:
    """The result, its map on the CPU."""
    return replace(result, map=result.map.cpu())


def single_density_options(options: Conformations.Options) -> NormalEquations.Options:
    """Options of a fit of one density, with what a fit of many conformations has in common with it,
    and its jitter.
    """
    values = asdict(options)
    shared = {one.name: values[one.name] for one in fields(ObjectiveOptions)}
    return NormalEquations.Options(**shared, jitter=options.jitter)


def _run(
    fit: MotionFit,
    model: Model,
    data: ConformationData,
    stages: tuple[Stage, ...],
    generator: torch.Generator,
) -> FitResult:
    """A fit after which the model has the averaged parameters of the best evaluation."""
    objective = Conformations(fit.options, model, data)
    result = optimise(
        model,
        objective,
        stages,
        generator=generator,
        progress=fit.progress,
        name=f"{fit.name} bend",
    )
    model.load_state_dict(objective.fitted_model(model).state_dict())
    return result
