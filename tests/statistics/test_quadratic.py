"""The quadratic function of a map, against sums over all pairs of voxels."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instamap import threads
from instamap.statistics.quadratic import Quadratic, real_transform

SHAPE = (4, 5, 3)


def even_lattice(shape: tuple[int, int, int], seed: int) -> torch.Tensor:
    """A kernel on a periodic lattice of twice these sides, the same at x and -x, zero at their
    ends, which have no opposite.
    """
    generator = torch.Generator().manual_seed(seed)
    sides = [2 * n for n in shape]
    lattice = torch.randn(sides, generator=generator, dtype=torch.float64)
    opposite = lattice.flip(0, 1, 2).roll((1, 1, 1), (0, 1, 2))
    lattice = lattice + opposite
    for axis, n in enumerate(shape):
        lattice.select(axis, n).zero_()
    return lattice


def matrix(lattice: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    """K "P P" between all voxels of a block, written out."""
    places = list(itertools.product(*(range(n) for n in shape)))
    rows = [
        [lattice[tuple(i - j for i, j in zip(one, two, strict=True))] for two in places]
        for one in places
    ]
    return torch.tensor(rows, dtype=torch.float64)


def random_case(seed: int = 0) -> tuple[Quadratic, torch.Tensor, torch.Tensor]:
    """A function, its K "P P" and a map."""
    generator = torch.Generator().manual_seed(seed + 1)
    lattice = even_lattice(SHAPE, seed)
    b, volume = torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64)
    return Quadratic(b, real_transform(lattice)), matrix(lattice, SHAPE), volume


@pytest.mark.parametrize("at_once", [1, 1 << 17])
def test_value_and_gradient_are_the_sums_over_pairs(at_once, monkeypatch):
    monkeypatch.setattr(threads, "NUMBERS_IN_CACHE", at_once)
    function, k, volume = random_case()
    flat = volume.flatten()
    curved = k @ flat
    expected = 0.5 * flat @ curved - function.b.flatten() @ flat
    volume.requires_grad_()
    value = function(volume)
    (3 * value).backward()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    gradient = 3 * (curved - function.b.flatten()).view(SHAPE)
    torch.testing.assert_close(volume.grad, gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("at_once", [1, 1 << 17])
def test_a_value_without_its_gradient_is_the_same(at_once, monkeypatch):
    monkeypatch.setattr(threads, "NUMBERS_IN_CACHE", at_once)
    function, _, volume = random_case(1)
    alone = function(volume)
    beside = function(volume.requires_grad_())
    torch.testing.assert_close(alone, beside.detach(), rtol=1e-12, atol=0)


def test_a_value_without_its_gradient_keeps_the_digits_of_single_precision():
    function, _, volume = random_case(2)
    exact = function(volume)
    single = function.to(torch.float32)(volume.float())
    assert single.dtype == torch.float64
    torch.testing.assert_close(single, exact, rtol=1e-5, atol=0)


@given(
    seed=st.integers(0, 1000),
    low=st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 1)),
    sides=st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 2)),
)
def test_cropping_keeps_the_value_of_maps_that_are_zero_elsewhere(seed, low, sides):
    function, _, volume = random_case(seed)
    inside = tuple(slice(i, i + n) for i, n in zip(low, sides, strict=True))
    whole = torch.zeros_like(volume)
    whole[inside] = volume[inside]
    cropped = function.crop(inside)
    assert cropped.b.shape == sides
    torch.testing.assert_close(cropped(volume[inside]), function(whole), rtol=1e-9, atol=1e-9)


def test_cropping_to_everything_changes_nothing():
    function, _, _ = random_case()
    assert function.crop((slice(0, 4), slice(0, 5), slice(0, 3))) is function
