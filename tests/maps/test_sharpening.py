"""Sharpening against closed forms: Gaussians, whose B-factors are known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.half_maps import white

from instamap.geometry import grids
from instamap.maps import sharpening

BOX = 48
PIXEL = 1.2


def gaussian(sigma: float) -> torch.Tensor:
    """A blob at the origin, of σ in Å: |F(s)| is proportional to exp(-2π² σ² s²)."""
    distance = grids.voxel_centres(BOX, PIXEL, dtype=torch.float64).norm(dim=-1)
    return torch.exp(-0.5 * (distance / sigma).square())


@given(sigma=st.floats(0.9, 2.2))
def test_the_b_factor_of_a_gaussian(sigma):
    """exp(-B s²/4) = exp(-2π² σ² s²), so that what undoes it is -8π² σ²."""
    amplitude = sharpening.mean_amplitudes(gaussian(sigma))
    fit = sharpening.fit_guinier(amplitude, BOX, PIXEL, low=20.0, high=4.0)
    # shells have a width, over which the square of frequency is a little more than its middle's
    assert fit.b_factor == pytest.approx(-8 * math.pi**2 * sigma**2, rel=0.02)
    assert fit.correlation == pytest.approx(-1, abs=1e-3)


@given(b_factor=st.floats(-60, 60))
def test_sharpening_a_gaussian_gives_a_narrower_one(b_factor):
    """B-factors add: σ'² = σ² + B / 8π², times the ratio of volumes."""
    sigma = 1.9
    narrower = math.sqrt(sigma**2 + b_factor / (8 * math.pi**2))
    sharpened = sharpening.sharpen(gaussian(sigma), PIXEL, b_factor)
    expected = gaussian(narrower) * (sigma / narrower) ** 3
    assert torch.allclose(sharpened, expected, atol=2e-3 * float(expected.max()))


def test_a_b_factor_and_its_negative_undo_each_other():
    volume = sharpening.low_pass(white(BOX, 1), PIXEL, 4.0)
    there = sharpening.sharpen(volume, PIXEL, -80.0)
    back = sharpening.sharpen(there, PIXEL, 80.0)
    assert torch.allclose(back, volume, atol=1e-9)


def test_weights_are_those_of_rosenthal_and_henderson():
    curve = torch.tensor([1.0, 0.143, 1 / 3, 0.00005, 0.9], dtype=torch.float64)
    weights = sharpening.fsc_weights(curve)
    assert weights[0] == 1
    assert float(weights[1]) == pytest.approx(0.5, abs=1e-3)  # why 0.143 is the threshold
    assert float(weights[2]) == pytest.approx(math.sqrt(0.5))
    assert (weights[3:] == 0).all(), "nothing comes back beyond the first shell of nothing"


def test_weights_are_those_of_shells_and_corners_have_none():
    volume = white(BOX, 2)
    weights = torch.linspace(1, 0.2, BOX // 2 + 1, dtype=torch.float64)
    before = sharpening.mean_amplitudes(volume)
    after = sharpening.mean_amplitudes(sharpening.sharpen(volume, PIXEL, 0.0, weights=weights))
    inner = slice(1, BOX // 2)
    assert torch.allclose(after[inner] / before[inner], weights[inner], atol=1e-6)


@pytest.mark.parametrize("cutoff", [4.0, 7.0])
def test_a_low_pass_filter_falls_off_within_two_shells(cutoff):
    volume = white(BOX, 3)
    before = sharpening.mean_amplitudes(volume)
    after = sharpening.mean_amplitudes(sharpening.low_pass(volume, PIXEL, cutoff))
    shell = round(BOX * PIXEL / cutoff)
    share = after / before
    assert torch.allclose(share[: shell - 1], torch.ones_like(share[: shell - 1]))
    assert float(share[shell]) == pytest.approx(0.5, abs=0.1)
    assert (share[shell + 2 :] < 1e-9).all()


def test_too_few_shells_have_no_line():
    amplitude = sharpening.mean_amplitudes(gaussian(2.0))
    assert sharpening.fit_guinier(amplitude, BOX, PIXEL, low=3.0, high=2.9) is None
