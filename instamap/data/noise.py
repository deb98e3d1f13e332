"""The noise, measured on the images themselves."""

import torch
from torch import Tensor

from instamap.data.particles import Particles
from instamap.errors import DataError
from instamap.fourier.ctf import ctf
from instamap.geometry import grids

_PIXELS_AT_ONCE = 1 << 20


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
    if rows is None:
        rows = torch.arange(particles.count)
    rows = _draw(particles, rows, limit, seed)
    box = particles.box
    group = particles.views.group
    groups = int(group.max()) + 1
    corners = _Corners(box)
    variances = []
    powers = []
    sums = torch.zeros(2, groups, box // 2 + 1, dtype=torch.float64)
    for chunk in rows.split(max(1, _PIXELS_AT_ONCE // box**2)):
        images = particles.images(chunk).double()
        variance, mean = torch.var_mean(corners.of(images), 1)
        _check_variance(particles, chunk, variance)
        square = _squared_ctf(particles, chunk)
        power = torch.ones_like(variance) if square is None else _mean(square, box)
        variances.append(variance)
        powers.append(power)
        present, place = group[chunk].unique(return_inverse=True)
        centred = images - mean[:, None, None]
        sums.index_add_(1, present, corners.shell_sums(centred, square, place, len(present)))
    variance = torch.cat(variances)
    power = torch.cat(powers)
    level = _per_group(variance, power, group[rows], groups)
    return _scaled(sums, level, box)


class _Corners:
    """The pixels outside the inscribed circle, farther than box/2 from the origin, and what is the
    same of all images there.
    """

    def __init__(self, box: int) -> None:
        self.box = box
        centres = grids.pixel_centres(box, 1.0, dtype=torch.float64)
        outside = centres.norm(dim=-1) > box / 2
        self.window = outside.double()
        self.pixels = outside.flatten().nonzero()[:, 0]
        # What white noise of variance one would give: taking off each image's mean costs power at
        # low frequencies.
        count = len(self.pixels)
        self.white = count - _power(self.window) / count
        self.shell = grids.noise_shells(box)[:, : box // 2 + 1].flatten()
        self.both_halves = _both_halves(box)

    def of(self, images: Tensor) -> Tensor:
        """The values "B P" of images "B D D" there."""
        return images.flatten(1).index_select(1, self.pixels)

    def shell_sums(
        self, images: Tensor, square: Tensor | None, group: Tensor, groups: int
    ) -> Tensor:
        """Sums "2 G D//2+1" over a group's images "B D D", less their means outside the circle, and
        over a shell: of the power of the images with the circle blanked out, and of C² (or ones).
        """
        power = _power((images * self.window).float())  # transforms in float32 are exact enough
        of_groups = power.new_zeros(2, groups, *self.white.shape)
        of_groups[0].index_add_(0, group, power)
        if square is None:
            of_groups[1] = self.white * torch.bincount(group, minlength=groups)[:, None, None]
        else:
            of_groups[1].index_add_(0, group, self.white * square)
        of_groups *= self.both_halves
        sums = power.new_zeros(2, groups, self.box // 2 + 1)
        return sums.index_add_(2, self.shell, of_groups.flatten(2))


def _squared_ctf(particles: Particles, rows: Tensor) -> Tensor | None:
    """C² "B D D//2+1" that the noise of premultiplied images was multiplied by, or None."""
    optics = particles.views.optics
    if not particles.premultiplied or optics is None:
        return None
    transfer = ctf(optics[rows], particles.box, particles.pixel_size)
    return transfer**2


def _draw(particles: Particles, rows: Tensor, limit: int, seed: int) -> Tensor:
    """At most `limit` of `rows`, at equal steps through them in the order of their groups, from a
    random start.
    """
    if len(rows) <= limit:
        return rows
    order = torch.argsort(particles.views.group[rows], stable=True)
    rows = rows[order]
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand((), generator=generator, dtype=torch.float64)
    step = len(rows) / limit
    places = (torch.arange(limit) + start) * step
    return rows[places.long()]


def _check_variance(particles: Particles, rows: Tensor, variance: Tensor) -> None:
    flat = variance == 0
    if flat.any():
        row = int(rows[flat][0])
        raise DataError(
            f"{particles.describe(row)} has no variance outside its inscribed circle, so it has no"
            " noise to measure; remove that row, or use images that are neither empty nor masked"
        )


def _both_halves(box: int) -> Tensor:
    """How many of the D x D components each of rfft2's "D//2+1" columns stands for: two, or one
    where it is its own mirror image.
    """
    count = torch.full((box // 2 + 1,), 2.0, dtype=torch.float64)
    count[0] = 1
    if box % 2 == 0:
        count[-1] = 1
    return count


def _mean(square: Tensor, box: int) -> Tensor:
    """Mean of C² "B" over all D x D components."""
    total = (square * _both_halves(box)).sum((1, 2))
    return total / box**2


def _power(images: Tensor) -> Tensor:
    """|F|² "* D D//2+1" (float64) of the components of images "* D D"."""
    components = torch.fft.rfft2(images)
    return components.real.double().square() + components.imag.double().square()


def _scaled(sums: Tensor, level: Tensor, box: int) -> Tensor:
    """Spectra "G D//2+1" of the shape that `sums` "2 G D//2+1" give, smoothed over three shells,
    with the pixel variances `level` "G".

    A group that was not drawn has the shape of the others. Shell 0, of which nothing is left
    without the images' means, gets the value of shell 1.
    """
    drawn = (sums[1] > 0).any(1, keepdim=True)
    sums = torch.where(drawn, sums, sums.sum(1, keepdim=True))
    shape = sums[0] / sums[1]
    shape[:, 0] = shape[:, 1]
    padded = torch.nn.functional.pad(shape[:, None], (1, 1), mode="replicate")[:, 0]
    smooth = padded.unfold(1, 3, 1).mean(-1)
    shell = grids.noise_shells(box).flatten()
    count = torch.zeros(box // 2 + 1, dtype=shape.dtype)
    count.index_add_(0, shell, torch.ones(box**2, dtype=shape.dtype))
    variance = (smooth * count).sum(1) / box**2
    return smooth * (level / variance)[:, None]


def _per_group(noise: Tensor, power: Tensor, group: Tensor, count: int) -> Tensor:
    """Σ noise / Σ power "G" of each group; that of all images where a group has none."""
    zero = torch.zeros(count, dtype=noise.dtype)
    above = zero.index_add(0, group, noise)
    below = zero.index_add(0, group, power)
    smallest = torch.finfo(below.dtype).tiny
    own = above / below.clamp(min=smallest)
    of_all = noise.sum() / power.sum()
    return torch.where(below > 0, own, of_all)
