"""Regularisers against closed forms, and that they enter the loss of both engines."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instamap.fitting.regulariser import Regulariser
from instamap.model import compose, default_parts
from instamap.parts import Deformation
from instamap.plugin.choice import choose
from instamap.plugin.options import DeformationOptions
from instamap.scene import Scene

SCENE = Scene(box=16, pixel_size=2.0, count=4, density_scale=0.1, noise_variance=torch.ones(1, 9))


class Affine(Deformation):
    """x -> M x + t, the same for all particles."""

    Options = DeformationOptions

    def __init__(self, options, matrix, shift):
        super().__init__(options, SCENE)
        self.matrix = matrix
        self.shift = shift

    def latent(self, batch):
        return torch.zeros(len(batch), 0)

    def forward(self, x, z):
        return x @ self.matrix.T + self.shift


class Ball(torch.nn.Module):
    """A window with a sharp edge."""

    def __init__(self, radius):
        super().__init__()
        self.radius = radius

    def forward(self, x):
        return (x.norm(dim=-1) < self.radius).float()


def _model(density=(), deformation=None):
    model = compose(
        {
            **default_parts(),
            "representation": choose("representation", "voxel", [*density, "floor=none"]),
        },
        SCENE,
    )
    if deformation is not None:
        model.deformation = deformation
    return model


def _cost(model, z=None, seed=0):
    return Regulariser(model)(model, z, torch.Generator().manual_seed(seed)).detach()


@dataclass(frozen=True)
class Weights:
    magnitude: float = 0.0
    total_variation: float = 0.0
    strain: float = 0.0

    def options(self):
        return DeformationOptions(
            magnitude=self.magnitude, total_variation=self.total_variation, strain=self.strain
        )


@given(stretch=st.floats(0.8, 1.2), weight=st.floats(0.1, 10.0))
def test_a_uniform_stretch_has_the_strain_and_gradient_of_theory(stretch, weight):
    matrix = stretch * torch.eye(3)
    strain = _cost(
        _model(deformation=Affine(Weights(strain=weight).options(), matrix, torch.zeros(3))),
        torch.zeros(2, 0),
    )
    assert float(strain) == pytest.approx(
        weight * 3 * (0.5 * (stretch**2 - 1)) ** 2, rel=1e-3, abs=1e-6
    )
    change = _cost(
        _model(
            deformation=Affine(Weights(total_variation=weight).options(), matrix, torch.zeros(3))
        ),
        torch.zeros(2, 0),
    )
    assert float(change) == pytest.approx(
        weight * 3**0.5 * abs(stretch - 1), rel=1e-3, abs=2e-5 * weight
    )


@given(angle=st.floats(-3.0, 3.0), shift=st.floats(-20.0, 20.0))
def test_a_rigid_motion_has_no_strain_but_a_magnitude(angle, shift):
    c = torch.cos(torch.tensor(angle))
    s = torch.sin(torch.tensor(angle))
    turn = torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    move = torch.tensor([0.0, 0.0, shift])
    assert (
        float(
            _cost(
                _model(deformation=Affine(Weights(strain=1.0).options(), turn, move)),
                torch.zeros(3, 0),
            )
        )
        < 1e-9
    )
    plain = Affine(Weights(magnitude=2.0).options(), torch.eye(3), move)
    assert float(_cost(_model(deformation=plain), torch.zeros(3, 0))) == pytest.approx(
        2 * shift**2, rel=1e-4, abs=1e-6
    )


def test_a_density_below_zero_costs_its_depth():
    model = _model(["positivity=3"])
    with torch.no_grad():
        for p in model.representation.parameters():
            p.fill_(-0.5)
    model.window = Ball(10.0)
    prior = Regulariser(model)
    model.window = Ball(100.0)  # no edge within reach of the points

    def cost():
        return float(prior(model, None, torch.Generator().manual_seed(0)).detach())

    assert cost() == pytest.approx(3 * 0.5, rel=1e-5)
    with torch.no_grad():
        for p in model.representation.parameters():
            p.fill_(0.5)
    assert cost() == 0


def test_a_slope_costs_its_change_over_a_voxel():
    model = _model(["total_variation=2"])
    model.window = Ball(8.0)
    prior = Regulariser(model)
    model.density = lambda x: (
        SCENE.density_scale * (0.3 * x[..., 0])
    )  # 0.6 of the scale over a voxel of 2 Å along x, none along y and z
    found = [float(prior(model, None, torch.Generator().manual_seed(seed))) for seed in range(20)]
    mean = 2 * 0.6 / 3
    spread = 2 * 0.6 * (2 / 9 / 2048) ** 0.5  # of the axis drawn: 1 of 3
    assert abs(sum(found) / 20 - mean) < 4 * spread / 20**0.5


def test_without_weights_there_is_no_cost():
    assert float(_cost(_model(), torch.zeros(2, 0))) == 0


def test_the_gradient_at_birth_is_finite():
    rigid = choose("deformation", "rigid", ["total_variation=1", "strain=1", "magnitude=1"])
    model = compose({**default_parts("rigid"), "deformation": rigid}, SCENE)
    z = model.deformation.table * 1.0
    Regulariser(model)(model, z, torch.Generator().manual_seed(0)).backward()
    assert model.deformation.table.grad.isfinite().all()
