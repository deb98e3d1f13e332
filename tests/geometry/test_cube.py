"""Cubes of voxels: their places, and what is cut out and put back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instamap.geometry.cube import Cube


def test_what_is_cut_out_is_put_back_where_it_was():
    volume = torch.arange(6.0**3).view(6, 6, 6)
    cube = Cube(6, 1, 4)
    assert torch.equal(cube.of(volume), volume[1:4, 1:4, 1:4])
    again = cube.whole_map(cube.of(volume))
    inside = torch.zeros(6, 6, 6, dtype=torch.bool)
    inside[1:4, 1:4, 1:4] = True
    assert torch.equal(again, volume * inside)
    assert Cube.whole(6).whole_map(volume) is volume


def test_a_cube_within_another_is_where_it_is_in_the_box():
    volume = torch.arange(10.0**3).view(10, 10, 10)
    outer = Cube(10, 2, 9)
    inner = Cube(10, 4, 7)
    assert torch.equal(outer.of(volume)[outer.slices_of(inner)], inner.of(volume))
    with pytest.raises(ValueError, match="voxels 2 to 8 of 10 are not all among voxels 4 to 6"):
        inner.slices_of(outer)


@given(box=st.integers(4, 40), places=st.lists(st.tuples(*[st.integers(0, 39)] * 3), min_size=1))
def test_the_cube_around_voxels_holds_them_and_is_little_larger(box, places):
    chosen = torch.zeros(box, box, box, dtype=torch.bool)
    inside = [tuple(min(i, box - 1) for i in place) for place in places]
    for place in inside:
        chosen[place] = True
    cube = Cube.around(chosen)
    assert cube.of(chosen).sum() == chosen.sum()
    low = min(min(place) for place in inside)
    high = max(max(place) for place in inside) + 1
    assert cube.holds(Cube(box, low, high))
    assert cube.edge <= max(high - low + 3, round(1.3 * (high - low)))


@given(box=st.integers(2, 40), limits=st.lists(st.integers(0, 40), min_size=2, max_size=2))
def test_the_centred_cube_has_the_middle_where_the_box_has_it(box, limits):
    low = min(*limits, box - 1)
    cube = Cube(box, low, min(box, max(*limits, low + 1)))
    centred = cube.centred()
    assert centred.holds(cube)
    assert centred.low + centred.edge // 2 == box // 2
    smaller = Cube(box, centred.low + 1, centred.high - 1) if centred.edge > 2 else None
    assert centred.is_whole or smaller is None or not smaller.holds(cube)


def test_a_cube_is_told_in_the_voxels_of_another():
    assert Cube(10, 4, 7).within(Cube(10, 2, 8)) == Cube(6, 2, 5)
    with pytest.raises(ValueError, match="are not all among"):
        Cube(10, 1, 7).within(Cube(10, 2, 8))


def test_voxels_beyond_what_is_known_do_not_count():
    chosen = torch.ones(12, 12, 12, dtype=torch.bool)
    within = Cube(12, 3, 9)
    assert Cube.around(chosen, within) == within


@pytest.mark.parametrize("limits", [(-1, 3), (3, 3), (0, 9)])
def test_limits_outside_the_box_are_refused(limits):
    with pytest.raises(ValueError, match="are no cube"):
        Cube(8, *limits)


def test_nothing_has_no_cube():
    with pytest.raises(ValueError, match="nothing is chosen"):
        Cube.around(torch.zeros(4, 4, 4, dtype=torch.bool))
