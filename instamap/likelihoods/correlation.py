"""How well an image's pattern agrees with the prediction's, whatever its scale and offset: von
Mises-Fisher distributions.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from instamap.likelihoods.disc import Disc, DiscOptions
from instamap.likelihoods.white_noise import pixel_deviation, standard_normal
from instamap.parts import Likelihood
from instamap.plugin.options import option
from instamap.scene import Scene, Views

# In standard deviations of the noise: images of less contrast count as flat, so that a fit can
# begin with an empty map.
MIN_CONTRAST = 1e-4
CORRELATION_CELLS = 4096  # of the distribution of the correlation, when it is drawn from


class VonMisesFisher(Likelihood):
    """The observed image is whitened: ŷ = (y - mean) / norm, a direction in p = N - 1 dimensions,
    which is distributed about an axis: log p(ŷ | μ) = ⟨κ axis, ŷ⟩ - log Z_p(κ).

    Normalisation: Mardia & Jupp, Directional Statistics (2000), eq. 9.3.4.
    """

    Options: Any = DiscOptions
    sigma: Tensor

    def __init__(
        self,
        options: Any,
        scene: Scene,
        *,
        name: str,
    ) -> None:
        super().__init__(options, scene)
        self.disc = Disc(options.radius, scene)
        sigma = pixel_deviation(scene, name)
        self.register_buffer("sigma", sigma, persistent=False)

    @abstractmethod
    def axis(self, predicted: Tensor, views: Views) -> Tensor:
        """κ times the unit vector of the most probable image, "B N"."""

    def deviation(self, views: Views) -> Tensor:
        """σ "B 1" of the noise in a pixel of each image."""
        return self.sigma[views.group][:, None]

    def log_prob(
        self,
        predicted: Tensor,
        observed: Tensor,
        views: Views,
    ) -> Tensor:
        """log p "B": a density on the sphere of whitened images, in nats."""
        axis = self.axis(predicted, views)
        pattern = self.disc.centred(observed)
        direction = pattern / _length(pattern, self.deviation(views))
        agreement = (axis * direction).sum(1)
        squared = axis.square().sum(1)
        return agreement - log_normaliser(squared, self.disc.count - 1)

    def sample(
        self,
        predicted: Tensor,
        views: Views,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Images "B D D" whose pattern is drawn; beyond the disc they have white noise."""
        axis = self.axis(predicted, views)
        tiny = torch.finfo(axis.dtype).tiny
        concentration = axis.norm(dim=1, keepdim=True)
        towards = axis / concentration.clamp(min=tiny)
        across = _at_right_angles(towards, generator)
        correlation = _draw_correlation(concentration, self.disc.count - 1, generator)
        rest = (1 - correlation**2).sqrt()
        beside = rest * across / across.norm(dim=1, keepdim=True)
        direction = correlation * towards + beside
        sigma = self.deviation(views)
        pattern = direction * math.sqrt(self.disc.count) * sigma
        white = standard_normal(predicted.shape, predicted, generator)
        return self.disc.filled(pattern, white * sigma[..., None])


class HalfCorrelation(VonMisesFisher):
    """The observed image alone is whitened: ŷ = (y - mean) / norm, a direction in p = N - 1
    dimensions; then

    log p(ŷ | μ) = κ r - log Z_p(κ),   κ = √N ‖μ - mean‖ / σ,   κ r = √N ⟨ŷ, μ⟩ / σ:

    the correlation, and a cost of the prediction's norm, -½ ‖μ‖²/σ² where that is small, as it is
    for Gaussian noise. σ² is the variance of the noise. log p is a density on the sphere of
    whitened images, in nats; the scale and the offset of y play no part, those of μ do.
    """

    def __init__(self, options: DiscOptions, scene: Scene) -> None:
        super().__init__(options, scene, name="half-correlation")

    def axis(self, predicted: Tensor, views: Views) -> Tensor:
        """κ times the unit vector of the most probable image, "B N"."""
        pattern = self.disc.centred(predicted)
        scaled = math.sqrt(self.disc.count) * pattern
        return scaled / self.deviation(views)


