"""Levels of noise and signal, measured on the images themselves."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.data.particles import Particles
from instamap.errors import DataError
from instamap.geometry import grids
from instamap.scene import Optics

Transfer = Callable[[Optics, int, float], Tensor]
"""The contrast transfer function: (optics, box, pixel size in Å) -> "B D D//2+1" on the components of torch.fft.rfft2."""

_CHUNK = 256  # images in memory at once


@dataclass(frozen=True)
class Levels:
    """noise_variance "G D//2+1": of an unfiltered image's pixels, per optics group and Fourier shell (float64; white, so the same for
    all shells). signal_scale: standard deviation of the signal near the middle of an image, in the images' unit; both are those of
    images that are not premultiplied."""

    noise_variance: Tensor
    signal_scale: float


def estimate(particles: Particles, rows: Tensor | None = None, *, limit: int = 2000, seed: int = 0,
             transfer: Transfer | None = None) -> Levels:  # fmt: skip
    """Measure both levels on at most `limit` of `rows` "n" (all of them by default), drawn evenly over the optics groups.

    The noise is what lies outside the inscribed circle (pixels farther than box/2 from the origin): each image's variance there about
    its own mean, averaged within a group. Of premultiplied images, whose noise was multiplied by C, it is divided by the mean
    of C² over all Fourier components, for which `transfer` is needed. A group of which no image was drawn gets the mean of the others.
    The signal's variance is that within box/4 of the origin less that outside, over the same mean, and at least 1e-4 of the noise's.
    Raises DataError for an image without variance outside the circle.
    """
    if particles.premultiplied and transfer is None:
        raise ValueError("premultiplied images: give the contrast transfer function as `transfer`")
    rows = _draw(particles, torch.arange(particles.count) if rows is None else rows, limit, seed)
    outside, inside = _circles(particles.box)
    noise, excess, power = [], [], []
    for some in rows.split(_CHUNK):
        images = particles.images(some).double()
        corner = images[:, outside].var(1)
        _check(particles, some, corner)
        noise.append(corner)
        excess.append(images[:, inside].var(1) - corner)
        power.append(_power(particles, some, transfer) if particles.premultiplied else torch.ones_like(corner))
    noise, excess, power = torch.cat(noise), torch.cat(excess), torch.cat(power)
    level = _per_group(noise, power, particles.views.group[rows], int(particles.views.group.max()) + 1)
    signal = max(float(excess.sum()), 1e-4 * float(noise.sum())) / float(power.sum())
    return Levels(level[:, None].repeat(1, particles.box // 2 + 1), signal**0.5)


def _draw(particles: Particles, rows: Tensor, limit: int, seed: int) -> Tensor:
    """At most `limit` of `rows`, at equal steps through them in the order of their groups, from a random start."""
    if len(rows) <= limit:
        return rows
    rows = rows[torch.argsort(particles.views.group[rows], stable=True)]
    start = torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows[((torch.arange(limit) + start) * (len(rows) / limit)).long()]


def _circles(box: int) -> tuple[Tensor, Tensor]:
    """Masks "D D" of the pixels outside radius box/2 and inside radius box/4."""
    radius = grids.pixel_centres(box, 1.0, dtype=torch.float64).norm(dim=-1)
    return radius > box / 2, radius < box / 4


def _check(particles: Particles, rows: Tensor, variance: Tensor) -> None:
    flat = variance == 0
    if flat.any():
        raise DataError(
            f"{particles.describe(int(rows[flat][0]))} has no variance outside its inscribed circle, so it has no noise to measure; "
            "remove that row, or use images that are neither empty nor masked"
        )


def _power(particles: Particles, rows: Tensor, transfer: Transfer) -> Tensor:
    """Mean of C² "B" over all D x D components, of which rfft2 keeps one of each conjugate pair."""
    box = particles.box
    square = transfer(particles.views.optics[rows], box, particles.pixel_size) ** 2
    twice = torch.full((box // 2 + 1,), 2.0, dtype=square.dtype)
    twice[0] = 1
    if box % 2 == 0:
        twice[-1] = 1
    return (square * twice).sum((1, 2)) / box**2


def _per_group(noise: Tensor, power: Tensor, group: Tensor, count: int) -> Tensor:
    """Σ noise / Σ power "G" of each group; that of all images where a group has none."""
    zero = torch.zeros(count, dtype=noise.dtype)
    above, below = zero.index_add(0, group, noise), zero.index_add(0, group, power)
    return torch.where(below > 0, above / below.clamp(min=torch.finfo(below.dtype).tiny), noise.sum() / power.sum())
