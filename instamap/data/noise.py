"""The noise, measured on the images themselves."""

import torch
from torch import Tensor

from instamap.data.particles import Particles
from instamap.errors import DataError
from instamap.fourier.ctf import ctf
from instamap.geometry import grids

_CHUNK = 256  # images in memory at once


def estimate(
    particles: Particles,
    rows: Tensor | None = None,
    *,
    limit: int = 2000,
    seed: int = 0,
) -> Tensor:
    """Variance "G D//2+1" (float64) of the noise in an unfiltered image's pixels, per optics group
    and Fourier shell.

    Measured on at most `limit` of `rows` "n" (all of them by default), drawn evenly over the optics
    groups. The noise is what lies outside the inscribed circle (pixels farther than box/2 from the
    origin): each image's variance there about its own mean, averaged within a group; its power
    spectrum, in shells, is that of the image with the circle blanked out. Of premultiplied images,
    whose noise was multiplied by C, it is divided by the mean of C². A group of which no image was
    drawn gets the mean of the others. Raises DataError for an image without variance outside the
    circle.
    """
    rows = _draw(particles, torch.arange(particles.count) if rows is None else rows, limit, seed)
    outside = (
        grids.pixel_centres(particles.box, 1.0, dtype=torch.float64).norm(dim=-1)
        > particles.box / 2
    )
    noise = []
    power = []
    shape = 0.0
    groups = int(particles.views.group.max()) + 1
    for some in rows.split(_CHUNK):
        images = particles.images(some).double()
        corner = images[:, outside].var(1)
        _check(particles, some, corner)
        noise.append(corner)
        square = (
            ctf(particles.views.optics[some], particles.box, particles.pixel_size) ** 2
            if particles.premultiplied
            else None
        )
        power.append(
            _mean(square, particles.box) if particles.premultiplied else torch.ones_like(corner)
        )
        shape = shape + _shells(
            images * outside, outside, square, particles.views.group[some], groups
        )
    level = _per_group(torch.cat(noise), torch.cat(power), particles.views.group[rows], groups)
    return _scaled(shape, level, particles.box)


def _draw(particles: Particles, rows: Tensor, limit: int, seed: int) -> Tensor:
    """At most `limit` of `rows`, at equal steps through them in the order of their groups, from a
    random start.
    """
    if len(rows) <= limit:
        return rows
    rows = rows[torch.argsort(particles.views.group[rows], stable=True)]
    start = torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows[((torch.arange(limit) + start) * (len(rows) / limit)).long()]


def _check(particles: Particles, rows: Tensor, variance: Tensor) -> None:
    flat = variance == 0
    if flat.any():
        raise DataError(
            f"{particles.describe(int(rows[flat][0]))} has no variance outside its inscribed"
            " circle, so it has no noise to measure; remove that row, or use images that are"
            " neither empty nor masked"
        )


def _both_halves(box: int) -> Tensor:
    """How many of the D x D components each of rfft2's "D//2+1" columns stands for: two, or one
    where it is its own mirror image.
    """
    twice = torch.full((box // 2 + 1,), 2.0, dtype=torch.float64)
    twice[0] = 1
    if box % 2 == 0:
        twice[-1] = 1
    return twice


def _mean(square: Tensor, box: int) -> Tensor:
    """Mean of C² "B" over all D x D components."""
    return (square * _both_halves(box)).sum((1, 2)) / box**2


def _shells(
    images: Tensor, window: Tensor, square: Tensor | None, group: Tensor, groups: int
) -> Tensor:
    """Sums "2 G D//2+1" over images "B D D" of a group and over a shell: of the power of the
    windowed images, and of C² (or of ones).
    """
    box = images.shape[-1]
    images = (images - images.sum((1, 2), keepdim=True) / window.sum()) * window
    found = torch.fft.rfft2(images).abs() ** 2
    # What white noise of variance one would give: taking off each image's mean costs power at low
    # frequencies.
    white = (window.sum() - torch.fft.rfft2(window.to(images)).abs() ** 2 / window.sum()).expand_as(
        found
    )
    both = torch.stack([found, white if square is None else white * square]) * _both_halves(box)
    shell = grids.noise_shells(box)[:, : box // 2 + 1].flatten()
    sums = torch.zeros(2, groups, box // 2 + 1, dtype=images.dtype)
    each = torch.zeros(2, len(images), box // 2 + 1, dtype=images.dtype).index_add_(
        2, shell, both.flatten(2)
    )
    return sums.index_add_(1, group, each)


def _scaled(sums: Tensor, level: Tensor, box: int) -> Tensor:
    """Spectra "G D//2+1" of the shape that `sums` "2 G D//2+1" give, smoothed over three shells,
    with the pixel variances `level` "G".

    A group that was not drawn has the shape of the others. Shell 0, of which nothing is left
    without the images' means, gets the value of shell 1.
    """
    sums = torch.where((sums[1] > 0).any(1, keepdim=True), sums, sums.sum(1, keepdim=True))
    shape = sums[0] / sums[1]
    shape[:, 0] = shape[:, 1]
    near = (
        torch.nn.functional.pad(shape[:, None], (1, 1), mode="replicate")[:, 0]
        .unfold(1, 3, 1)
        .mean(-1)
    )
    weight = torch.zeros(box // 2 + 1, dtype=shape.dtype)
    weight.index_add_(0, grids.noise_shells(box).flatten(), torch.ones(box**2, dtype=shape.dtype))
    return near * (level / ((near * weight).sum(1) / box**2))[:, None]


def _per_group(noise: Tensor, power: Tensor, group: Tensor, count: int) -> Tensor:
    """Σ noise / Σ power "G" of each group; that of all images where a group has none."""
    zero = torch.zeros(count, dtype=noise.dtype)
    above = zero.index_add(0, group, noise)
    below = zero.index_add(0, group, power)
    return torch.where(
        below > 0, above / below.clamp(min=torch.finfo(below.dtype).tiny), noise.sum() / power.sum()
    )
