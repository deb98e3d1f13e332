"""The compiled spreading finds each point in one place, however often it is asked."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from support.blobs import seeded

from instamap.fourier.gridding import Grid
from instamap.geometry import compiled
from instamap.geometry.cube import Cube
from instamap.statistics import accumulator
from instamap.statistics.fourier_plane import FourierPlane

BOX = 12
VIEWS = 40


@pytest.fixture
def of_torch() -> Callable[[int], AbstractContextManager[None]]:
    """So many threads of torch within a block."""

    @contextmanager
    def block(count: int) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    return block


@pytest.mark.skipif(not compiled.usable(), reason="numba is not installed: nothing is compiled")
def test_points_are_counted_and_placed_by_the_same_numbers():
    """Points are counted tile by tile, then placed.

    With fastmath the compiler may round differently in either loop. One point of a million then
    went into another tile: the next one overran the array, and a row of it held whatever was in
    memory.
    """
    from instamap.fourier import gridding_numba

    assert not gridding_numba._sort.targetoptions.get("fastmath")


@pytest.mark.skipif(not compiled.usable(), reason="numba is not installed: nothing is compiled")
@pytest.mark.parametrize("threads", [1, 3])
def test_many_sums_are_those_that_each_would_be(threads, of_torch, monkeypatch):
    """By the compiled form to the last bit; by torch but for the rounding of other orders."""
    from instamap.fourier import gridding_numba

    with of_torch(threads):
        generator = seeded(5)
        plane = FourierPlane(BOX).points
        turn, _ = torch.linalg.qr(torch.randn(VIEWS, 3, 3, generator=generator))
        frames = turn[:, :2].contiguous()
        data = torch.randn(VIEWS, len(plane), generator=generator, dtype=torch.complex64)
        power = torch.rand(VIEWS, len(plane), generator=generator)
        of_data = torch.randn(VIEWS, 3, generator=generator)
        of_power = torch.randn(VIEWS, 4, generator=generator)
        cube = Cube.whole(BOX)
        many = Grid(cube, data_sums=3, power_sums=4)
        gridding_numba.spread_weighted(many, frames, plane, data, power, of_data, of_power)
        monkeypatch.setattr(accumulator, "choose_backend", lambda *_: "torch")
        by_torch = Grid(cube, data_sums=3, power_sums=4)
        slices = (frames, plane, data, power)
        accumulator.spread_weighted(by_torch, *slices, of_data, of_power)
        torch.testing.assert_close(many.cells, by_torch.cells, rtol=1e-4, atol=1e-4)
        for number in range(3):
            one = Grid(cube)
            weighted = data * of_data[:, number, None]
            gridding_numba.spread(one, frames, plane, weighted, power)
            assert torch.equal(many.data_lattice(number), one.data_lattice())
        for number in range(4):
            one = Grid(cube)
            gridding_numba.spread(one, frames, plane, data, power * of_power[:, number, None])
            assert torch.equal(many.power_lattice(number), one.power_lattice())