class Correlation(VonMisesFisher):
    """Both images are whitened: log p(ŷ | μ) = κ r - log Z_p(κ) with the correlation r = ⟨ŷ, μ̂⟩
    and one κ = N √snr for all.

    Scale and offset of both y and μ play no part, so maps have an arbitrary scale. It is
    `HalfCorrelation` where all predictions have a norm of √(N snr) σ.
    """

    @dataclass(frozen=True)
    class Options(DiscOptions):
        snr: float = option(
            0.05, "variance of the signal in the images by that of the noise", low=1e-6, high=1e3
        )

    def __init__(self, options: Options, scene: Scene) -> None:
        super().__init__(options, scene, name="correlation")

    def axis(self, predicted: Tensor, views: Views) -> Tensor:
        """κ times the unit vector of the most probable image, "B N"."""
        pattern = self.disc.centred(predicted)
        concentration = self.disc.count * math.sqrt(self.options.snr)
        scaled = concentration * pattern
        return scaled / _length(pattern, self.deviation(views))


def _length(values: Tensor, sigma: Tensor) -> Tensor:
    """The norm "B 1" of "B N", but at least that of a contrast of MIN_CONTRAST."""
    flat = values.shape[1] * (MIN_CONTRAST * sigma) ** 2
    square = values.square().sum(1, keepdim=True)
    return (square + flat).sqrt()


def log_normaliser(square: Tensor, dimensions: int) -> Tensor:
    """log Z_p(κ) = log ∫ exp(κ r) over the unit sphere in p dimensions, of κ² "B": (2π)^ν+1 I_ν(κ)
    / κ^ν with ν = p/2 - 1.

    By the expansion of I_ν for large ν that is uniform in κ (NIST Handbook, 10.41.3), to a relative
    1e-7 from p = 60 on; smooth at κ = 0.
    """
    v = dimensions / 2 - 1
    root = (1 + square / v**2).sqrt()
    t = 1 / root
    first = (3 * t - 5 * t**3) / 24
    second = (81 * t**2 - 462 * t**4 + 385 * t**6) / 1152
    third = (30375 * t**3 - 369603 * t**5 + 765765 * t**7 - 425425 * t**9) / 414720
    correction = torch.log1p(first / v + second / v**2 + third / v**3)
    exponent = v * (root - torch.log1p(root) - math.log(v))
    leading = exponent - 0.5 * math.log(2 * math.pi * v) - 0.5 * root.log()
    log_bessel = leading + correction
    return (v + 1) * math.log(2 * math.pi) + log_bessel


def _at_right_angles(towards: Tensor, generator: torch.Generator | None) -> Tensor:
    """Normal vectors "B N" of mean zero, of which what lies along `towards` "B N" is taken away."""
    normal = standard_normal(towards.shape, towards, generator)
    centred = normal - normal.mean(1, keepdim=True)
    along = (centred * towards).sum(1, keepdim=True)
    return centred - along * towards


def _draw_correlation(
    concentration: Tensor,
    dimensions: int,
    generator: torch.Generator | None,
) -> Tensor:
    """r "B 1" with density ∝ exp(κ r) (1 - r²)^((p - 3)/2) for κ "B 1": from its cumulative sum,
    linear within a cell.
    """
    device = concentration.device
    edges = torch.linspace(
        -1,
        1,
        CORRELATION_CELLS + 1,
        dtype=torch.float64,
        device=device,
    )
    middle = 0.5 * (edges[1:] + edges[:-1])
    measure = 0.5 * (dimensions - 3) * torch.log1p(-(middle**2))
    weight = torch.softmax(concentration.double() * middle + measure, 1)
    below = torch.nn.functional.pad(weight.cumsum(1), (1, 0))
    uniform = torch.rand(
        concentration.shape,
        generator=generator,
        dtype=torch.float64,
        device=device,
    )
    drawn = uniform * below[:, -1:]
    found = torch.searchsorted(below, drawn, right=True) - 1
    cell = found.clamp(0, CORRELATION_CELLS - 1)
    excess = drawn - below.gather(1, cell)
    share = excess / weight.gather(1, cell)
    correlation = edges[cell] + share.clamp(0, 1) * (2 / CORRELATION_CELLS)
    return correlation.to(concentration.dtype)
