"""Noise from residuals: right where corners are wrong, of plain and of premultiplied images."""

import mrcfile
import pytest
import starfile
import torch

from instamap.data.particles import Particles
from instamap.fourier.ctf import ctf
from instamap.model import compose, default_parts
from instamap.plugin.choice import choose
from instamap.scene import Scene
from instamap.simulate import particle_set
from instamap.statistics.noise_refinement import MIN_HALF_IMAGES, refine
from instamap.workflows.prepare import open_dataset
from instamap.workflows.settings import Settings


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """600 images of 32 pixels with white noise of variance one."""
    return Particles.open(particle_set.demo(tmp_path_factory.mktemp("plain")))


@pytest.fixture(scope="module")
def premultiplied(plain, tmp_path_factory):
    """The same, multiplied by their CTF."""
    out = tmp_path_factory.mktemp("premultiplied")
    images = plain.images(torch.arange(plain.count)).double()
    images = torch.fft.irfft2(
        torch.fft.rfft2(images) * ctf(plain.views.optics, plain.box, plain.pixel_size),
        s=(plain.box, plain.box),
    )
    with mrcfile.new(out / "particles.mrcs") as stack:
        stack.set_data(images.float().numpy())
    tables = starfile.read(plain.path, always_dict=True)
    tables["optics"]["rlnCtfDataAreCtfPremultiplied"] = 1
    starfile.write(tables, out / "particles.star")
    return Particles.open(out / "particles.star")


def _refined(particles, rows, before):
    scene = Scene(
        box=particles.box,
        pixel_size=particles.pixel_size,
        count=particles.count,
        premultiplied=particles.premultiplied,
        noise_variance=before,
    )
    likelihood = compose(
        {**default_parts(), "likelihood": choose("likelihood", "coloured", [])}, scene
    ).likelihood
    return refine(particles, rows, likelihood, scene)


@pytest.mark.parametrize("kind", ["plain", "premultiplied"])
def test_the_spectrum_is_that_of_the_noise_whatever_was_known_before(kind, request):
    """Shell k has 600 · 2πk components of noise; the signal that a first map misses at a variance
    of 0.1 in all is what remains.
    """
    particles = request.getfixturevalue(kind)
    before = torch.linspace(3.0, 0.5, 17)[None]  # as neighbours in the corners would make it
    found = _refined(particles, torch.arange(particles.count), before)
    assert found.shape == before.shape and found.dtype == before.dtype
    assert float((found[0, 3:] - 1).abs().max()) < 0.05
    assert float((found[0, :3] - 1).abs().max()) < 0.3


def test_few_images_keep_what_was_known(plain):
    before = torch.linspace(3.0, 0.5, 17)[None]
    rows = torch.arange(2 * MIN_HALF_IMAGES - 1)
    assert torch.equal(_refined(plain, rows, before), before)


def test_it_is_an_option_of_the_likelihood(plain):
    def spectrum(likelihood, *options):
        chosen = choose("likelihood", likelihood, list(options))
        return open_dataset(Settings(plain.path, likelihood=chosen)).scene.noise_variance

    white = spectrum("gaussian")
    corners = spectrum("coloured", "noise=corners")
    residuals = spectrum("coloured", "noise=residuals")
    assert torch.equal(corners, white)
    assert not torch.equal(residuals, white)
    assert float((residuals - 1).abs().mean()) < 0.05
