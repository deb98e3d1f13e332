"""Whatever can be composed learns, with its parts' own learning rates; what is refused names both
sides and the remedy.
"""

import functools
import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import torch

from instamap.data import noise
from instamap.data.particles import Particles
from instamap.errors import CompositionError
from instamap.fitting.images import MiniBatches
from instamap.fitting.loop import FitResult, optimise
from instamap.fitting.normal import NormalEquations
from instamap.fitting.objective import ImageData, StatisticsData
from instamap.fitting.stage import Stage
from instamap.maps import mask, mrc
from instamap.model import Model, compose, default_parts, part_classes, usual_forward
from instamap.parts import (
    CurvedOperator,
    GaussianLikelihood,
    PremultipliedLikelihood,
    SharedDensity,
)
from instamap.plugin.choice import DEFAULTS, choose
from instamap.plugin.options import describe
from instamap.plugin.registry import default
from instamap.scene import Batch, Scene
from instamap.simulate import particle_set
from instamap.statistics import initial_map
from instamap.statistics.streaming import accumulate

HELD_OUT = 3
KINDS = tuple(DEFAULTS)
NAMES = {kind: [part.name for part in default().parts(kind)] for kind in KINDS}
LINEAR = ("representation", "forward", "likelihood")  # what goes with the normal equations
SMALL = {
    "levels": 4,
    "table_size": 12,
    "samples": 8,
    "points": 6,
}  # of any part that has such an option
# of what the truth gains over an empty map, which a few steps must reach; spherical harmonics are
# the slowest
SHARE = 0.03
NOTHING_IS_TOLD = (
    1e-3  # nats a pixel: a likelihood whose truth gains less would make the test blind
)


@dataclass(frozen=True, eq=False)
class World:
    """64 images of 16 pixels with contrast transfer and noise of half their variance, their truth,
    and what a fit may see of them.
    """

    folder: Path
    scene: Scene
    images: ImageData
    statistics: StatisticsData

    @functools.cached_property
    def batch(self) -> Batch:
        """The images on which likelihoods are compared: some of those that are fitted."""
        return self.images.particles.batch(self.images.rows[:16])

    @functools.cache  # noqa: B019 - as long as the module's fixture
    def gain_of_truth(self, forward: str, likelihood: str, *options: tuple[str, str]) -> float:
        """Mean gain (nats) of the map that images were made of; options are the likelihood's."""
        given = {"representation": {"floor": "none"}, "likelihood": dict(options)}
        model = self.model(
            representation="voxel", forward=forward, likelihood=likelihood, given=given
        )
        truth, _ = mrc.read(self.folder / "truth.mrc")
        with torch.no_grad():
            model.representation.values.copy_(truth[None, None] / model.scene.density_scale)
        return gain(model, self.batch)

    def model(self, *, given: dict | None = None, **names: str) -> Model:
        """Of the usual parts but for these names; `given` has options by kind, beyond the small
        ones.
        """
        chosen = {
            kind: choose(kind, name, {**small(kind, name), **(given or {}).get(kind, {})})
            for kind, name in names.items()
        }
        torch.manual_seed(0)
        return compose({**default_parts(), **chosen}, self.scene)


def small(kind: str, name: str) -> dict:
    known = {spec.name for spec in describe(default().get(kind, name).load().Options)}
    return {key: value for key, value in SMALL.items() if key in known}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    star = particle_set.demo(tmp_path_factory.mktemp("data"), count=64, box=16, snr=2.0)
    particles = Particles.open(star)
    rows = torch.randperm(particles.count, generator=torch.Generator().manual_seed(0))
    images = ImageData(particles, rows[HELD_OUT:].sort().values, rows[:HELD_OUT].sort().values)
    spectra = noise.estimate(particles).float()
    scene = Scene(
        particles.box, particles.pixel_size, count=particles.count, noise_variance=spectra
    )
    likelihood = compose(default_parts(), scene).likelihood
    sets = {"fitted": images.rows, "held_out": images.held_out}
    statistics = StatisticsData(**accumulate(particles, sets, likelihood))
    sphere = mask.sphere(scene.box, scene.pixel_size, scene.radius, 0.0)
    first = initial_map.solve(statistics.fitted, sphere)
    window = initial_map.find_mask(first, scene.pixel_size)
    scale = initial_map.density_scale(first, window)
    scene = replace(scene, mask=window, density_scale=scale)
    return World(star.parent, scene, images, statistics)


@torch.no_grad()
def gain(model: Model, batch: Batch) -> float:
    """Mean log p beyond that of an empty map, in nats, without jitter: the same number whenever it
    is asked.
    """
    model.eval()
    return float(model.gain(batch).mean())


def learn(world: World, model: Model, steps: int = 10) -> FitResult:
    """A short fit of all parts at once, from mini-batches."""
    options = MiniBatches.Options(evaluate_every=steps, batch=8, average=0.5)
    objective = MiniBatches(options, model, world.images)
    generator = torch.Generator().manual_seed(0)
    return optimise(model, objective, (Stage(steps=steps),), generator=generator)


