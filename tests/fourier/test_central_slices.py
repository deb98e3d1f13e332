"""Slices of several maps that are looked up together are those of each map."""

import pytest
import torch
from support.blobs import seeded
from torch import Tensor

from instamap.fourier import central_slices
from instamap.fourier.central_slices import FEWEST_AT_ONCE, Spectra, Spectrum
from instamap.statistics.fourier_plane import FourierPlane

BOX = 10


def frames(count: int) -> Tensor:
    turn, _ = torch.linalg.qr(torch.randn(count, 3, 3, generator=seeded(1)))
    return turn[:, :2].contiguous()


@pytest.mark.parametrize("compiled", [True, False], ids=["as it comes", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("count", [1, FEWEST_AT_ONCE, 11])
def test_slices_of_maps_together_are_those_of_each(count, dtype, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(central_slices, "_numba", lambda: None)
    volumes = torch.randn(count, BOX, BOX, BOX, generator=seeded(2), dtype=dtype)
    plane = FourierPlane(BOX, dtype).points
    views = frames(7).to(dtype)
    found = Spectra(volumes).slices(views, plane)
    assert found.shape == (7, count, len(plane))
    for number, volume in enumerate(volumes):
        assert torch.equal(found[:, number], Spectrum(volume).slices(views, plane))


def test_frequencies_beyond_the_highest_are_refused_of_maps_together():
    volumes = torch.zeros(FEWEST_AT_ONCE, BOX, BOX, BOX)
    with pytest.raises(ValueError, match="must stay below 5"):
        Spectra(volumes).slices(frames(1), torch.tensor([[BOX / 2, 0.0]]))
