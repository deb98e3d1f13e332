"""The bending field: known fields image where they should, fields turn with the frame, splines are
as exact as is said.
"""

import copy
import dataclasses
import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline
from support.bending import set_linear
from torch import Tensor

from instamap.deform.bending_field import BendingField
from instamap.forward.ray import Ray
from instamap.geometry import grids, rotations
from instamap.model import compose, default_parts
from instamap.motion.motion_model import HalfModel
from instamap.motion.transport import transport
from instamap.plugin.choice import choose
from instamap.scene import Scene, Views
from instamap.testing.part import difference, stir
from instamap.testing.scenes import Gaussians, gaussians, in_ball

seeds = st.integers(0, 2**31 - 1)
BOX = 22
PIXEL = 1.7
ROWS = 3
SCENE = Scene(BOX, PIXEL, count=ROWS)


def field(latent: int = 1, scene: Scene = SCENE, points: int = 9) -> BendingField:
    """Newly made, in float64."""
    return BendingField(BendingField.Options(latent=latent, points=points), scene).double().eval()


def views(g: torch.Generator) -> Views:
    """Random poses, shifted by up to a pixel and a half."""
    return Views.of(
        rotations.random(ROWS, generator=g),
        (torch.rand(ROWS, 2, generator=g, dtype=torch.float64) - 0.5) * 3 * PIXEL,
    )


def bent_projection(blob: Gaussians, pull: Tensor, shift: Tensor, seen: Views) -> Tensor:
    """Images "B D D" of Σ_m w_m exp(-|A_b x + t_b - c_m|² / 2σ²) / (2πσ²)^(3/2), with A "B 3 3" and
    t "B 3".

    That is a Gaussian about A⁻¹(c - t) of covariance σ²(AᵀA)⁻¹ and integral w/det A; its image, one
    of the covariance's upper left 2 x 2.
    """
    u = grids.pixel_centres(BOX, PIXEL, dtype=torch.float64)
    back = torch.linalg.inv(pull)
    centres = (blob.centres - shift[:, None]) @ back.mT
    landed = (centres @ seen.rotation.mT)[..., :2] - seen.origin[:, None]
    spread = blob.sigma**2 * (seen.rotation @ back @ back.mT @ seen.rotation.mT)[:, :2, :2]
    off = u[None, :, :, None] - landed[:, None, None]  # "B D D M 2"
    square = torch.einsum("bijma,bac,bijmc->bijm", off, torch.linalg.inv(spread), off)
    norm = 2 * math.pi * (torch.linalg.det(spread).sqrt() * torch.linalg.det(pull))[:, None, None]
    return (torch.exp(-0.5 * square) * blob.weights).sum(-1) / norm


@given(seed=seeds)
def test_blobs_moved_by_a_known_field_image_where_they_should(seed):
    """u = z₁ (M₁ x + t₁) + z₂ (M₂ x + t₂) moves, turns and stretches Gaussians: their images are
    known, at any pose and shift.

    1e-5 of the highest pixel: tails of the wider Gaussians outside the sphere.
    """
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(*shape, generator=g, dtype=torch.float64) - 0.5

    matrices = 0.12 * draw(2, 3, 3)
    shifts = 1.5 * PIXEL * draw(2, 3)
    z = 2 * draw(ROWS, 2)
    part = set_linear(field(2), *zip(matrices, shifts, strict=True))
    blob = gaussians(SCENE, g)
    seen = views(g)
    image = Ray(Ray.Options(jitter=0.0), SCENE).eval()(lambda x: blob(part(x, z)), seen)
    pull = torch.eye(3, dtype=torch.float64) + torch.einsum("bj,jac->bac", z, matrices)
    expected = bent_projection(blob, pull, z @ shifts, seen)
    assert difference(image, expected) < 1e-5
    still = blob.projection(seen, SCENE)
    assert difference(still, expected) > 1e-3, "the field does nothing: the test is blind"


