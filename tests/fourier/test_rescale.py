"""Maps on more or fewer voxels of the same edge keep what both can hold."""

import pytest
import torch

from instamap.fourier.rescale import rescale
from instamap.geometry import grids


def wave(box: int) -> torch.Tensor:
    """Plane waves of whole periods along the box's edge, with the origin at voxel N // 2."""
    x = grids.voxel_centres(box, 1 / box, dtype=torch.float64)
    phase = 2 * torch.pi * (x @ torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)) + 0.3
    return 2.0 + torch.cos(phase)


@pytest.mark.parametrize("before", [12, 13])
@pytest.mark.parametrize("after", [8, 9, 12, 13, 16, 17])
def test_waves_are_the_same_on_other_voxels(before, after):
    torch.testing.assert_close(rescale(wave(before), after), wave(after))


def test_what_is_too_fine_is_dropped():
    fine = torch.cos(2 * torch.pi * 5 * grids.axis(12, 1 / 12, dtype=torch.float64))
    assert float(rescale(fine.expand(12, 12, 12), 8).abs().max()) < 1e-12


def test_maps_are_rescaled_together():
    both = torch.stack([wave(12), 2 * wave(12)])
    torch.testing.assert_close(rescale(both, 8)[1], 2 * rescale(both[0], 8))
