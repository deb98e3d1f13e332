"""What objectives add to the likelihood: regularisers enter each loss and its gradient; views are
augmented as far as they should be.
"""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from instamap.fitting.conformations import ConformationData, Conformations
from instamap.fitting.images import MiniBatches
from instamap.fitting.normal import NormalEquations
from instamap.fitting.objective import ImageData, Objective, StatisticsData
from instamap.fitting.regulariser import Regulariser
from instamap.geometry import rotations
from instamap.geometry.cube import Cube
from instamap.model import Model, compose, default_parts
from instamap.plugin.choice import choose
from instamap.plugin.options import parse
from instamap.scene import Batch, Scene, Views
from instamap.statistics.statistics import Statistics

COUNT = 6
SCENE = Scene(
    box=10, pixel_size=2.0, count=COUNT, density_scale=0.1, noise_variance=torch.ones(1, 6)
)
DENSITY = ("total_variation", "positivity")
DISPLACEMENT = ("magnitude", "total_variation", "strain")
CASES = [
    (kind, "density", name) for kind in ("normal", "images", "conformations") for name in DENSITY
]
CASES += [
    (kind, "displacement", name) for kind in ("images", "conformations") for name in DISPLACEMENT
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass
class Pictures:
    """Particles in memory."""

    views: Views
    images: Tensor

    def batch(self, rows: Tensor) -> Batch:
        return Batch(self.images[rows], self.views[rows])


def pictures(count: int = COUNT) -> Pictures:
    views = Views.of(
        rotations.random(count, generator=seeded(1), dtype=torch.float32),
        torch.randn(count, 2, generator=seeded(2)),
    )
    return Pictures(views, torch.randn(count, SCENE.box, SCENE.box, generator=seeded(3)))


def statistics(seed: int) -> Statistics:
    """Of three images whose transfer falls with frequency."""
    empty = Statistics.empty(Cube.whole(SCENE.box), SCENE.pixel_size)
    return replace(
        empty,
        b=torch.randn(empty.b.shape, generator=seeded(seed)),
        kernel=empty.kernel + 1.0,
        count=3,
        weight=3.0,
    )


def stirred(kind: str, density: list[str], displacement: list[str]) -> Model:
    """A model away from birth, the same whatever the weights."""
    name = "identity" if kind == "normal" else "bending-field"
    choices = {"representation": choose("representation", "voxel", ["floor=none", *density])}
    choices["deformation"] = choose("deformation", name, displacement)
    torch.manual_seed(0)
    model = compose({**default_parts(name), **choices}, SCENE)
    g = seeded(4)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.5 * torch.randn(p.shape, generator=g)
    return model


def make_objective(kind: str, model: Model) -> Objective:
    if kind == "normal":
        return NormalEquations(
            NormalEquations.Options(),
            model,
            StatisticsData(statistics(5), statistics(6)),
        )
    if kind == "images":
        rows = torch.arange(COUNT)
        data = ImageData(pictures(), rows[:4], rows[4:])
        return MiniBatches(MiniBatches.Options(batch=3), model, data)
    both = [statistics(7), statistics(8)]
    z = torch.randn(2, model.deformation.table.shape[1], generator=seeded(9))
    return Conformations(Conformations.Options(batch=2), model, ConformationData(both, both, z))


def coordinates(kind: str, model: Model, loss: Objective) -> Tensor | None:
    """The coordinates, of particles or conformations, of the first step, which the seed decides."""
    if kind == "images":
        rows = loss.data.rows
        order = torch.randperm(len(rows), generator=seeded())
        rows = rows[order][: loss.options.batch]
        return model.deformation.latent(loss.data.particles.views[rows])
    return None if kind == "normal" else loss.z[torch.randperm(len(loss.z), generator=seeded())]


def gradient(loss: Tensor, model: Model) -> Tensor:
    """With respect to all parameters, in one row."""
    parameters = list(model.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).flatten()
            for p, g in zip(parameters, found, strict=True)
        ]
    )


def step(kind: str, model: Model) -> tuple[float, Tensor, torch.Generator]:
    """The loss and the gradient of a first step, and the generator after it."""
    generator = seeded()
    loss = make_objective(kind, model.train())(model, generator)
    return float(loss.detach()), gradient(loss, model), generator


