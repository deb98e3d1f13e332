"""Composed models: the pieces are what their formulas say, and what a third party's parts lack is
refused with reasons.
"""

import sys
import types
from dataclasses import replace

import pytest
import torch

from instamap import model as composing
from instamap.deform.rigid import Rigid
from instamap.errors import CompositionError
from instamap.fitting.normal import NormalEquations
from instamap.forward.ray import Ray
from instamap.fourier import ctf
from instamap.geometry import grids, rotations
from instamap.likelihoods.gaussian import Gaussian
from instamap.model import Floor, Model, Window, compose, default_parts, part_classes
from instamap.parts import Likelihood, Representation, SharedDensityOperator
from instamap.plugin.choice import DEFAULTS, choose
from instamap.plugin.component import Component
from instamap.plugin.hooks import hookimpl
from instamap.plugin.options import RepresentationOptions
from instamap.plugin.registry import Registry
from instamap.scene import Batch, Optics, Scene, Views
from instamap.testing import scenes

KINDS = ("representation", "deformation", "forward", "likelihood")
ROUNDING = 1e-10  # a few thousand float64 numbers, summed


def parts(**names) -> dict:
    """The usual parts but for those named; a name may be followed by options."""
    split = {kind: name if isinstance(name, tuple) else (name,) for kind, name in names.items()}
    return {
        **default_parts(),
        **{kind: choose(kind, name, list(items)) for kind, (name, *items) in split.items()},
    }


class Robust(Likelihood):
    """A third party's: neither Gaussian nor for premultiplied images."""

    def log_prob(self, predicted, observed, views):
        return -(observed - predicted).abs().flatten(1).sum(1)

    def sample(self, predicted, views, *, generator=None):
        return predicted


class Shared(Ray, SharedDensityOperator):
    """A third party's: it needs one density for all views."""


@pytest.fixture
def registry(monkeypatch) -> Registry:
    """With two parts of a third party."""

    class Plugin:
        @hookimpl
        def instamap_components(self):
            return [
                Component("likelihood", "robust", "instamap_third:Robust", "."),
                Component("forward", "shared", "instamap_third:Shared", "."),
            ]

    module = types.ModuleType("instamap_third")
    module.Robust = Robust
    module.Shared = Shared
    monkeypatch.setitem(sys.modules, "instamap_third", module)
    return Registry({"instamap-third": Plugin()}, [])


def test_a_likelihood_that_cannot_judge_premultiplied_images_is_refused_for_them(registry):
    scene = Scene(12, 2.0, noise_variance=torch.ones(1, 7))
    chosen = {**default_parts(), "likelihood": choose("likelihood", "robust", [], registry)}
    compose(chosen, scene, registry=registry)
    both = (
        "images are premultiplied .*rlnCtfDataAreCtfPremultiplied.*likelihood 'robust' needs"
        " .*choose --likelihood"
    )
    with pytest.raises(CompositionError, match=both):
        compose(chosen, replace(scene, premultiplied=True), registry=registry)
    compose(default_parts(), replace(scene, premultiplied=True), registry=registry)
    classes = part_classes(chosen, registry)
    assert "Robust is not Gaussian" in NormalEquations.reason_against(classes)


def test_an_operator_that_needs_one_density_is_refused_with_a_density_for_each_particle(registry):
    scene = Scene(12, 2.0, noise_variance=torch.ones(1, 7))
    chosen = {**default_parts(), "forward": choose("forward", "shared", [], registry)}
    compose(chosen, scene, registry=registry)
    both = (
        "deformation 'rigid' gives every particle its own .*forward 'shared' needs one .*choose"
        " --deform"
    )
    with pytest.raises(CompositionError, match=both):
        compose(
            {**chosen, "deformation": choose("deformation", "rigid", [])}, scene, registry=registry
        )


def test_a_likelihood_without_noise_level_is_refused():
    for name in ("gaussian", "coloured"):
        with pytest.raises(CompositionError, match=f"likelihood '{name}' knows no noise"):
            compose(parts(likelihood=name), Scene(12, 2.0))


