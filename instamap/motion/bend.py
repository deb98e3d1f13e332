"""The schedule that bends one density into all states: a sharp state first, then its neighbours in turn, then all, then finer."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from instamap.compose import Choice, Model, compose
from instamap.fit import loop, start
from instamap.fit.normal import Normal
from instamap.fit.objective import Evidence
from instamap.fit.stages import Stage
from instamap.fit.statistics import Statistics
from instamap.maps import mask
from instamap.motion.infer import spacing
from instamap.motion.objective import States
from instamap.scene import Scene

REACHES = 4  # stages in which more and more states are drawn in, outwards from the densest
MASK = 0.15  # of the highest value of any state's map

Watch = Callable[[str, loop.Look], None]


def aim(scene: Scene, maps: Tensor) -> Scene:
    """The scene with a mask that holds all states, found in their maps "K N N N" (unless it has one), and the density's scale."""
    window = scene.mask
    if window is None:
        window = mask.from_map(maps.amax(0), scene.pixel_size, threshold=MASK, extend=2, edge=2)
    return replace(scene, mask=window, density_scale=start.scale(maps[len(maps) // 2], window))


def begin(parts: dict[str, Choice], scene: Scene, options: States.Options, fitted: list[Statistics], judge: list[Statistics], z: Tensor,
          seed: int, watch: Watch) -> Model:  # fmt: skip
    """A model whose density is the densest state's and whose deformation leads from there to all states, at the scene's resolution."""
    model = made(parts, scene, seed)
    generator = torch.Generator().manual_seed(seed)
    mass = torch.tensor([s.weight for s in fitted])
    near = torch.exp(-0.5 * (torch.cdist(z, z) / spacing(z)) ** 2) @ mass
    order = (z - z[near.argmax()]).norm(dim=1).argsort().tolist()
    pair, whole = order[: 1 + z.shape[1]], lambda some, of: sum((of[k] for k in some[1:]), start=of[some[0]])
    evidence = Evidence(statistics=whole(pair, fitted), held_out_statistics=whole(pair, judge))
    still = Normal(Normal.Options(look=10), model, evidence)
    loop.fit(model, still, (Stage(steps=options.steps, deformation=0.0),), generator=generator, watch=lambda look: watch("state", look))
    for i in range(1, REACHES + 1):
        some = order[: max(len(pair), -(-len(order) * i // REACHES))]
        _stage(model, options, fitted, judge, z, some, Stage(representation=0.0), generator, watch)
    _stage(model, options, fitted, judge, z, order, Stage(), generator, watch)
    return model


def sharpen(parts: dict[str, Choice], scene: Scene, options: States.Options, fitted: list[Statistics], judge: list[Statistics], z: Tensor,
            coarse: Model, seed: int, watch: Watch) -> tuple[Model, loop.Fit]:  # fmt: skip
    """The same at the scene's resolution: a new density with the deformation held, then both, then the density alone."""
    model = made(parts, scene, seed)
    model.deformation.load_state_dict(coarse.deformation.state_dict())
    generator = torch.Generator().manual_seed(seed)
    stages = (Stage(deformation=0.0), Stage(representation=0.5, deformation=0.3), Stage(deformation=0.0, representation=0.3))
    return model, _run(model, States(options, model, fitted, judge, z), stages, generator, watch)


def rigid(parts: dict[str, Choice], scene: Scene, fitted: Statistics, judge: Statistics, seed: int) -> Tensor:
    """The map "D D D" of all particles, fitted as the states are but for bending."""
    model = made(parts, scene, seed)
    objective = Normal(Normal.Options(), model, Evidence(statistics=fitted, held_out_statistics=judge))
    return loop.fit(model, objective, (Stage(deformation=0.0),), generator=torch.Generator().manual_seed(seed)).map


def made(parts: dict[str, Choice], scene: Scene, seed: int) -> Model:
    """A new model whose initial values the seed decides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return compose(parts, scene)


def _stage(model: Model, options, fitted, judge, z: Tensor, some: list[int], stage: Stage, generator, watch: Watch) -> None:
    pick = lambda of: [of[k] for k in some]
    _run(model, States(options, model, pick(fitted), pick(judge), z[some]), (stage,), generator, watch)


def _run(model: Model, objective: States, stages: tuple[Stage, ...], generator, watch: Watch) -> loop.Fit:
    """A fit after which the model has the averaged parameters of the best look."""
    done = loop.fit(model, objective, stages, generator=generator, watch=lambda look: watch("bend", look))
    model.load_state_dict(objective.state())
    return done