@pytest.mark.parametrize(("kind", "of", "name"), CASES)
def test_a_regulariser_adds_its_cost_and_its_gradient(kind, of, name):
    """Without weights no random number is drawn for regularisers, so the generator then stands
    where that of a weighted loss stood. The weight is one with which the cost is ten times the
    log-likelihood.
    """

    def weighted(weight: float) -> Model:
        items = {"density": [], "displacement": [], of: [f"{name}={weight}"]}
        return stirred(kind, items["density"], items["displacement"]).train()

    def cost(model: Model) -> Tensor:
        start = torch.Generator().set_state(after.get_state())
        return Regulariser(model)(
            model, coordinates(kind, model, make_objective(kind, model)), start
        )

    plain, slope, after = step(kind, stirred(kind, [], []))
    model = weighted(10 * abs(plain) / float(cost(weighted(1.0)).detach()))
    whole, steeper, _ = step(kind, model)
    added = cost(model)
    assert whole - plain == pytest.approx(float(added.detach()), rel=1e-4)
    assert float(added.detach()) == pytest.approx(10 * abs(plain), rel=1e-3)
    own = gradient(added, model)
    assert float(own.norm()) > 0.01 * float(slope.norm())
    assert float((steeper - slope - own).norm()) < 1e-4 * float(slope.norm() + own.norm())


# Views at random about the poses given

MANY = 4000


def augmented(*items: str, seed: int = 0) -> tuple[Batch, Batch]:
    """Many particles as they are, and as a step of the kind sees them."""
    model = stirred("images", [], [])
    rows = torch.arange(MANY)
    some = pictures(MANY)
    objective = MiniBatches(
        parse(MiniBatches.Options, [*items]), model, ImageData(some, rows, rows[:4])
    )
    batch = some.batch(rows)
    return batch, objective.augment(batch, seeded(seed))


def test_views_turn_and_move_about_their_poses():
    """Mean and standard deviation of 4,000 draws on each axis, to four of their standard errors."""
    batch, seen = augmented("turn=3", "move=1.5")
    turns = rotations.to_rotvec(seen.views.rotation.double() @ batch.views.rotation.double().mT) * (
        180 / math.pi
    )
    for found, width in ((turns, 3.0), (seen.views.origin - batch.views.origin, 1.5)):
        assert float(found.mean(0).abs().max()) < 4 * width / MANY**0.5
        assert float((found.std(0) / width - 1).abs().max()) < 4 / (2 * MANY) ** 0.5
        assert abs(float(torch.corrcoef(found.T)[0, 1])) < 4 / MANY**0.5
    assert torch.equal(seen.images, batch.images)
    for name in ("index", "group"):
        assert torch.equal(getattr(seen.views, name), getattr(batch.views, name))


def test_one_kind_alone_and_none():
    batch, seen = augmented("turn=3")
    assert torch.equal(seen.views.origin, batch.views.origin) and not torch.equal(
        seen.views.rotation, batch.views.rotation
    )
    batch, seen = augmented("move=1.5")
    assert torch.allclose(seen.views.rotation, batch.views.rotation, atol=1e-6)
    assert not torch.equal(seen.views.origin, batch.views.origin)
    batch, seen = augmented()
    assert seen is batch, "off unless asked for"


def test_every_step_draws_its_own():
    (_, one), (_, two) = augmented("turn=3", seed=1), augmented("turn=3", seed=2)
    assert not torch.allclose(one.views.rotation, two.views.rotation, atol=1e-3)


def losses(*items: str) -> tuple[float, float]:
    """That of a first step without jitter, and the held-out likelihood."""
    model = stirred("images", [], [])
    rows = torch.arange(COUNT)
    objective = MiniBatches(
        parse(MiniBatches.Options, ["batch=4", *items]),
        model,
        ImageData(pictures(), rows[:4], rows[4:]),
    )
    objective.jitter = 0.0
    return float(objective(model.train(), seeded()).detach()), objective.held_out()


def test_steps_see_other_views_and_held_out_images_the_poses_given():
    (plain, judged), (moved, same) = losses(), losses("turn=20", "move=4")
    assert abs(moved - plain) > 1e-3 * abs(plain)
    assert same == judged