def check_learns(
    world: World, model: Model, names: dict[str, str], *options: tuple[str, str]
) -> None:
    """options: those of the likelihood."""
    truth = world.gain_of_truth(usual_forward(names["deformation"]), names["likelihood"], *options)
    assert truth > NOTHING_IS_TOLD * world.scene.box**2
    before = gain(model, world.batch)
    birth = [[p.detach().clone() for p in group["params"]] for group in model.parameter_groups()]
    fit = learn(world, model)
    after = gain(model, world.batch)
    assert after > before and after > SHARE * truth, (before, after, truth)
    assert fit.map.isfinite().all()
    for group, first in zip(model.parameter_groups(), birth, strict=True):
        assert any(not torch.equal(p, q) for p, q in zip(group["params"], first, strict=True)), (
            f"the {group['part']} has not moved"
        )


@pytest.mark.slow
@pytest.mark.parametrize("names", list(itertools.product(*NAMES.values())), ids="-".join)
def test_every_composition_learns_or_is_refused(world, names):
    named = dict(zip(KINDS, names, strict=True))
    try:
        model = world.model(**named)
    except CompositionError as refusal:
        assert named["forward"] != usual_forward(named["deformation"]), (
            "what is usual is never refused"
        )
        sides = [
            f"{kind} '{name}'" for kind, name in named.items() if f"{kind} '{name}'" in str(refusal)
        ]
        assert len(sides) == 2 and "choose" in str(refusal), refusal
        return
    check_learns(world, model, named)


def choices(kind: str, name: str) -> list[tuple[str, str]]:
    """Options of a part that are words to choose from, with each word that is not the default."""
    found = []
    for spec in describe(default().get(kind, name).load().Options):
        words = get_args(spec.type) if get_origin(spec.type) is Literal else ()
        found += [
            (spec.name, word) for word in words if isinstance(word, str) and word != spec.default
        ]
    return found


CHOICES = [
    (kind, name, *choice)
    for kind in KINDS
    for name in NAMES[kind]
    for choice in choices(kind, name)
]


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES, ids="-".join)
def test_every_choice_within_a_part_learns_or_is_refused(world, choice):
    kind, name, option, word = choice
    named = {**DEFAULTS, kind: name}
    named["forward"] = name if kind == "forward" else usual_forward(named["deformation"])
    try:
        model = world.model(**named, given={kind: {option: word}})
    except CompositionError as refusal:
        assert f"{option}={word} is for" in str(refusal) and "give" in str(refusal), refusal
        return
    check_learns(world, model, named, *([(option, word)] if kind == "likelihood" else []))


@pytest.mark.parametrize(
    "names", list(itertools.product(*(NAMES[kind] for kind in LINEAR))), ids="-".join
)
def test_normal_equations_fit_what_they_describe(world, names):
    """Their loss, at voxel centres that do not move, falls; a likelihood that is not Gaussian is
    refused.
    """
    named = dict(zip(LINEAR, names, strict=True))
    model = world.model(**named)
    reason = reason_against(named)
    if not isinstance(model.likelihood, GaussianLikelihood):
        assert reason == f"likelihood {type(model.likelihood).__name__} is not Gaussian"
        return
    if isinstance(model.forward_operator, CurvedOperator):
        assert reason is not None and "sphere" in reason
        return
    assert reason is None
    options = NormalEquations.Options(evaluate_every=12, average=0.5)
    objective = NormalEquations(options, model, world.statistics)
    before = without_jitter(objective, model)
    generator = torch.Generator().manual_seed(0)
    fit = optimise(model, objective, (Stage(steps=12),), generator=generator)
    after = without_jitter(objective, model)
    truth = world.gain_of_truth("slice", "gaussian")  # the statistics are those of this noise
    assert after < before and after < -SHARE * truth, (before, after, truth)
    assert fit.signal and fit.map.isfinite().all()


def reason_against(names: dict[str, str]) -> str | None:
    """Why normal equations cannot describe the usual parts but for these names."""
    chosen = {kind: choose(kind, name, []) for kind, name in names.items()}
    return NormalEquations.reason_against(part_classes({**default_parts(), **chosen}))


@torch.no_grad()
def without_jitter(objective: NormalEquations, model: Model) -> float:
    """The loss in nats per image, 0 for an empty map."""
    objective.jitter = 0.0
    return float(objective(model, torch.Generator()))


@pytest.mark.parametrize("name", NAMES["deformation"])
def test_normal_equations_describe_one_density(name):
    made = default().get("deformation", name).load()
    reason = reason_against({"deformation": name, "forward": usual_forward(name)})
    if issubclass(made, SharedDensity):
        assert reason is None
    else:
        assert reason == f"deformation {made.__name__} gives every particle its own density"


@pytest.mark.parametrize("name", NAMES["likelihood"])
def test_premultiplied_images_are_judged_or_refused(world, name):
    scene = replace(world.scene, premultiplied=True)
    chosen = {**default_parts(), "likelihood": choose("likelihood", name, [])}
    if issubclass(default().get("likelihood", name).load(), PremultipliedLikelihood):
        compose(chosen, scene)
        return
    with pytest.raises(
        CompositionError, match=rf"premultiplied .* likelihood '{name}' needs .*choose --likelihood"
    ):
        compose(chosen, scene)
