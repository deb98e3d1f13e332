"""The noise, measured on what a first map leaves of the images: over the whole of each image, not
its corners alone.
"""

import torch
from torch import Tensor, nn

from instamap.data import splits
from instamap.data.particles import Particles
from instamap.fourier import aberrations, ctf
from instamap.fourier.projector import Projector
from instamap.geometry import grids
from instamap.geometry.cube import Cube
from instamap.maps import mask
from instamap.parts import GaussianLikelihood
from instamap.scene import Batch, Scene
from instamap.statistics import initial_map
from instamap.statistics.streaming import accumulate, read_ahead

MAX_IMAGES = 2000  # of which residuals are made
MIN_HALF_IMAGES = 100  # fewer tell more about their own map than about the noise
LEAST_SUM = 1e-30  # by which a sum is divided


def refine(
    particles: Particles,
    rows: Tensor,
    likelihood: GaussianLikelihood,
    scene: Scene,
    *,
    cube: Cube | None = None,
    symmetry: Tensor | None = None,
) -> Tensor:
    """Variance "G D//2+1" of the noise per optics group and Fourier shell, from residuals of at
    most MAX_IMAGES of `rows`.

    Two maps are made of half of these images each, with the noise that `likelihood` knows. A map
    has fitted some of the noise of its own images, so that their residuals are too small, by the
    same amount, to first order, as those of the other half's are too large: their mean is taken.
    cube: outside which the density is zero. A
    group without images, and a set of fewer than 2 MIN_HALF_IMAGES, keeps the scene's variance.
    """
    before = _known_variance(scene)
    rows = sample(rows)
    if len(rows) < 2 * MIN_HALF_IMAGES:
        return before
    halves = _halves(particles, rows)
    counts = [len(half) for half in halves.values()]
    if min(counts) < MIN_HALF_IMAGES:
        return before  # most are copies of few
    statistics = accumulate(particles, halves, likelihood, cube=cube, symmetry=symmetry)
    window = scene.mask
    if window is None:
        window = mask.sphere(scene.box, scene.pixel_size, scene.radius, 0.0)
    volumes = [initial_map.solve(half, window) for half in statistics.values()]
    power, expected = _spectra(particles, halves, volumes, scene)
    measured = expected[:, 1:2] > 0
    spectrum = power / expected.clamp(min=LEAST_SUM)
    spectrum = _smoothed(spectrum, scene.box)
    refined = torch.where(measured, spectrum, before.double())
    return refined.to(before.dtype)


def sample(rows: Tensor) -> Tensor:
    """Those of `rows` "n" whose residuals are looked at: MAX_IMAGES at most, at equal steps."""
    return splits.at_equal_steps(rows, MAX_IMAGES)


def _known_variance(scene: Scene) -> Tensor:
    """The noise that is to be refined."""
    assert scene.noise_variance is not None, "noise is refined only where a first guess is known"
    return scene.noise_variance


def _halves(particles: Particles, rows: Tensor) -> dict[str, Tensor]:
    """The rows in two halves, with copies of an image, which have the same noise, in one."""
    image = particles.image_numbers()[rows]
    _, number = torch.unique(image, return_inverse=True)
    second = number % 2 == 1
    return {
        "one": rows[~second],
        "two": rows[second],
    }


def _smoothed(spectrum: Tensor, box: int) -> Tensor:
    """A spectrum "G D//2+1" averaged over neighbouring shells, after mending those at its ends."""
    spectrum[:, 0] = spectrum[:, 1]  # images have means of their own
    if box % 2 == 0:
        spectrum[:, -1] = spectrum[:, -2]  # of which slices have nothing
    padded = nn.functional.pad(spectrum[:, None], (1, 1), mode="replicate")
    padded = padded[:, 0]
    neighbours = padded.unfold(1, 3, 1)
    return neighbours.mean(-1)


def _spectra(
    particles: Particles,
    halves: dict[str, Tensor],
    volumes: list[Tensor],
    scene: Scene,
) -> Tensor:
    """The power "2 G D//2+1" of all images' residuals of each map, and what white noise of variance
    one would have.
    """
    shape = _known_variance(scene).shape
    sums = torch.zeros(2, *shape, dtype=torch.float64)
    projector = Projector(scene.box, scene.pixel_size)
    for half in halves.values():
        for batch in read_ahead(particles, half):
            for volume in volumes:
                residuals = _residuals(projector, volume, batch, scene)
                _add(sums, residuals, batch, scene)
    return sums


def _residuals(projector: Projector, volume: Tensor, batch: Batch, scene: Scene) -> Tensor:
    """Images less the map's projections, after as much contrast transfer as they have seen."""
    views = batch.views
    predicted = views.with_contrast(projector(volume, views))
    if views.optics is None:
        return batch.images - predicted
    predicted = ctf.apply(predicted, views.optics, scene.pixel_size)
    if scene.premultiplied:
        even = aberrations.without_odd(views.optics)
        predicted = ctf.apply(predicted, even, scene.pixel_size)
    return batch.images - predicted


def _add(sums: Tensor, residuals: Tensor, batch: Batch, scene: Scene) -> None:
    """Adds to `sums` "2 G D//2+1" the power in each shell and what white noise of variance one
    would have there.
    """
    box = scene.box
    half = box // 2
    views = batch.views
    spectrum = torch.fft.rfft2(residuals)
    square = spectrum.abs().square()
    power = square.double() / box**2
    expected = torch.ones_like(power)
    if scene.premultiplied and views.optics is not None:
        transfer = ctf.ctf(views.optics, box, scene.pixel_size)
        square = transfer.square()
        expected = square.double()
    shell = grids.shells(box, 2)[:, : half + 1]
    shell = shell.flatten()
    inside = shell < half + box % 2  # the circle that slices reach
    shell = shell[inside]
    shell = shell.clamp(max=half)
    for total, values in zip(sums, (power, expected), strict=True):
        flat = values.flatten(1)
        spectra = torch.zeros(len(residuals), half + 1, dtype=torch.float64)
        spectra.index_add_(1, shell, flat[:, inside])
        total.index_add_(0, views.group, spectra)
