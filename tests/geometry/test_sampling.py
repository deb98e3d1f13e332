"""The half-pixel lookup and the dilation of a mask: to the bit the formulas as they are written out
here, and what they are for.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from instamap.geometry import compiled, grids
from instamap.geometry.sampling import dilate, sample_images, sample_volume, sample_volumes

DTYPES = (torch.float32, torch.float64)
BOXES = st.integers(2, 9)
PIXEL_SIZES = st.floats(0.3, 5.0)
SEEDS = st.integers(0, 2**16)


def random(seed: int, *shape: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype)


def written_out(volumes: Tensor, x: Tensor, pixel_size: float) -> Tensor:
    """Values "M P" of maps "M D D D" at points "M P 3"."""
    box = volumes.shape[-1]
    where = (2 * (x[:, None, None] / pixel_size + box // 2) + 1) / box - 1
    values = torch.nn.functional.grid_sample(volumes[:, None], where, align_corners=False)
    return values[:, 0, 0, 0]


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=25, deadline=None)
@given(BOXES, PIXEL_SIZES, SEEDS)
def test_volumes_are_looked_up_as_written_out(dtype, box, pixel_size, seed):
    volumes = random(seed, 3, box, box, box, dtype=dtype).requires_grad_()
    x = random(seed + 1, 3, 20, 3, dtype=dtype) * box * pixel_size / 2
    x.requires_grad_()
    found = sample_volumes(volumes, x, pixel_size)
    expected = written_out(volumes, x, pixel_size)
    assert torch.equal(found, expected)
    upstream = random(seed + 2, *found.shape, dtype=dtype)
    gradients = torch.autograd.grad(found, [volumes, x], upstream)
    for one, other in zip(
        gradients, torch.autograd.grad(expected, [volumes, x], upstream), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 0, 3), (2, 3, 4)])
def test_a_volume_is_looked_up_at_points_of_any_shape(dtype, shape):
    volume = random(0, 7, 7, 7, dtype=dtype)
    x = random(1, *shape, 3, dtype=dtype) * 5
    expected = written_out(volume[None], x.reshape(1, -1, 3), 1.7).reshape(shape)
    rounding = 1e-6 if dtype == torch.float32 else 0  # where it is compiled
    torch.testing.assert_close(sample_volume(volume, x, 1.7), expected, rtol=0, atol=rounding)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=25, deadline=None)
@given(BOXES, SEEDS)
def test_images_are_looked_up_as_written_out(dtype, box, seed):
    images = random(seed, 3, box, box, dtype=dtype)
    x = random(seed + 1, 3, box, box, 2, dtype=dtype) * box / 2
    where = (x + box // 2 + 0.5) * (2 / box) - 1
    expected = torch.nn.functional.grid_sample(images[:, None], where, align_corners=False)[:, 0]
    assert torch.equal(sample_images(images, x), expected)


@pytest.mark.parametrize("box", [4, 5, 8])
def test_at_its_own_pixels_a_lattice_has_its_own_values(box):
    volume = random(0, box, box, box, dtype=torch.float64)
    voxels = grids.voxel_centres(box, 1.3, dtype=torch.float64)
    torch.testing.assert_close(sample_volume(volume, voxels, 1.3), volume)
    images = random(1, 2, box, box, dtype=torch.float64)
    pixels = grids.pixel_centres(box, 1.0, dtype=torch.float64).expand(2, -1, -1, -1)
    torch.testing.assert_close(sample_images(images, pixels), images)


def test_beyond_the_box_there_is_nothing():
    volume = torch.ones(4, 4, 4)
    far = torch.tensor([[0.0, 0.0, 9.0], [-9.0, 0.0, 0.0]])
    assert torch.equal(sample_volume(volume, far, 1.0), torch.zeros(2))


@pytest.mark.parametrize("kind", [torch.float32, torch.bool])
def test_a_mask_is_dilated_by_a_voxel_in_all_26_directions(kind):
    mask = torch.zeros(6, 6, 6)
    mask[2, 3, 0] = 0.25
    mask = mask.to(kind)
    reached = torch.zeros(6, 6, 6, dtype=torch.bool)
    reached[1:4, 2:5, 0:2] = True
    assert torch.equal(dilate(mask), reached)
    written_out = torch.nn.functional.max_pool3d((mask > 0).float()[None], 3, 1, 1)[0] > 0
    assert torch.equal(dilate(mask), written_out)


@pytest.mark.skipif(not compiled.usable(), reason="numba is missing")
@pytest.mark.parametrize("box", [7, 8])
def test_the_compiled_look_up_is_torchs(box):
    generator = torch.Generator().manual_seed(box)
    volume = torch.randn(box, box, box, generator=generator)
    inside_and_beyond = 2.6 * box * (torch.rand(5000, 3, generator=generator) - 0.5)
    low, high = -2.0 * (box // 2), 2.0 * (box - 1 - box // 2)
    special = [[low] * 3, [high] * 3, [low - 1.9, 0, 0], [0, high + 1.9, 0], [0, 0, math.nan]]
    special += [[math.inf, 0, 0], [0, -1e30, 0]]
    x = torch.cat([inside_and_beyond, torch.tensor(special)])
    sampling_numba = pytest.importorskip("instamap.geometry.sampling_numba")
    assert sampling_numba.fits(volume, x)
    found = sample_volume(volume, x, 2.0)
    expected = sample_volumes(volume[None], x[None], 2.0)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert not sampling_numba.fits(volume, x.requires_grad_())
