"""Images are weighed by compiled code as by torch, and slices that wait are spread all the same."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instamap.errors import DataError
from instamap.geometry import compiled, rotations
from instamap.scene import ContrastFactors, Optics, Views
from instamap.statistics import accumulator
from instamap.statistics.accumulator import Accumulator, weighted_slices
from instamap.statistics.fourier_plane import FourierPlane

PIXEL = 1.5
COUNT = 5

pytestmark = pytest.mark.skipif(not compiled.usable(), reason="numba is not installed")


def drawn(seed, box, contrast=False):
    """Images, views, variance, CTF and weights."""
    g = torch.Generator().manual_seed(seed)
    images = torch.randn(COUNT, box, box, generator=g)
    views = Views.of(
        rotations.random(COUNT, generator=g).float(), 3 * torch.randn(COUNT, 2, generator=g)
    )
    if contrast:
        mean = 0.5 + torch.rand(COUNT, generator=g)
        views = replace(views, contrast=ContrastFactors(mean, mean**2 + 0.1))
    variance = 0.5 + torch.rand(COUNT, box // 2 + 1, generator=g)
    ctf = torch.randn(COUNT, box, box // 2 + 1, generator=g)
    weights = 0.5 + torch.rand(COUNT, generator=g)
    return images, views, variance, ctf, weights


@given(
    seed=st.integers(0, 2**31 - 1),
    box=st.sampled_from([9, 12]),
    has_ctf=st.booleans(),
    premultiplied=st.booleans(),
    contrast=st.booleans(),
)
def test_they_agree(seed, box, has_ctf, premultiplied, contrast):
    """To a few roundings of float32, of numbers of order one."""
    images, views, variance, ctf, weights = drawn(seed, box, contrast)
    variance[:, 2] = torch.inf  # leaves a shell out
    given_ctf = ctf if has_ctf else None
    both = [
        weighted_slices(
            FourierPlane(box),
            images,
            views,
            variance,
            given_ctf,
            weights,
            pixel_size=PIXEL,
            premultiplied=premultiplied,
            copies=3,
            by_numba=by_numba,
        )
        for by_numba in (False, True)
    ]
    for name in ("data", "power", "energy"):
        one, two = (getattr(slices, name) for slices in both)
        largest = float(one.abs().max())
        torch.testing.assert_close(two, one, rtol=0, atol=1e-5 * largest)


def test_odd_aberrations_are_taken_off():
    """They are torch's: the compiled form knows none."""
    images, views, variance, ctf, weights = drawn(0, 12)
    numbers = [torch.full((COUNT,), value) for value in (300, 2.7, 0.1, 1e4, 1e4, 0, 0, 0, 1.0)]
    tilted = replace(views, optics=Optics(*numbers, beam_tilt=torch.ones(COUNT, 2)))
    plane = FourierPlane(12)

    def weighed(some, by_numba):
        return weighted_slices(
            plane, images, some, variance, ctf, weights, pixel_size=PIXEL, by_numba=by_numba
        ).data

    assert torch.equal(weighed(tilted, True), weighed(tilted, False))
    assert not torch.allclose(weighed(tilted, True), weighed(views, True), rtol=1e-2)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_numbers_that_are_none_are_refused(wrong):
    images, views, variance, ctf, _ = drawn(0, 12)
    for place in ("image", "ctf"):
        changed = {"image": images.clone(), "ctf": ctf.clone()}
        changed[place][3, 2, 1] = wrong
        adder = Accumulator(12, PIXEL, backend="numba")
        with pytest.raises(DataError, match="image 3 of a batch"):
            adder.add(changed["image"], views, noise_variance=variance, ctf=changed["ctf"])


def test_slices_wait_to_be_spread_together(monkeypatch):
    """One by one and all at once, to the order of sums; at the latest when all is finished."""
    images, views, variance, ctf, weights = drawn(1, 12)
    symmetry = torch.stack([torch.eye(3), torch.diag(torch.tensor([-1.0, -1.0, 1.0]))])
    spread = []
    original = accumulator.spread

    def counted(grid, frames, *rest):
        spread.append(len(frames))
        original(grid, frames, *rest)

    monkeypatch.setattr(accumulator, "spread", counted)
    found = []
    for cells_per_point in (1e9, 1e-9):
        monkeypatch.setattr(accumulator, "CELLS_PER_POINT", cells_per_point)
        adder = Accumulator(12, PIXEL, symmetry=symmetry)
        for i in range(COUNT):
            one = slice(i, i + 1)
            adder.add(
                images[one],
                views[one],
                noise_variance=variance[one],
                ctf=ctf[one],
                weights=weights[one],
            )
        found.append(adder.finish())
    assert spread == [1, 1] * COUNT + [COUNT, COUNT]
    # A few roundings of float32 below the largest.
    for one, two in ((found[0].b, found[1].b), (found[0].kernel, found[1].kernel)):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5 * float(one.abs().max()))
