"""Directional FSC: how far two half maps agree along each direction, and from where a map was
seen.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.geometry import grids
from instamap.maps import fsc as shells

HEIGHT_BINS = 18
AZIMUTH_BINS = 72
CONE = 20.0
"""Half angle in degrees of the cones of Tan et al., Nature Methods 14, 793 (2017)."""

SLICE_HALF_WIDTH = 0.05
"""Radians from a slice within which it sees a direction."""

VIEWS_AT_ONCE = 8192
MIN_CONE_COMPONENTS = 12
"""Components of a shell that a cone holds at least, to be judged by itself: fewer may be weak by
chance.
"""

EMPTY_NORM = 1e-28
"""Share of a map's whole power below which a cone's shell is empty."""


@dataclass(frozen=True)
class DirectionalFsc:
    """FSC curves "V D//2+1" of cones around `directions` "V 3" (x, y, z).

    The directions are the middles of 18 x 72 bins of one area on the half of the sphere with
    z >= 0, row by row. A cone with fewer than `MIN_CONE_COMPONENTS` of a shell's components has the
    whole shell's value.
    """

    directions: Tensor
    curves: Tensor

    def resolutions(self, box: int, pixel_size: float, threshold: float = 0.143) -> Tensor:
        """Å "V" at which the curve of each direction first falls below `threshold`."""
        values = [shells.resolution(curve, box, pixel_size, threshold) for curve in self.curves]
        return torch.tensor(values, dtype=torch.float64)


def bin_centres() -> Tensor:
    """Unit vectors "1296 3" (x, y, z) in the middle of each bin of the half sphere."""
    row = torch.arange(HEIGHT_BINS, dtype=torch.float64)
    column = torch.arange(AZIMUTH_BINS, dtype=torch.float64)
    height = (row + 0.5) / HEIGHT_BINS
    azimuth = 2 * math.pi * (column + 0.5) / AZIMUTH_BINS - math.pi
    z, angle = torch.meshgrid(height, azimuth, indexing="ij")
    radius = (1 - z.square()).sqrt()
    x = radius * torch.cos(angle)
    y = radius * torch.sin(angle)
    return torch.stack([x, y, z], -1).flatten(0, 1)


def bins(direction: Tensor) -> Tensor:
    """The bin "*" of each direction "* 3" (any length but none) or of its opposite."""
    unit = direction / direction.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    flipped = torch.where(unit[..., 2:] < 0, -unit, unit)
    azimuth = torch.atan2(flipped[..., 1], flipped[..., 0])
    turn = azimuth / (2 * math.pi) + 0.5
    row = (flipped[..., 2] * HEIGHT_BINS).long().clamp(0, HEIGHT_BINS - 1)
    column = (turn * AZIMUTH_BINS).long().clamp(0, AZIMUTH_BINS - 1)
    return row * AZIMUTH_BINS + column


def directional_fsc(
    a: Tensor,
    b: Tensor,
    mask: Tensor | None = None,
    cone: float = CONE,
) -> DirectionalFsc:
    """FSC of maps "D D D", levelled inside `mask`, over the components of each shell that are less
    than `cone` degrees from each direction or its opposite.

    Sums are taken once over bins of directions and shells; a cone is the sum of its bins.
    """
    if mask is not None:
        a = shells.levelled(a, mask)
        b = shells.levelled(b, mask)
    box = len(a)
    transform_a = torch.fft.rfftn(a.detach().double())
    transform_b = torch.fft.rfftn(b.detach().double())
    place = _shell_and_bin(box)
    real = transform_a.real * transform_b.real
    product = real + transform_a.imag * transform_b.imag
    directions = bin_centres()
    cosine = math.cos(math.radians(cone))
    inside = ((directions @ directions.mT).abs() >= cosine).double()
    cross = inside @ _sums(product, place, box)
    power_a = inside @ _sums(_power(transform_a), place, box)
    power_b = inside @ _sums(_power(transform_b), place, box)
    norm = (power_a * power_b).sqrt()
    count = inside @ _sums(torch.ones_like(product), place, box)
    enough = count >= MIN_CONE_COMPONENTS
    full = enough & (norm > EMPTY_NORM * norm.sum())
    safe_norm = norm.where(full, torch.ones_like(norm))
    whole = shells.fsc(a, b)
    curves = torch.where(full, cross / safe_norm, whole)
    return DirectionalFsc(directions, curves)


def sampling(rotation: Tensor) -> Tensor:
    """How often each direction "V" of `bin_centres` was seen, as a share of uniform views.

    rotation "n 3 3": particle frame to image frame, whose third row is the view; a slice sees what
    is less than `SLICE_HALF_WIDTH` from its plane, which is that share of all directions.
    """
    directions = bin_centres()
    views = rotation[:, 2].double()
    total = torch.zeros(len(directions), dtype=torch.float64)
    for some_views in views.split(VIEWS_AT_ONCE):
        distance = (directions @ some_views.mT).abs()
        total += (distance < math.sin(SLICE_HALF_WIDTH)).sum(1)
    expected = len(views) * math.sin(SLICE_HALF_WIDTH)
    return total / expected


def sampling_factor(relative: Tensor) -> float:
    """The harmonic mean of how often directions "V" were seen: 1 for uniform views, 0 where a
    direction was never seen.

    By it the signal-to-noise ratio is lower than with uniform views. Baldwin & Lyumkis, Prog.
    Biophys. Mol. Biol. 150, 160 (2020).
    """
    if not bool((relative > 0).all()):
        return 0.0
    harmonic = 1 / (1 / relative).mean()
    return float(harmonic / relative.mean())


def _power(transform: Tensor) -> Tensor:
    return transform.real**2 + transform.imag**2


def _shell_and_bin(box: int) -> Tensor:
    """Number "D D D//2+1" of each component of rfftn: of its bin and shell, or one more for the
    corners.
    """
    full = torch.fft.fftfreq(box, 1 / box, dtype=torch.float64)
    half = torch.fft.rfftfreq(box, 1 / box, dtype=torch.float64)
    z, y, x = torch.meshgrid(full, full, half, indexing="ij")
    bin_of_component = bins(torch.stack([x, y, z], -1))
    shell = grids.shells(box, 3)[..., : box // 2 + 1]
    count = box // 2 + 1
    last = HEIGHT_BINS * AZIMUTH_BINS * count
    place = bin_of_component * count + shell
    return torch.where(shell < count, place, last)


def _sums(values: Tensor, place: Tensor, box: int) -> Tensor:
    """Sums "V D//2+1" of `values` "D D D//2+1" over bins and shells of the whole FFT."""
    count = box // 2 + 1
    multiplicity = values.new_full((count,), 2.0)
    multiplicity[0] = 1.0
    if box % 2 == 0:
        multiplicity[-1] = 1.0
    weighted = (values * multiplicity).flatten()
    bin_count = HEIGHT_BINS * AZIMUTH_BINS
    total = torch.bincount(place.flatten(), weighted, minlength=bin_count * count + 1)
    return total[:-1].reshape(bin_count, count)