CUBE = [
    torch.diag(torch.tensor(signs, dtype=torch.float64))[:, list(axes)]
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
CUBE = [
    turn for turn in CUBE if torch.linalg.det(turn) > 0
]  # the 24 rotations that map a cube onto itself


def turned(part: BendingField, turn: Tensor) -> BendingField:
    """The same field in a frame that is turned by one of CUBE, so that control points come to lie
    where others were.

    c'(g q) = g c(q) for control points c at q, which are linear in the last layer's weights and
    biases.
    """
    new = copy.deepcopy(part)
    n = part.options.points
    comes_from = (
        turn.abs().argmax(1).tolist()
    )  # axis b of x that is axis a of g x, but for its sign
    signs = turn.sum(1)
    axis = {0: 3, 1: 2, 2: 1}  # x, y, z in "3 n n n", whose order is [z, y, x]

    def at_home(values: Tensor) -> Tensor:
        control = values.view(3, n, n, n, -1)
        order = [0, *[axis[comes_from[a]] for a in (2, 1, 0)], 4]
        moved = control.permute(order).flip([axis[a] for a in range(3) if signs[a] < 0])
        return torch.stack([signs[a] * moved[comes_from[a]] for a in range(3)]).reshape(
            values.shape
        )

    with torch.no_grad():
        for values in (new.decoder[-1].weight, new.decoder[-1].bias):
            values.copy_(at_home(values.clone()))
    return new


def test_there_are_24_rotations_of_a_cube():
    for turn in CUBE:
        assert torch.equal(turn @ turn.T, torch.eye(3, dtype=torch.float64)) and float(
            torch.linalg.det(turn)
        ) == pytest.approx(1)
    assert len({tuple(turn.flatten().tolist()) for turn in CUBE}) == 24


@given(seed=seeds, turn=st.sampled_from(CUBE))
def test_displacements_turn_with_the_frame(seed, turn):
    """u'(g x; z) = g u(x; z) of a field whose control points were turned by g, at any point and for
    any coordinates. float64: 1e-12.
    """
    g = torch.Generator().manual_seed(seed)
    part = stir(field(2), g, 0.3)
    z = torch.randn(ROWS, 2, generator=g, dtype=torch.float64)
    x = (
        (torch.rand(ROWS, 30, 3, generator=g, dtype=torch.float64) - 0.5) * 2.4 * part.half_edge
    )  # beyond the box too
    moved = part(x, z) - x
    found = turned(part, turn)(x @ turn.T, z) - x @ turn.T
    assert difference(found, moved @ turn.T) < 1e-12
    if not torch.equal(turn, torch.eye(3, dtype=torch.float64)):
        assert difference(part(x @ turn.T, z) - x @ turn.T, moved @ turn.T) > 1e-3, (
            "an unturned field says the same: blind"
        )


@given(seed=seeds, turn=st.sampled_from(CUBE[1:]))
def test_turning_the_frame_and_all_poses_turns_the_field(seed, turn):
    """ρ(g⁻¹ ·) bent by the turned field and seen at A g⁻¹ gives the images of ρ bent by the field
    and seen at A.
    """
    g = torch.Generator().manual_seed(seed)
    part = stir(field(2), g, 0.3)
    blob = gaussians(SCENE, g)
    seen = views(g)
    z = torch.randn(ROWS, 2, generator=g, dtype=torch.float64)
    posed = Views.of(seen.rotation @ turn.T, seen.origin)
    ray = Ray(Ray.Options(), SCENE).eval()
    home = turned(part, turn)
    image = ray(lambda x: blob(part(x, z)), seen)
    assert difference(ray(lambda x: blob.rotated(turn)(home(x, z)), posed), image) < 1e-9
    assert difference(ray(lambda x: blob.rotated(turn)(part(x, z)), posed), image) > 1e-6, (
        "an unturned field gives the same: blind"
    )


@settings(max_examples=5)
@given(seed=seeds, turn=st.sampled_from(CUBE[1:]))
def test_displacements_of_material_turn_with_the_frame(seed, turn):
    """g y of the turned field is carried to g x where y of the field is carried to x (in float32,
    to the inverse's 0.01 Å).
    """
    g = torch.Generator().manual_seed(seed)
    part = stir(field(), g, 0.1).float()
    turn = turn.float()
    y = in_ball(SCENE, (40,), g).float()
    start = torch.tensor([-0.7])
    end = torch.tensor([0.8])
    own = torch.eye(1), torch.zeros(1), torch.zeros(1, 1), torch.zeros(1, 8, 8, 8)
    scene = replace(SCENE, noise_variance=torch.ones(1, BOX // 2 + 1))
    model = compose(default_parts("bending-field"), scene, seed=0)
    model.deformation = part
    one = transport(HalfModel(model, *own), y, start, end)
    model.deformation = turned(part, turn)
    other = transport(HalfModel(model, *own), y @ turn.T, start, end)
    followed = (one[1] < 0.01) & (other[1] < 0.01)
    assert followed.double().mean() > 0.9
    assert (one[0] - y).norm(dim=1).max() > 0.05, "nothing moves: the test is blind"
    assert (one[0] @ turn.T - other[0])[followed].norm(dim=1).median() < 0.03


def exact(control: Tensor, part: BendingField, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The cubic B-spline itself at points "P 3", by scipy, and its second derivatives along x, y
    and z, times the interval's square.
    """
    n = part.options.points
    at = (x / part.half_edge + 1) / 2 * (n - 3) + 1
    basis = BSpline.basis_element([-2, -1, 0, 1, 2], extrapolate=False)

    def value(spline, axis):
        return torch.from_numpy(
            spline(at[:, axis, None].numpy() - torch.arange(n).numpy())
        ).nan_to_num(0.0)

    plain, second = (
        [value(spline, axis) for axis in range(3)] for spline in (basis, basis.derivative(2))
    )

    def mixed(x, y, z):
        return torch.einsum("azyx,pz,py,px->pa", control, z, y, x)

    return mixed(*plain), [
        mixed(*(second[b] if a == b else plain[b] for b in range(3))) for a in range(3)
    ]


@pytest.mark.parametrize(("sigma", "said"), [(0, 0.1), (2, 0.01)])
def test_the_spline_errs_by_as_much_as_is_said(sigma, said):
    """Rms error over rms displacement for random control points, smoothed over `sigma` of them; and
    its bound by second derivatives.
    """
    part = field(points=16)
    g = torch.Generator().manual_seed(sigma)
    n = part.options.points
    control = torch.randn(3, n, n, n, generator=g, dtype=torch.float64)
    x = torch.rand(20000, 3, generator=g, dtype=torch.float64) - 0.5
    if sigma:
        blur = torch.exp(
            -0.5 * ((torch.arange(n)[:, None] - torch.arange(n)) / sigma).double() ** 2
        )
        control = torch.einsum("azyx,iz,jy,kx->aijk", control, blur, blur, blur)
    with torch.no_grad():
        part.decoder[-1].bias.copy_((control * 32 / part.half_edge).flatten())
        found = (
            part(x[None] * 2 * part.half_edge, torch.zeros(1, 1, dtype=torch.float64))
            - x * 2 * part.half_edge
        )[0]
    wanted, bend = exact(control, part, x * 2 * part.half_edge)
    error = (found - wanted).abs()
    assert error.amax() <= sum(b.abs().amax() for b in bend) / 32
    assert float(error.square().mean().sqrt() / wanted.square().mean().sqrt()) == pytest.approx(
        said, rel=0.3
    )


def test_beyond_the_box_the_field_goes_on_as_at_its_surface():
    part = stir(field(), torch.Generator().manual_seed(0))
    z = torch.ones(1, 1, dtype=torch.float64)
    x = torch.tensor([[[0.3, -0.2, 0.4]]], dtype=torch.float64) * part.half_edge
    for far in (1.0, 1.5, 9.0):
        x[..., 2] = far * part.half_edge
        u = part(x, z) - x
        if far == 1.0:
            surface = u
        assert torch.allclose(u, surface)


def test_auto_is_one_coordinate_where_nobody_can_tell():
    parts = {
        **default_parts("bending-field"),
        "deformation": choose("deformation", "bending-field", ["latent=auto"]),
    }
    scene = replace(SCENE, noise_variance=torch.ones(1, BOX // 2 + 1))
    assert compose(parts, scene).deformation.table.shape[1] == 1


def test_coordinates_from_images_are_zero_at_birth_and_do_not_see_the_turn_in_the_plane():
    """An encoder is given the image turned back by psi: turning image and pose by a quarter changes
    nothing.
    """
    part = BendingField(BendingField.Options(latent=2, source="image"), SCENE).double().eval()
    g = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="give them"):
        part.latent(views(g))
    blob = gaussians(SCENE, g)
    seen = views(g)
    images = blob.projection(seen, SCENE)
    assert torch.equal(part.latent(seen, images), torch.zeros(ROWS, 2, dtype=torch.float64))
    z = stir(part, g).latent(seen, images)
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    turned = Views.of(quarter @ seen.rotation, seen.origin @ quarter[:2, :2].mT)
    images = blob.projection(turned, SCENE)
    again = part.latent(turned, images)
    wrong = part.latent(dataclasses.replace(turned, rotation=seen.rotation), images)
    assert (
        difference(again, z) < 0.1 < difference(wrong, z)
    )  # bilinear interpolation takes 1/8σ² = 6 % off the top of a blob
