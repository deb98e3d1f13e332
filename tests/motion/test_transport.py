"""The inverse of a pull-back: exact where it is linear, within its tolerance where it bends, honest
where it fails.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.bending import motion, shift

from instamap.geometry import rotations
from instamap.motion.transport import TOLERANCE, invert, transport

seeds = st.integers(0, 2**31 - 1)
LATENTS = torch.linspace(-1, 1, 21)[:, None]


@given(seed=seeds)
def test_a_linear_map_is_inverted(seed):
    """x + u = A x + t, A near any rotation: a fixed point of x <- y - u(x) need not attract."""
    g = torch.Generator().manual_seed(seed)
    a = rotations.random(1, generator=g)[0] + 0.1 * torch.randn(
        3, 3, generator=g, dtype=torch.float64
    ).clamp(-2, 2)
    t = torch.randn(3, generator=g, dtype=torch.float64) * 20
    x = torch.randn(40, 3, generator=g, dtype=torch.float64) * 30

    def pull(x):
        return x @ a.mT + t

    found, left = invert(pull, pull(x), torch.zeros_like(x), 100.0, 1.0)
    # What is left in x is at most what is left in the image, over the least singular value.
    assert left.max() <= TOLERANCE
    assert (found - x).norm(dim=1).max() <= TOLERANCE / float(torch.linalg.svdvals(a).min()) + 1e-9


@given(seed=seeds)
def test_folded_space_is_inverted_too(seed):
    """x + 6 sin(x / 2) runs backwards on a third of the way: Newton alone fails at many points, but
    an x exists for each and is found.
    """

    def pull(x):
        return x + 6 * torch.sin(x / 2)

    target = (
        torch.rand(200, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5
    ) * 40
    found, left = invert(pull, target, target, 60.0, 0.05)
    assert torch.equal(left, (pull(found) - target).norm(dim=1))
    assert (left <= TOLERANCE).double().mean() > 0.95


def test_where_there_is_no_inverse_the_distance_is_reported():
    """A pull-back that loses a dimension: what is off the plane z = 0 cannot be reached, and what
    is left is its height.
    """
    target = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flat = torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    _, left = invert(lambda x: x @ flat, target, target, 20.0, 0.1)
    assert torch.allclose(left, target[:, 2].abs().double(), atol=TOLERANCE)
    assert (left > TOLERANCE).any()


def test_no_points_are_no_error():
    found, left = invert(lambda x: x, torch.zeros(0, 3), torch.zeros(0, 3), 20.0, 0.1)
    assert found.shape == (0, 3) and left.shape == (0,)
    x, left = transport(
        motion([shift(1, 0, 0)], latents=LATENTS).halves[0],
        torch.zeros(0, 3),
        torch.zeros(1),
        torch.ones(1),
    )
    assert x.shape == (0, 3) and left.shape == (0,)


@given(seed=seeds, start=st.floats(-1, 1), end=st.floats(-1, 1))
def test_material_is_carried_from_state_to_state(seed, start, end):
    """u = z (M x + t): the material at y is at x = (1 + end M)⁻¹ ((1 + start M) y + (start - end)
    t), and back again.
    """
    g = torch.Generator().manual_seed(seed)
    m = 0.1 * torch.randn(3, 3, generator=g).clamp(-2, 2)
    t = torch.randn(3, generator=g).clamp(-2, 2) * 2
    half = motion([(m, t)], latents=LATENTS).halves[0]
    y = torch.randn(25, 3, generator=g).clamp(-2, 2) * 3
    one = torch.eye(3)
    x, left = transport(half, y, torch.tensor([start]), torch.tensor([end]))
    expected = torch.linalg.solve(
        one + end * m, (y @ (one + start * m).mT + (start - end) * t)[..., None]
    )[..., 0]
    inside = (
        expected.abs().amax(1) < 0.5 * half.model.scene.box * half.model.scene.pixel_size
    )  # beyond the box the field is not linear
    assert left.max() <= TOLERANCE
    # |M| <= 0.6 (Frobenius), so singular values of 1 + z M are from 0.4 to 1.6: 0.01 Å in the image
    # are at most 0.025 Å in x ...
    assert (x - expected)[inside].norm(dim=1).le(0.03).all()
    back, left = transport(half, x, torch.tensor([end]), torch.tensor([start]))
    assert (
        (back - y)[inside].norm(dim=1).le(0.15).all()
    )  # ... and (1.6 · 0.025 + 0.01) / 0.4 on the way back


def test_a_point_that_stays_is_not_touched():
    half = motion([shift(5, 0, 0)], latents=LATENTS).halves[0]
    y = torch.randn(9, 3)
    x, left = transport(half, y, torch.tensor([0.3]), torch.tensor([0.3]))
    assert torch.equal(x, y) and left.max() == pytest.approx(0.0, abs=1e-6)
