"""The objective of conformations: one of them is that of normal equations, several add up."""

import copy
from itertools import pairwise

import pytest
import torch
from support.blobs import BOX, PIXEL, WINDOW, blob, images, seeded
from torch import Tensor

from instamap.fitting.conformations import ConformationData, Conformations
from instamap.fitting.normal import NormalEquations
from instamap.fitting.objective import StatisticsData
from instamap.model import Model, compose, default_parts
from instamap.plugin.choice import choose
from instamap.scene import Scene


@pytest.fixture(scope="module")
def model() -> Model:
    """A voxel map that a bending field with two coordinates leaves alone."""
    parts = default_parts("bending-field") | {
        "representation": choose("representation", "voxel", ["floor=none"]),
        "deformation": choose("deformation", "bending-field", ["latent=2", "points=6"]),
    }
    torch.manual_seed(0)
    voxels = compose(
        parts, Scene(BOX, PIXEL, noise_variance=torch.ones(1, BOX // 2 + 1), mask=WINDOW)
    )
    with torch.no_grad():
        voxels.representation.values[0, 0] = blob(-2, 0, 0) + blob(2, 1, 0)
    return voxels


@pytest.fixture(scope="module")
def data() -> list:
    """Statistics of three conformations."""
    g = seeded(6)
    each = [
        images(
            torch.tensor([[-2.0, 0, 0], [2, float(y), 0]]).expand(30, -1, -1),
            torch.ones(30, 2),
            0.02,
            g,
        )
        for y in (-1, 0, 2)
    ]
    return [one.statistics(torch.ones(30, dtype=torch.float64)) for one in each]


def made(model: Model, fitted: list, held_out: list, z: Tensor, **options) -> Conformations:
    data = ConformationData(fitted, held_out, z)
    return Conformations(Conformations.Options(**options), model, data)


def test_one_conformation_without_bending_is_the_objective_of_normal_equations(model, data):
    single = made(model, data[:1], data[1:2], torch.zeros(1, 2), jitter=0.0)
    normal = NormalEquations(
        NormalEquations.Options(jitter=0.0), model, StatisticsData(data[0], data[1])
    )
    one, other = (float(objective(model, seeded()).detach()) for objective in (single, normal))
    assert one == pytest.approx(other, rel=1e-6) and abs(one) > 1
    for objective in (single, normal):
        objective.follow(model, 0.0)
    assert single.held_out() == pytest.approx(normal.held_out(), rel=1e-6)


def stirred(model: Model) -> Model:
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.deformation.named_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) if "decoder" in name else 0.0)
    return model


def test_conformations_add_up(model, data):
    """With all of them in a step, the loss per image is the mean of theirs, weighted by how many
    images each has.
    """
    bent = stirred(copy.deepcopy(model))
    z = torch.tensor([[-1.0, 0], [0, 0.5], [1, 1]])
    weighted = [one.scaled(w) for one, w in zip(data, (1.0, 0.2, 0.6), strict=True)]
    whole = float(made(bent, weighted, weighted, z, jitter=0.0)(bent, seeded()).detach())
    each = [
        float(made(bent, [s], [s], z[k : k + 1], jitter=0.0)(bent, seeded()).detach()) * s.weight
        for k, s in enumerate(weighted)
    ]
    assert whole == pytest.approx(sum(each) / sum(s.weight for s in weighted), rel=1e-6)
    assert max(abs(a - b) for a, b in pairwise(each)) > 1, "conformations differ"


def test_the_gradient_is_that_of_the_loss(model, data):
    bent = stirred(copy.deepcopy(model))
    z = torch.tensor([[-1.0, 0], [0, 0.5], [1, 1]])
    objective = made(bent, data, data, z, jitter=0.0)
    objective(bent, seeded()).backward()
    for part in (bent.representation, bent.deformation):
        parameters = [p for p in part.parameters() if p.grad is not None and p.grad.abs().max() > 0]
        assert parameters
        steps = [p.grad / p.grad.norm() for p in parameters]
        slope = sum(
            float((p.grad * s).double().sum()) for p, s in zip(parameters, steps, strict=True)
        )
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                for p, s in zip(parameters, steps, strict=True):
                    p.add_(sign * 1e-3 * s)
                losses.append(float(objective(bent, seeded())))
                for p, s in zip(parameters, steps, strict=True):
                    p.sub_(sign * 1e-3 * s)
        assert (losses[0] - losses[1]) / 2e-3 == pytest.approx(slope, rel=0.02)


def test_the_kept_model_follows_the_fitted_one(model, data):
    moved = copy.deepcopy(model)
    objective = made(moved, data, data, torch.zeros(3, 2))
    with torch.no_grad():
        moved.representation.values.add_(1.0)
    objective.follow(moved, 0.75)
    torch.testing.assert_close(
        objective.average_state()["representation.values"], model.representation.values + 0.25
    )
    before = objective.average_state()
    objective.follow(moved, 0.0)
    objective.load_average(before)
    torch.testing.assert_close(
        objective.map(), model.eval().raster() + 0.25 * (model.raster() != 0), rtol=0, atol=0.26
    )
