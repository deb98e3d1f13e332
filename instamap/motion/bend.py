"""The schedule that bends one density into all states: a sharp state first, then its neighbours in
turn, then all, then finer.
"""

from collections.abc import Callable
from dataclasses import fields, replace

import torch
from torch import Tensor

from instamap.fit import loop
from instamap.fit.conformations import ConformationData, Conformations
from instamap.fit.normal import NormalEquations
from instamap.fit.objective import ObjectiveOptions, StatisticsData
from instamap.fit.stage import Stage
from instamap.maps import mask
from instamap.model import Model, compose
from instamap.motion.posterior import spacing
from instamap.plugin.choice import Choice
from instamap.progress import Evaluation
from instamap.scene import Scene
from instamap.statistics import initial_map
from instamap.statistics.statistics import Statistics

REACHES = 4  # stages in which more and more states are drawn in, outwards from the densest
SHARED = [f.name for f in fields(ObjectiveOptions)]
MASK = 0.15  # of the highest value of any state's map

Watch = Callable[[str, Evaluation], None]


def aim(scene: Scene, maps: Tensor) -> Scene:
    """The scene with a mask that holds all states, found in their maps "K N N N" (unless it has
    one), and the density's scale.
    """
    window = scene.mask
    if window is None:
        window = mask.from_map(maps.amax(0), scene.pixel_size, threshold=MASK, extend=2, edge=2)
    return replace(
        scene, mask=window, density_scale=initial_map.density_scale(maps[len(maps) // 2], window)
    )


def begin(
    parts: dict[str, Choice],
    scene: Scene,
    options: Conformations.Options,
    fitted: list[Statistics],
    judge: list[Statistics],
    z: Tensor,
    seed: int,
    watch: Watch,
) -> Model:
    """A model whose density is the densest state's and whose deformation leads from there to all
    states, at the scene's resolution.
    """
    model = compose(parts, scene, seed)
    generator = torch.Generator().manual_seed(seed)
    mass = torch.tensor([s.weight for s in fitted])
    near = torch.exp(-0.5 * (torch.cdist(z, z) / spacing(z)) ** 2) @ mass
    order = (z - z[near.argmax()]).norm(dim=1).argsort().tolist()
    pair = order[: 1 + z.shape[1]]

    def whole(some, of):
        return sum((of[k] for k in some[1:]), start=of[some[0]])

    evidence = StatisticsData(whole(pair, fitted), held_out=whole(pair, judge))
    still = NormalEquations(still_options(options), model, evidence)

    def looked(look):
        return watch("state", look)

    loop.optimise(model, still, (Stage(deformation=0.0),), generator=generator, watch=looked)
    reaches = sorted({max(len(pair), -(-len(order) * i // REACHES)) for i in range(1, REACHES + 1)})
    for stage, count in [
        *((Stage(representation=0.0), reach) for reach in reaches),
        (Stage(), len(order)),
    ]:

        def pick(some, count=count):
            return [some[k] for k in order[:count]]

        _run(
            model,
            Conformations(
                options, model, ConformationData(pick(fitted), pick(judge), z[order[:count]])
            ),
            (stage,),
            generator,
            watch,
        )
    return model


def rigid(
    parts: dict[str, Choice],
    scene: Scene,
    options: Conformations.Options,
    fitted: Statistics,
    judge: Statistics,
    seed: int,
    watch: Watch,
) -> Tensor:
    """The map "D D D" of all particles, in as many steps as `begin` has for a density: a rival that
    is cut short would flatter motion.
    """
    usual = still_options(options)
    model = compose(parts, scene, seed)
    objective = NormalEquations(
        replace(usual, steps=2 * usual.steps),
        model,
        StatisticsData(fitted, held_out=judge),
    )
    generator = torch.Generator().manual_seed(seed)

    def looked(look):
        return watch("rigid", look)

    return loop.optimise(
        model, objective, (Stage(deformation=0.0),), generator=generator, watch=looked
    ).map


def sharpen(
    parts: dict[str, Choice],
    scene: Scene,
    options: Conformations.Options,
    fitted: list[Statistics],
    judge: list[Statistics],
    z: Tensor,
    coarse: Model | None,
    seed: int,
    watch: Watch,
) -> tuple[Model, loop.FitResult]:
    """The same at the scene's resolution: a new density with the deformation held, then both, then
    the density alone.

    coarse: the model that has the deformation; None where nothing moves, and only the density is
    fitted.
    """
    model = compose(parts, scene, seed)
    generator = torch.Generator().manual_seed(seed)
    stages = (Stage(deformation=0.0),)
    if coarse is not None:
        model.deformation.load_state_dict(coarse.deformation.state_dict())
        stages = (
            Stage(deformation=0.0),
            Stage(representation=0.5, deformation=0.3),
            Stage(deformation=0.0, representation=0.3),
        )
    return model, _run(
        model,
        Conformations(options, model, ConformationData(fitted, judge, z)),
        stages,
        generator,
        watch,
    )


def still_options(options: Conformations.Options) -> NormalEquations.Options:
    """Of a fit of one density, with the looks, patience and jitter of those of many states."""
    return NormalEquations.Options(**{name: getattr(options, name) for name in (*SHARED, "jitter")})


def _run(
    model: Model, objective: Conformations, stages: tuple[Stage, ...], generator, watch: Watch
) -> loop.FitResult:
    """A fit after which the model has the averaged parameters of the best look."""
    done = loop.optimise(
        model, objective, stages, generator=generator, watch=lambda look: watch("bend", look)
    )
    model.load_state_dict(objective.fitted_model(model).state_dict())
    return done
