"""Blocks of voxels: their places, and what is cut out and put back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instamap.geometry.block import Block
from instamap.geometry.cube import Cube


def test_what_is_cut_out_is_put_back_where_it_was():
    volume = torch.arange(1.0, 6.0**3 + 1).view(6, 6, 6)
    block = Block(6, (1, 0, 2), (4, 2, 6))
    assert torch.equal(block.of(volume), volume[1:4, 0:2, 2:6])
    assert block.shape == (3, 2, 4)
    again = block.whole_map(block.of(volume))
    expected = torch.zeros(6, 6, 6)
    expected[1:4, 0:2, 2:6] = volume[1:4, 0:2, 2:6]
    assert torch.equal(again, expected)


def test_a_block_has_its_place_in_a_cube():
    volume = torch.arange(10.0**3).view(10, 10, 10)
    cube = Cube(10, 2, 9)
    block = Block(10, (4, 2, 3), (7, 9, 5))
    assert torch.equal(cube.of(volume)[block.slices_in(cube)], block.of(volume))
    assert torch.equal(Block.of_cube(cube).of(volume), cube.of(volume))
    beyond = Block(10, (4, 2, 3), (7, 10, 5))
    with pytest.raises(ValueError, match="voxels z 4 to 6, y 2 to 9, x 3 to 4 of 10 are not all"):
        beyond.slices_in(cube)
    with pytest.raises(ValueError, match="are not all among"):
        block.slices_in(Cube(12, 2, 9))


@given(box=st.integers(4, 40), places=st.lists(st.tuples(*[st.integers(0, 39)] * 3), min_size=1))
def test_the_block_around_voxels_holds_them_and_no_side_is_longer_than_the_cubes(box, places):
    chosen = torch.zeros(box, box, box, dtype=torch.bool)
    for place in places:
        chosen[tuple(min(i, box - 1) for i in place)] = True
    block = Block.around(chosen)
    assert block.of(chosen).sum() == chosen.sum()
    assert max(block.shape) <= Cube.around(chosen).edge
    occupied = chosen.nonzero()
    lengths = occupied.amax(0) - occupied.amin(0) + 1
    for side, length in zip(block.shape, lengths.tolist(), strict=True):
        assert side <= max(length + 3, round(1.3 * length))


def test_voxels_beyond_what_is_known_do_not_count():
    chosen = torch.ones(12, 12, 12, dtype=torch.bool)
    within = Cube(12, 3, 9)
    assert Block.around(chosen, within) == Block.of_cube(within)


@pytest.mark.parametrize("limits", [(-1, 3), (3, 3), (0, 9)])
def test_limits_outside_the_box_are_refused(limits):
    low, high = limits
    with pytest.raises(ValueError, match="are no block"):
        Block(8, (0, low, 0), (8, high, 8))


def test_nothing_has_no_block():
    with pytest.raises(ValueError, match="nothing is chosen"):
        Block.around(torch.zeros(4, 4, 4, dtype=torch.bool))
