"""Particles whose Fourier components are on a card: what is asked and answered is on the CPU, and
nothing is mixed on the way.
"""

from dataclasses import replace

import pytest
import torch
from support import blobs

from instamap.fourier import central_slices
from instamap.fourier.gridding import Grid
from instamap.geometry import rotations
from instamap.geometry.cube import Cube
from instamap.motion import domain_maps
from instamap.motion.domains import Placement
from instamap.scene import Batch, ContrastFactors, Optics, Views
from instamap.statistics import accumulator, particle_statistics
from instamap.statistics.fourier_plane import FourierPlane
from instamap.statistics.particle_statistics import ParticleStatistics
from instamap.statistics.statistics import Statistics
from instamap.testing.device import pretended_device

COUNT = 6
CPU = torch.device("cpu")


def moved(images: ParticleStatistics, device: torch.device) -> ParticleStatistics:
    """The images, whose components are on the device."""
    names = ("data", "power", "frames", "plane")
    return replace(images, **{name: getattr(images, name).to(device) for name in names})


@pytest.fixture(autouse=True)
def what_values_say_is_known(monkeypatch):
    """How many particles there are, how far components reach, and a CTF's course: they are read off
    values, which there are none of where a device is pretended.
    """
    monkeypatch.setattr(ParticleStatistics, "count", COUNT)
    monkeypatch.setattr(central_slices, "_furthest", lambda plane: 0.0)


@pytest.fixture
def images() -> ParticleStatistics:
    return blobs.pair(torch.rand(COUNT), blobs.seeded())


@pytest.fixture
def maps() -> torch.Tensor:
    return torch.randn(3, blobs.BOX, blobs.BOX, blobs.BOX, generator=blobs.seeded(1))


def test_maps_are_held_against_images_there(images, maps):
    with pretended_device() as device:
        there = moved(images, device)
        assert there.device == device
        for nuisance in (None, maps[:1]):
            gram, h = there.with_nuisance(nuisance).normal_equations(maps)
            assert gram.device == h.device == CPU
            assert gram.shape == (COUNT, 3, 3) and h.shape == (COUNT, 3)


class Memory:
    """Images with factors of their contrast, as `Particles` has them."""

    box = blobs.BOX
    pixel_size = blobs.PIXEL
    premultiplied = False


@pytest.mark.parametrize("with_optics", [True, False])
def test_components_are_made_there(monkeypatch, with_optics):
    """Of a batch that was read on the CPU, its optics and contrast too."""
    ones = torch.ones(COUNT, dtype=torch.float64)
    optics = Optics(*[ones] * 9) if with_optics else None
    rotation = rotations.random(COUNT, generator=blobs.seeded())
    views = Views.of(rotation, torch.zeros(COUNT, 2, dtype=torch.float64), optics)
    views = replace(views, contrast=ContrastFactors(ones, ones))
    batch = Batch(torch.zeros(COUNT, blobs.BOX, blobs.BOX), views)
    plane = FourierPlane(blobs.BOX)
    variance = torch.ones(1, blobs.BOX // 2 + 1)

    def transfer(optics, box, pixel_size):
        return optics.defocus_u[:, None, None].expand(-1, box, box // 2 + 1)

    monkeypatch.setattr(particle_statistics, "ctf", transfer)
    with pretended_device() as device:
        data, power = particle_statistics._weighted_components(
            plane.to(device), batch.to(device), variance.to(device), Memory()
        )
        assert data.device == power.device == device


def test_they_are_added_up_there_and_come_back(images):
    """The steps of `statistics` but for which images count at all."""
    with pretended_device() as device:
        there = moved(images, device)
        grid = Grid(Cube.whole(blobs.BOX), device=device)
        accumulator.spread(grid, there.frames, there.plane, there.data, there.power)
        found = Statistics.from_grid(grid, there.pixel_size, COUNT, 1.0, 1.0)
        assert found.b.device == found.kernel.device == device
        assert found.to("cpu").b.device == CPU


def test_images_of_domains_are_made_there(images):
    """What the other domains add to them, at places of their own."""
    place = Placement(torch.eye(3).repeat(COUNT, 2, 1, 1), torch.ones(COUNT, 2, 3))
    density = torch.rand(blobs.BOX, blobs.BOX, blobs.BOX)
    with pretended_device() as device:
        there = moved(images, device)
        spectrum = central_slices.Spectrum(density.to(device))
        found = domain_maps._slices(there, spectrum.slices, place.to(device), 1)
        assert found.device == device


def test_a_stray_tensor_is_found(images, maps):
    """Poses that stay behind are refused."""
    with pretended_device() as device, pytest.raises(RuntimeError, match="device"):
        replace(moved(images, device), frames=images.frames).normal_equations(maps)


def test_what_is_added_is_there(images, maps):
    with pretended_device() as device:
        more = moved(images, device).with_added(maps, torch.rand(COUNT, 3))
        assert more.data.device == more.power.device == device
