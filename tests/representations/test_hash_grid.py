"""The hash grid's own choices."""

import pytest
import torch

from instamap.representations.hash_grid import HashGrid
from instamap.scene import Scene


def largest_level(mask: torch.Tensor | None, **options) -> int:
    scene = Scene(64, 3.0, mask=mask)
    grid = HashGrid(HashGrid.Options(**options), scene)
    return max(b - a for a, b in zip(grid.levels.offsets, grid.levels.offsets[1:], strict=False))


@pytest.mark.parametrize(
    "edge, entries", [(10, 1 << 18), (63, 1 << 18), (64, 1 << 18)], ids=["small", "odd", "whole"]
)
def test_small_masks_have_the_usual_table(edge, entries):
    mask = torch.zeros(64, 64, 64)
    mask[:edge, :edge, :edge] = 1
    assert largest_level(mask) == entries


def test_a_mask_of_more_voxels_has_as_many_entries_at_least():
    scene = Scene(72, 3.0, mask=torch.ones(72, 72, 72))
    grid = HashGrid(HashGrid.Options(), scene)
    sizes = [b - a for a, b in zip(grid.levels.offsets, grid.levels.offsets[1:], strict=False)]
    assert max(sizes) == 1 << 19 >= 72**3


def test_what_is_asked_for_is_made():
    assert largest_level(torch.ones(64, 64, 64), table_size=12) == 1 << 12
    assert largest_level(None) == 1 << 18
