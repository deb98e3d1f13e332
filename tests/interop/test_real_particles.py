"""Conventions held against real images: particles of EMPIAR-10076 correlate with projections of a
map of the same data.
"""

import pytest
import torch

from instamap.data.particles import Particles
from instamap.forward.ray import Ray
from instamap.fourier import ctf
from instamap.geometry import grids, rotations
from instamap.maps import mrc
from instamap.representations.voxel import Voxel
from instamap.scene import Scene, Views


def fourier_crop(images, box):
    """Images "B D D" at the coarser sampling of `box` pixels across the same field."""
    spectrum = torch.fft.fftshift(
        torch.fft.fft2(torch.fft.ifftshift(images, dim=(1, 2))), dim=(1, 2)
    )
    small = torch.fft.ifft2(torch.fft.ifftshift(grids.crop(spectrum, box), dim=(1, 2))).real
    return torch.fft.fftshift(small, dim=(1, 2)) * (box / images.shape[-1]) ** 2


@pytest.fixture(scope="module")
def case(shared_data):
    """Images, their views and a function that images the reference map at given views."""
    folder = shared_data / "empiar-10076-7"
    particles = Particles.open(folder / "particles.star")
    reference, pixel_size = mrc.read(folder / "50S_reference.mrc")
    images = -fourier_crop(
        particles.images(torch.arange(particles.count)).double(), len(reference)
    )  # protein is dark in raw images
    scene = Scene(box=len(reference), pixel_size=pixel_size)
    voxel = Voxel(Voxel.Options(), scene)
    voxel.values.data[0, 0] = reference
    ray = Ray(Ray.Options(), scene).double().eval()

    @torch.no_grad()
    def image(rotation, origin, optics):
        return ctf.apply(ray(voxel.double(), Views.of(rotation, origin)), optics, pixel_size)

    return images, particles.views, image, pixel_size


def scores(images, predictions, pixel_size):
    """Correlation of each image with its prediction within 170 Å of the middle, between 250 and 25
    Å.
    """
    k = grids.frequencies(images.shape[-1], pixel_size, dtype=torch.float64).norm(dim=-1)
    band = ((k > 1 / 250) & (k < 1 / 25)).double()
    disc = (
        grids.pixel_centres(images.shape[-1], pixel_size, dtype=torch.float64).norm(dim=-1) < 170
    ).double()
    a, b = (
        torch.fft.irfft2(torch.fft.rfft2(x) * band, s=x.shape[-2:]) * disc
        for x in (images, predictions)
    )
    return (a * b).flatten(1).sum(1) / (a.flatten(1).norm(dim=1) * b.flatten(1).norm(dim=1))


def test_seven_real_images_agree_with_the_reference_at_their_poses(case):
    images, views, image, pixel_size = case
    posed = scores(images, image(views.rotation, views.origin, views.optics), pixel_size)
    generator = torch.Generator().manual_seed(5)
    random = torch.stack(
        [
            scores(
                images,
                image(
                    rotations.random(len(images), generator=generator), views.origin, views.optics
                ),
                pixel_size,
            )
            for _ in range(40)
        ]
    )
    z = (posed - random.mean(0)) / random.std(0)
    # Of N(0, 7) if poses, shifts, CTF or sign were wrong: 3 σ is 7.9. A raw image alone gives about
    # 2.
    assert z.sum() > 8, z
    assert (z > 1).sum() >= 5, z


@pytest.mark.parametrize("mistake", ["sign", "transposed pose", "mirror image"])
def test_a_wrong_convention_would_be_seen(case, mistake):
    images, views, image, pixel_size = case
    rotation = views.rotation.mT if mistake == "transposed pose" else views.rotation
    predicted = image(rotation, views.origin, views.optics)
    predicted = {"sign": -predicted, "mirror image": predicted.flip(-1)}.get(mistake, predicted)
    right = scores(images, image(views.rotation, views.origin, views.optics), pixel_size)
    assert scores(images, predicted, pixel_size).sum() < 0.5 * right.sum()