def test_floor_is_zero_at_birth_and_bounds_below():
    floor = Floor()
    field = torch.linspace(-1e4, 50, 1001)
    assert abs(float(floor(torch.tensor(0.0)).detach())) < 1e-7
    with torch.no_grad():
        floor.offset.fill_(0.3)
    floor(field).sum().backward()
    bound = floor(field).detach()
    assert float(bound.min()) == pytest.approx(-0.3) and (bound.diff() >= 0).all()
    assert float(bound[-1]) == pytest.approx(50 - 0.3), (
        "far above its bound the density is the field less the solvent"
    )
    assert floor.offset.grad == -1001


def test_window_is_the_mask_at_voxels_and_linear_between():
    mask = torch.rand(9, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    window = Window(Scene(9, 1.7, mask=mask))
    x = grids.voxel_centres(9, 1.7, dtype=torch.float64)
    torch.testing.assert_close(window(x), mask, rtol=0, atol=1e-12)
    between = x[:, :, :-1] + torch.tensor([0.5 * 1.7, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(
        window(between), 0.5 * (mask[..., :-1] + mask[..., 1:]), rtol=0, atol=1e-12
    )
    assert (window(torch.tensor([[9.0, 0, 0], [0, -9.0, 0]]) * 1.7) == 0).all()
    assert window(torch.empty(0, 3)).shape == (0,)


def test_window_without_mask_is_a_soft_sphere():
    scene = Scene(16, 2.0)
    window = Window(scene)
    along = torch.tensor([[0.6, 0.0, 0.8]], dtype=torch.float64)
    radii = torch.tensor(
        [0.0, scene.radius - 4.01, scene.radius - 2, scene.radius, 20.0], dtype=torch.float64
    )
    torch.testing.assert_close(
        window(radii[:, None] * along),
        torch.tensor([1, 1, 0.5, 0, 0], dtype=torch.float64),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize("floor", ["learned", "none"])
def test_density_is_scale_times_window_times_bound(floor):
    g = torch.Generator().manual_seed(1)
    mask = torch.rand(8, 8, 8, generator=g, dtype=torch.float64)
    scene = Scene(8, 1.5, density_scale=3.0, mask=mask, noise_variance=torch.ones(1, 5))
    model = compose(parts(representation=("voxel", f"floor={floor}")), scene).double()
    values = torch.randn(8, 8, 8, generator=g, dtype=torch.float64)
    with torch.no_grad():
        model.representation.values.copy_(values[None, None])
        if floor == "learned":
            model.bound.offset.fill_(0.2)
            values = torch.log1p(values.exp()) - 0.2
    torch.testing.assert_close(model.raster(), 3.0 * mask * values, rtol=1e-10, atol=1e-10)


def test_density_does_not_depend_on_the_chunks(monkeypatch):
    scene = Scene(8, 1.5, noise_variance=torch.ones(1, 5))
    model = compose(default_parts(), scene).double()
    x = 3 * torch.randn(3, 50, 3, dtype=torch.float64)
    whole = model.density(x)
    for chunk in (1, 7, 100):
        monkeypatch.setattr(composing, "POINTS_AT_ONCE", chunk)
        torch.testing.assert_close(model.density(x), whole, rtol=1e-12, atol=1e-15)
    assert whole.abs().max() > 0 and model.density(x[:, :0]).shape == (3, 0)


def optics(count: int, g: torch.Generator) -> Optics:
    """Astigmatic, so that an image turned by the CTF's transpose would show."""

    def uniform(low, high):
        return low + (high - low) * torch.rand(count, generator=g, dtype=torch.float64)

    def same(value):
        return torch.full((count,), value, dtype=torch.float64)

    return Optics(
        same(300.0),
        same(2.7),
        same(0.1),
        uniform(5e3, 9e3),
        uniform(5e3, 9e3),
        uniform(0, 3),
        same(0.2),
        same(30.0),
        same(0.9),
    )


@pytest.mark.parametrize("likelihood", ["gaussian", "coloured"])
@pytest.mark.parametrize("box", [10, 11])
def test_premultiplied_images_say_the_same(likelihood, box):
    """log p of y and of C y, marked as premultiplied, differ by a constant of the data: same
    gradient, same gain over an empty map.

    Only without padding is the CTF that the images were multiplied by that of the model.
    """
    g = torch.Generator().manual_seed(box)
    scene = Scene(
        box,
        2.0,
        count=4,
        noise_variance=1 + torch.rand(1, box // 2 + 1, generator=g, dtype=torch.float64),
    )
    views = Views.of(
        rotations.random(4, generator=g),
        torch.randn(4, 2, generator=g, dtype=torch.float64),
        optics(4, g),
    )
    images = torch.randn(4, box, box, generator=g, dtype=torch.float64)
    found = []
    for premultiplied in (False, True):
        seen = ctf.apply(images, views.optics, 2.0) if premultiplied else images
        chosen = parts(representation="voxel", forward=("ray", "padding=1"), likelihood=likelihood)
        model = compose(chosen, replace(scene, premultiplied=premultiplied)).double().eval()
        values = model.representation.values
        with torch.no_grad():
            values.copy_(
                torch.randn(
                    values.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64
                )
            )
        batch = Batch(seen, views)
        found.append(
            (
                torch.autograd.grad(model.log_prob(batch).sum(), values)[0],
                model.gain(batch).detach(),
            )
        )
    for plain, special in zip(*found, strict=True):
        assert float((plain - special).norm() / plain.norm()) < ROUNDING


class Known(Representation):
    """Gaussians, whose projections are known."""

    def __init__(self, options, scene: Scene, density: scenes.Gaussians):
        super().__init__(options, scene)
        self.density = density

    def forward(self, x):
        return self.density(x.reshape(1, -1, 3)).reshape(x.shape[:-1])


def test_rigid_undoes_a_pose_error():
    """Poses off by R' = R Q and origins by d: the table with exp(ω) = Q and t = -Rᵀ(d, 0) brings
    back the images of the true ones.

    Those are known in closed form. Sums in steps of σ/1.4 are integrals to 1e-7, and less is lost
    at the window's edge, 6σ away.
    """
    g = torch.Generator().manual_seed(2)
    scene = Scene(28, 1.3, count=5, noise_variance=torch.ones(1, 15))
    density = scenes.gaussians(scene, g)
    views = scenes.views(scene, 3, g, shift=1.0)
    views = replace(views, group=torch.zeros(3, dtype=torch.long))
    error = 0.1 * torch.randn(3, 3, generator=g, dtype=torch.float64)
    shift = torch.randn(3, 2, generator=g, dtype=torch.float64)
    wrong = replace(
        views, rotation=views.rotation @ rotations.from_rotvec(error), origin=views.origin + shift
    )
    rigid = Rigid(Rigid.Options(angle=2.0, shift=0.5), scene)
    known = Known(RepresentationOptions(floor="none"), scene, density)
    model = (
        Model(scene, known, rigid, Ray(Ray.Options(), scene), Gaussian(Gaussian.Options(), scene))
        .double()
        .eval()
    )
    truth = density.projection(views, scene)

    def distance(images):
        return float((images - truth).norm() / truth.norm())

    with torch.no_grad():
        assert distance(model.project(wrong)[0]) > 0.1
        back = -(views.rotation.mT @ torch.nn.functional.pad(shift, (0, 1))[..., None])[..., 0]
        rigid.table[views.index] = torch.cat([torch.rad2deg(error) / 2.0, back / 0.5], 1)
        assert distance(model.project(wrong)[0]) < 1e-6


def test_the_optimiser_sees_every_parameter_once():
    model = compose(
        parts(deformation="rigid", forward="ray"),
        Scene(12, 2.0, count=3, noise_variance=torch.ones(1, 7)),
    )
    groups = model.parameter_groups()
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(
        id(p) for p in model.parameters()
    )
    assert [group["lr"] for group in groups] == [
        model.representation.options.learning_rate,
        model.deformation.options.learning_rate,
    ]
    assert set(DEFAULTS) == set(KINDS)
