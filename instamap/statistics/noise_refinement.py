"""The noise, measured on what a first map leaves of the images: over the whole of each image, not
its corners alone.
"""

import torch
from torch import Tensor

from instamap.data.particles import Particles
from instamap.fourier import ctf
from instamap.fourier.projector import Projector
from instamap.geometry import grids
from instamap.maps import mask
from instamap.parts import Likelihood
from instamap.scene import Batch, Scene
from instamap.statistics.initial_map import least_squares
from instamap.statistics.streaming import gather, read_ahead

LIMIT = 2000  # images
# images of each of the two maps, fewer of which tell more about themselves than about the noise
LEAST = 100


def refine(
    particles: Particles,
    rows: Tensor,
    likelihood: Likelihood,
    scene: Scene,
    *,
    symmetry: Tensor | None = None,
) -> Tensor:
    """Variance "G D//2+1" of the noise per optics group and Fourier shell, from residuals of at
    most LIMIT of `rows`.

    Two maps are made of half of these images each, with the noise that `likelihood` knows. A map
    has fitted some of the noise of its own images, so that their residuals are too small, by the
    same amount, to first order, as those of the other half's are too large: their mean is taken. A
    group without images, and a set of fewer than 2 LEAST, keeps the scene's variance.
    """
    rows = rows[:: max(1, -(-len(rows) // LIMIT))]
    before = scene.noise_variance
    if len(rows) < 2 * LEAST:
        return before
    second = (
        torch.unique(particles.units()[rows], return_inverse=True)[1] % 2 == 1
    )  # copies of an image have the same noise
    halves = {"one": rows[~second], "two": rows[second]}
    if min(map(len, halves.values())) < LEAST:
        return before  # most are copies of few
    statistics = gather(particles, halves, likelihood, symmetry=symmetry)
    sphere = mask.sphere(scene.box, scene.pixel_size, scene.radius, 0.0)
    volumes = [
        least_squares(some, sphere if scene.mask is None else scene.mask)
        for some in statistics.values()
    ]
    projector = Projector(scene.box, scene.pixel_size)
    sums = torch.zeros(2, *before.shape, dtype=torch.float64)
    for some in halves.values():
        for batch in read_ahead(particles, some):
            for volume in volumes:
                _add(sums, _residuals(projector, volume, batch, scene), batch, scene)
    spectrum = sums[0] / sums[1].clamp(min=1e-30)
    spectrum[:, 0] = spectrum[:, 1]  # images have means of their own
    if scene.box % 2 == 0:
        spectrum[:, -1] = spectrum[:, -2]  # of which slices have nothing
    near = (
        torch.nn.functional.pad(spectrum[:, None], (1, 1), mode="replicate")[:, 0]
        .unfold(1, 3, 1)
        .mean(-1)
    )
    return torch.where(sums[1, :, 1:2] > 0, near, before.double()).to(before.dtype)


def _residuals(projector: Projector, volume: Tensor, batch: Batch, scene: Scene) -> Tensor:
    views = batch.views
    predicted = projector(volume, views.rotation, views.origin)
    optics = views.optics
    for _ in range(0 if optics is None else 2 if scene.premultiplied else 1):
        predicted = ctf.apply(predicted, optics, scene.pixel_size)
    return batch.images - predicted


def _add(sums: Tensor, residuals: Tensor, batch: Batch, scene: Scene) -> None:
    """Adds to `sums` "2 G D//2+1" the power in each shell and what white noise of variance one
    would have there.
    """
    box = scene.box
    power = torch.fft.rfft2(residuals).abs().square().double() / box**2
    square = (
        ctf.ctf(batch.views.optics, box, scene.pixel_size).square()
        if scene.premultiplied
        else torch.ones_like(power)
    )
    shell = grids.shells(box, 2)[:, : box // 2 + 1].flatten()
    inside = shell < box // 2 + (box % 2)  # the circle that slices reach
    shell = shell.clamp(max=box // 2)[inside]
    for i, values in enumerate((power, square.double())):
        each = torch.zeros(len(residuals), box // 2 + 1, dtype=torch.float64).index_add_(
            1, shell, values.flatten(1)[:, inside]
        )
        sums[i].index_add_(0, batch.views.group, each)
