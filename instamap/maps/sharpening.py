"""Sharpening: what B-factor a map's amplitudes have lost, and the map with them given back, each
Fourier shell weighted by what half maps say of it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.geometry import grids

MIN_WEIGHTED_FSC = 1e-4
"""FSC of the first shell from which on nothing is left of a weighted map."""

MIN_GUINIER_SHELLS = 3
"""Shells, at least, through which a line is fitted."""

LOW_PASS_EDGE = 2.0
"""Shells over which a low-pass filter falls off."""


@dataclass(frozen=True)
class GuinierFit:
    """The line ln |F| = intercept + slope s² through the shells from `low` to `high` Å.

    slope: Å². correlation: of both sides over those shells. Rosenthal & Henderson, J. Mol. Biol.
    333, 721 (2003).
    """

    slope: float
    intercept: float
    correlation: float
    low: float
    high: float

    @property
    def b_factor(self) -> float:
        """The B-factor in Å² that undoes the fall: 4 slope, since exp(-B s²/4) is to be one."""
        return 4 * self.slope


def mean_amplitudes(volume: Tensor) -> Tensor:
    """Mean |F| "D//2+1" over the components of each Fourier shell of a map "D D D".

    F is the discrete Fourier transform divided by D³.
    """
    box = len(volume)
    transform = torch.fft.fftn(volume.double())
    amplitude = transform.abs().flatten() / box**3
    shell = grids.shells(box, 3).flatten()
    size = torch.bincount(shell)
    total = torch.bincount(shell, amplitude)
    mean = total / size.clamp(min=1)
    return mean[: box // 2 + 1]


def fit_guinier(
    amplitude: Tensor,
    box: int,
    pixel_size: float,
    *,
    low: float = 10.0,
    high: float = 0.0,
) -> GuinierFit | None:
    """The straight line through ln `amplitude` "D//2+1" over s², of the shells from `low` to `high`
    Å that are not empty.

    None where they are fewer than `MIN_GUINIER_SHELLS`.
    """
    shell = torch.arange(len(amplitude), dtype=torch.float64)
    frequency = shell / (box * pixel_size)
    chosen = (frequency >= 1 / low) & (amplitude > 0)
    if high > 0:
        chosen &= frequency <= 1 / high
    if int(chosen.sum()) < MIN_GUINIER_SHELLS:
        return None
    square = frequency[chosen].square()
    logarithm = amplitude[chosen].log()
    x = square - square.mean()
    y = logarithm - logarithm.mean()
    slope = float((x * y).sum() / x.square().sum())
    intercept = float(logarithm.mean()) - slope * float(square.mean())
    norm = (x.square().sum() * y.square().sum()).sqrt()
    correlation = float((x * y).sum() / norm) if norm > 0 else 0.0
    return GuinierFit(slope, intercept, correlation, low, high)


def fsc_weights(curve: Tensor) -> Tensor:
    """√(2 FSC / (1 + FSC)) "D//2+1" of half maps' FSC: the correlation of their mean with the
    truth.

    0 from the first shell on whose FSC is below `MIN_WEIGHTED_FSC`. Rosenthal & Henderson (2003),
    equation 16.
    """
    alive = (curve >= MIN_WEIGHTED_FSC).long().cumprod(0)
    positive = curve.clamp(min=0)
    weight = (2 * positive / (1 + positive)).sqrt()
    return weight * alive


def sharpen(
    volume: Tensor,
    pixel_size: float,
    b_factor: float,
    *,
    weights: Tensor | None = None,
    cutoff: float | None = None,
) -> Tensor:
    """The map "D D D" times exp(-B s²/4) in Fourier space, in float64, up to Nyquist.

    b_factor: Å², negative to sharpen. weights "D//2+1": of each shell. cutoff: Å, beyond which
    nothing is left (`low_pass`).
    """
    box = len(volume)
    radius = component_radius(box)
    square = (radius / (box * pixel_size)).square()
    factor = torch.exp(-b_factor / 4 * square)
    factor = torch.where(radius <= box / 2, factor, 0.0)
    if weights is not None:
        factor = factor * _of_shells(weights, radius)
    if cutoff is not None:
        factor = factor * low_pass_filter(radius, box * pixel_size / cutoff)
    transform = torch.fft.rfftn(volume.double())
    return torch.fft.irfftn(transform * factor, s=volume.shape)


def low_pass(volume: Tensor, pixel_size: float, cutoff: float) -> Tensor:
    """The map "D D D" without what is finer than `cutoff` Å, in float64."""
    box = len(volume)
    radius = component_radius(box)
    factor = low_pass_filter(radius, box * pixel_size / cutoff)
    transform = torch.fft.rfftn(volume.double())
    return torch.fft.irfftn(transform * factor, s=volume.shape)


def low_pass_filter(radius: Tensor, cutoff: float) -> Tensor:
    """1 up to a shell before the whole one nearest to `cutoff`, 0 from a shell behind it on, half
    a cosine in between.

    radius "*": of components, in shells.
    """
    start = max(0.0, round(cutoff) - LOW_PASS_EDGE / 2)
    phase = ((radius - start) / LOW_PASS_EDGE).clamp(0, 1)
    wave = torch.cos(math.pi * phase)
    return 0.5 + 0.5 * wave


def component_radius(box: int) -> Tensor:
    """Radius "D D D//2+1" in shells of each component of rfftn, in float64."""
    full = torch.fft.fftfreq(box, 1 / box, dtype=torch.float64)
    half = torch.fft.rfftfreq(box, 1 / box, dtype=torch.float64)
    square_z = full[:, None, None].square()
    square_y = full[:, None].square()
    square = square_z + square_y + half.square()
    return square.sqrt()


def _of_shells(values: Tensor, radius: Tensor) -> Tensor:
    """The value of the shell that each component is in; 0 beyond the last."""
    shell = radius.round().long()
    padded = torch.cat([values.double(), values.new_zeros(1).double()])
    beyond = len(values)
    return padded[shell.clamp(max=beyond)]
