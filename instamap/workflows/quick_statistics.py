"""Statistics of some images, scaled down: for a quick look at what is in them."""

from collections.abc import Mapping

from torch import Tensor

from instamap.data import noise
from instamap.data.particles import Particles
from instamap.model import make_part
from instamap.parts import GaussianLikelihood
from instamap.plugin.choice import choose
from instamap.scene import Scene
from instamap.statistics.particle_statistics import fewer_pixels
from instamap.statistics.statistics import Statistics
from instamap.statistics.streaming import accumulate

NOISE_IMAGES = 2000  # by which the noise is told, where nothing else is asked


def gather(
    particles: Particles,
    box: int,
    rows: Tensor,
    sets: Mapping[str, Tensor],
    *,
    noise_images: int = NOISE_IMAGES,
    symmetry: Tensor | None = None,
    weights: Tensor | None = None,
) -> tuple[Scene, dict[str, Statistics]]:
    """The scene of the particles in about `box` pixels, and the statistics of each set of rows.

    The noise is coloured, measured on at most `noise_images` of the images `rows`. symmetry "S 3
    3", weights "n": see `accumulate`. Raises DataError where the noise cannot be measured.
    """
    edge = particles.box * particles.pixel_size
    coarse = fewer_pixels(particles, edge / box)
    spectra = noise.estimate(coarse, rows, limit=noise_images)
    scene = Scene(
        box=coarse.box,
        pixel_size=coarse.pixel_size,
        count=coarse.count,
        premultiplied=coarse.premultiplied,
        noise_variance=spectra.float(),
    )
    likelihood = make_part("likelihood", choose("likelihood", "coloured"), scene)
    assert isinstance(likelihood, GaussianLikelihood)
    found = accumulate(coarse, dict(sets), likelihood, symmetry=symmetry, weights=weights)
    return scene, found
