"""An accumulation goes to a device with all that it is made of."""

import pytest
import torch

from instamap.errors import OptionError
from instamap.fourier.gridding import Grid
from instamap.geometry import device_kernels, rotations
from instamap.geometry.cube import Cube
from instamap.scene import Views
from instamap.statistics.accumulator import choose_backend, spread, weighted_slices
from instamap.statistics.fourier_plane import FourierPlane
from instamap.statistics.statistics import Statistics
from instamap.testing.device import pretended_device

BOX = 8
COUNT = 3


def accumulated(device: torch.device, plane: FourierPlane, ctf: bool) -> Statistics:
    """The steps of an accumulator between its checks, which depend on values."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(COUNT, BOX, BOX, generator=generator).to(device)
    rotation = rotations.random(COUNT, generator=generator).float().to(device)
    views = Views.of(rotation, torch.randn(COUNT, 2, generator=generator).to(device))
    variance = torch.ones(COUNT, BOX // 2 + 1).to(device)
    transfer = torch.ones(COUNT, BOX, BOX // 2 + 1).to(device) if ctf else None
    weights = torch.ones(COUNT).to(device)
    slices = weighted_slices(
        plane, images, views, variance, transfer, weights, pixel_size=2.0, copies=2
    )
    grid = Grid(Cube.whole(BOX), device=device)
    spread(grid, views.frames, plane.points, slices.data, slices.power)
    return Statistics.from_grid(grid, 2.0, COUNT, 1.0, 1.0)


@pytest.mark.parametrize("ctf", [True, False])
def test_nothing_stays_behind(ctf):
    plane = FourierPlane(BOX)
    with pretended_device() as device:
        statistics = accumulated(device, plane.to(device), ctf)
        assert statistics.b.device == device and statistics.kernel.device == device
        volume = torch.zeros(BOX, BOX, BOX, device=device, requires_grad=True)
        statistics.loss(volume).backward()
        assert volume.grad.device == device


def test_a_stray_tensor_is_found():
    plane = FourierPlane(BOX)
    with pretended_device() as device, pytest.raises(RuntimeError, match="device"):
        accumulated(device, plane, ctf=True)


def test_each_place_has_its_kernels(monkeypatch):
    """On a card Triton's, where it can be imported; in double precision those of torch."""
    card = torch.device("cuda", 0)
    monkeypatch.setattr(device_kernels, "_importable", lambda: True)
    assert choose_backend("auto", torch.float32, card) == "triton"
    assert choose_backend("auto", torch.float64, card) == "torch"
    assert choose_backend("auto", torch.float32, torch.device("cpu")) != "triton"
    monkeypatch.setattr(device_kernels, "_importable", lambda: False)
    assert choose_backend("auto", torch.float32, card) == "torch"


def test_kernels_elsewhere_are_refused():
    with pytest.raises(OptionError, match="backend 'triton' needs the package triton"):
        choose_backend("triton", torch.float32, torch.device("cpu"))
    with pytest.raises(OptionError, match="backend 'numba' needs the package numba"):
        choose_backend("numba", torch.float64, torch.device("cpu"))
    with pytest.raises(OptionError, match="choose auto, numba, triton or torch"):
        choose_backend("cupy", torch.float32, torch.device("cpu"))
