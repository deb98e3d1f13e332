"""Optics groups of different microscopes: pixel sizes, boxes and all aberrations in one file, from
closed-form images of blobs to a map of them.
"""

from pathlib import Path

import mrcfile
import pytest
import starfile
import torch
from support.command import QUICK, correlation, instamap
from torch import Tensor

from instamap.data import noise
from instamap.data.particles import Particles
from instamap.forward.ray import Ray
from instamap.fourier import ctf
from instamap.geometry import grids
from instamap.maps import mask, mrc
from instamap.scene import Scene
from instamap.simulate import particle_set
from instamap.statistics import initial_map
from instamap.statistics.accumulator import Accumulator

SIGMA = 7.0  # Å
NOISE = 0.3  # standard deviation of pixels, in standard deviations of an image
CENTRES = torch.tensor(
    [[20.0, 5.0, -8.0], [-12.0, 14.0, 10.0], [0.0, -22.0, 4.0], [-8.0, 0.0, 0.0]]
)
HEIGHTS = torch.tensor([1.0, 0.8, 1.2, 0.6])
LATTICES = ((32, 5.0), (44, 3.8), (32, 4.9))  # box and Å: of edges of 160, 167.2 and 156.8 Å
ABERRATIONS = {
    "rlnBeamTiltX": [60.0, 0.0, -30.0],
    "rlnBeamTiltY": [-40.0, 0.0, 50.0],
    "rlnOddZernike": ["[0,0,900,0,0,400]", "[0]", "[8,-6,0,0,0,900]"],
    "rlnEvenZernike": ["[0.5,60,-30,40]", "[0,0,0]", "[0.3,-40,30,20,4000]"],
    "rlnMagMat00": [1.05, 1.0, 0.96],
    "rlnMagMat01": [0.03, 0.0, -0.02],
    "rlnMagMat10": [-0.02, 0.0, -0.02],
    "rlnMagMat11": [0.96, 1.0, 1.04],
}


def density(x: Tensor) -> Tensor:
    square = (x[..., None, :] - CENTRES.to(x)).square().sum(-1)
    return (torch.exp(-square / (2 * SIGMA**2)) * HEIGHTS.to(x)).sum(-1)


@pytest.fixture(scope="module")
def star(tmp_path_factory) -> Path:
    """180 images of the blobs in three optics groups, each in a stack of its own."""
    folder = tmp_path_factory.mktemp("groups")
    path = particle_set.demo(folder, count=180, box=32, pixel_size=5.0, snr=1.0)
    tables = starfile.read(path)
    optics = tables["optics"].iloc[:1]
    optics = optics.loc[optics.index.repeat(3)].reset_index(drop=True)
    optics["rlnOpticsGroup"] = [1, 2, 3]
    optics["rlnOpticsGroupName"] = ["a", "b", "c"]
    optics["rlnImageSize"] = [box for box, _ in LATTICES]
    optics["rlnImagePixelSize"] = [size for _, size in LATTICES]
    for name, values in ABERRATIONS.items():
        optics[name] = values
    particles = tables["particles"]
    group = [row % 3 for row in range(len(particles))]
    particles["rlnOpticsGroup"] = [number + 1 for number in group]
    particles["rlnImageName"] = [
        f"{row // 3 + 1}@{'abc'[number]}.mrcs" for row, number in enumerate(group)
    ]
    generator = torch.Generator().manual_seed(0)
    starfile.write({"optics": optics, "particles": particles}, path, overwrite=True)
    for number, (box, _) in enumerate(LATTICES):
        with mrcfile.new(folder / f"{'abc'[number]}.mrcs") as file:
            file.set_data(torch.zeros(60, box, box).numpy())
    views = Particles.open(path).views
    for number, (box, size) in enumerate(LATTICES):
        rows = torch.arange(number, len(particles), 3)
        ray = Ray(Ray.Options(), Scene(box, size)).double().eval()
        images = ctf.apply(ray(density, views[rows]), views.optics[rows], size, padding=2.0)
        random = torch.randn(images.shape, generator=generator, dtype=torch.float64)
        images = images + NOISE * images.std() * random
        with mrcfile.new(folder / f"{'abc'[number]}.mrcs", overwrite=True) as file:
            file.set_data(images.float().numpy())
            file.voxel_size = size
    return path


def agreement(path: Path) -> float:
    """Correlation of the map that is likeliest with the blobs, within 60 Å of the middle."""
    particles = Particles.open(path)
    box = particles.box
    pixel_size = particles.pixel_size
    accumulator = Accumulator(box, pixel_size)
    batch = particles.batch(torch.arange(particles.count))
    variance = noise.estimate(particles).float()[batch.views.group]
    transfer = ctf.ctf(batch.views.optics, box, pixel_size)
    accumulator.add(batch.images, batch.views, noise_variance=variance, ctf=transfer)
    window = mask.sphere(box, pixel_size, Scene(box, pixel_size).radius, 0.0)
    found = initial_map.solve(accumulator.finish(), window)
    centres = grids.voxel_centres(box, pixel_size)
    inside = centres.norm(dim=-1) < 60
    return correlation(found, density(centres), inside)


def test_one_map_of_all_groups(star):
    """Half a pixel, a sign or a matrix amiss would cost more; so do aberrations that are not
    known.
    """
    tables = starfile.read(star)
    tables["optics"] = tables["optics"].drop(columns=list(ABERRATIONS))
    plain = star.with_name("plain.star")
    starfile.write(tables, plain, overwrite=True)
    found = agreement(star)
    assert found > 0.99
    assert 1 - agreement(plain) > 3 * (1 - found)


def test_the_lattice_is_told(star, tmp_path):
    outcome = instamap("reconstruct", star, "-o", tmp_path / "out", *QUICK)
    assert outcome.code == 0
    told = outcome.out + outcome.err
    for words in ("32 px of 5 Å", "44 px of 3.8 Å", "32 px of 4.9 Å", "brought to 30 px of 5 Å"):
        assert words in told
    assert "not modelled" not in told
    found, pixel_size = mrc.read(tmp_path / "out" / "map.mrc")
    assert (len(found), pixel_size) == (30, pytest.approx(5.0))
