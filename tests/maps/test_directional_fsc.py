"""Directional FSC: cones, directions whose resolution is known, and how often each was seen."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.half_maps import halves, seeded, white

from instamap.geometry import rotations
from instamap.maps import directional_fsc as directional
from instamap.maps import fsc

BOX = 48
PIXEL = 2.0


def test_bins_have_one_area_and_hold_their_middles():
    centres = directional.bin_centres()
    assert torch.equal(directional.bins(centres), torch.arange(len(centres)))
    directions = torch.randn(400_000, 3, generator=seeded(1), dtype=torch.float64)
    counts = torch.bincount(directional.bins(directions), minlength=len(centres))
    expected = len(directions) / len(centres)
    # chance scatters counts of 300 by 6 %
    assert ((counts / expected - 1).abs() < 0.35).all()


@given(x=st.floats(-1, 1), y=st.floats(-1, 1), z=st.floats(0.01, 1))
def test_opposite_directions_are_one(x, y, z):
    direction = torch.tensor([x, y, z], dtype=torch.float64)
    assert directional.bins(direction) == directional.bins(-direction)


def test_a_cone_of_all_directions_is_the_whole_shell():
    one, other = halves(white(BOX, 1), 1.0)
    found = directional.directional_fsc(one, other, cone=90.0)
    whole = fsc.fsc(one, other)
    assert torch.allclose(found.curves, whole.expand_as(found.curves), atol=1e-12)


def test_each_direction_has_its_own_resolution():
    """A signal that ends at 10 Å along z and at 5 Å across."""
    axis = torch.fft.fftfreq(BOX, PIXEL, dtype=torch.float64)
    half = torch.fft.rfftfreq(BOX, PIXEL, dtype=torch.float64)
    z, y, x = torch.meshgrid(axis, axis, half, indexing="ij")
    kept = (z / 0.1) ** 2 + (y / 0.2) ** 2 + (x / 0.2) ** 2 <= 1
    transform = torch.fft.rfftn(white(BOX, 2)) * kept
    one, other = halves(torch.fft.irfftn(transform, s=(BOX,) * 3), 0.05)
    found = directional.directional_fsc(one, other)
    resolution = found.resolutions(BOX, PIXEL)
    height = found.directions[:, 2]
    # a cone of 20 degrees about z reaches up to where the ellipsoid is 1 / (8.5 Å)
    assert 8.0 < float(resolution[height > 0.97].mean()) < 10.2
    across = resolution[height < 0.05]
    assert float(across.mean()) == pytest.approx(5.0, abs=0.4)


def test_a_mask_is_levelled_as_for_the_whole_curve():
    one, other = halves(white(BOX, 1), 1.0)
    soft = torch.zeros(BOX, BOX, BOX)
    soft[12:36, 12:36, 12:36] = 1
    found = directional.directional_fsc(one + 5, other + 3, soft, cone=90.0)
    whole = fsc.fsc(fsc.levelled(one, soft), fsc.levelled(other, soft))
    assert torch.allclose(found.curves[0], whole, atol=1e-9)


def test_uniform_views_see_all_directions_alike():
    relative = directional.sampling(rotations.random(20_000, generator=seeded(3)))
    assert float(relative.mean()) == pytest.approx(1, abs=0.01)
    assert float(relative.std()) < 0.06
    assert directional.sampling_factor(relative) > 0.99


def test_views_along_one_axis_see_what_is_across():
    """All slices are the plane z = 0: sin(w) of the sphere holds all of them."""
    relative = directional.sampling(torch.eye(3).expand(50, 3, 3))
    height = directional.bin_centres()[:, 2]
    near = height < math.sin(directional.SLICE_HALF_WIDTH)
    expected = 1 / math.sin(directional.SLICE_HALF_WIDTH)
    assert torch.allclose(relative[near], torch.tensor(expected, dtype=torch.float64))
    assert (relative[~near] == 0).all()
    assert directional.sampling_factor(relative) == 0
