"""The compiled spreading finds each point in one place, however often it is asked."""

import pytest

from instamap.geometry import compiled


@pytest.mark.skipif(not compiled.usable(), reason="numba is not installed: nothing is compiled")
def test_points_are_counted_and_placed_by_the_same_numbers():
    """Points are counted tile by tile, then placed.

    With fastmath the compiler may round differently in either loop. One point of a million then
    went into another tile: the next one overran the array, and a row of it held whatever was in
    memory.
    """
    from instamap.fourier import gridding_numba

    assert not gridding_numba._sort.targetoptions.get("fastmath")
