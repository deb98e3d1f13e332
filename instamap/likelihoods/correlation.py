"""How well an image's pattern agrees with the prediction's, whatever its scale and offset: von
Mises-Fisher distributions.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.likelihoods.disc import Disc, DiscOptions, level
from instamap.parts import Likelihood
from instamap.plugin.options import option
from instamap.scene import Scene, Views

# of the noise's standard deviation: images of less contrast count as flat, so that a fit can begin
# with an empty map
TINY = 1e-4
CELLS = 4096  # of the distribution of the correlation, when it is drawn from


class HalfCorrelation(Likelihood):
    """The observed image alone is whitened: ŷ = (y - mean) / norm, a direction in p = N - 1
    dimensions; then

    log p(ŷ | μ) = κ r - log Z_p(κ),   κ = √N ‖μ - mean‖ / σ,   κ r = √N ⟨ŷ, μ⟩ / σ:

    the correlation, and a cost of the prediction's norm, -½ ‖μ‖²/σ² where that is small, as it is
    for Gaussian noise. σ² is the variance of the noise. log p is a density on the sphere of
    whitened images, in nats; the scale and the offset of y play no part, those of μ do.
    Normalisation: Mardia & Jupp, Directional Statistics (2000), eq. 9.3.4.
    """

    Options = DiscOptions
    name = "half-correlation"

    def __init__(self, options: DiscOptions, scene: Scene):
        super().__init__(options, scene)
        self.disc = Disc(options.radius, scene)
        self.register_buffer("sigma", level(scene, self.name), persistent=False)

    def _sigma(self, views: Views) -> Tensor:
        return self.sigma[views.group][:, None]

    def _axis(self, predicted: Tensor, views: Views) -> Tensor:
        """κ times the unit vector of the most probable image, "B N"."""
        return math.sqrt(self.disc.count) * self.disc.centred(predicted) / self._sigma(views)

    def log_prob(self, predicted: Tensor, observed: Tensor, views: Views) -> Tensor:
        axis = self._axis(predicted, views)
        seen = self.disc.centred(observed)
        seen = seen / _length(seen, self._sigma(views))
        return (axis * seen).sum(1) - log_normaliser(axis.square().sum(1), self.disc.count - 1)

    def sample(
        self, predicted: Tensor, views: Views, *, generator: torch.Generator | None = None
    ) -> Tensor:
        def normal(like):
            return torch.randn(
                like.shape, generator=generator, dtype=like.dtype, device=like.device
            )

        axis = self._axis(predicted, views)
        concentration = axis.norm(dim=1, keepdim=True)
        towards = axis / concentration.clamp(min=torch.finfo(axis.dtype).tiny)
        other = normal(axis)
        other = other - other.mean(1, keepdim=True)
        other = other - (other * towards).sum(1, keepdim=True) * towards
        r = _draw_correlation(concentration, self.disc.count - 1, generator)
        direction = r * towards + (1 - r**2).sqrt() * other / other.norm(dim=1, keepdim=True)
        sigma = self._sigma(views)
        return self.disc.filled(
            direction * math.sqrt(self.disc.count) * sigma, normal(predicted) * sigma[..., None]
        )


class Correlation(HalfCorrelation):
    """Both images are whitened: log p(ŷ | μ) = κ r - log Z_p(κ) with the correlation r = ⟨ŷ, μ̂⟩
    and one κ = N √snr for all.

    Scale and offset of both y and μ play no part, so maps have an arbitrary scale. It is
    `HalfCorrelation` where all predictions have a norm of √(N snr) σ.
    """

    name = "correlation"

    @dataclass(frozen=True)
    class Options(DiscOptions):
        snr: float = option(
            0.05, "variance of the signal in the images by that of the noise", low=1e-6, high=1e3
        )

    def _axis(self, predicted: Tensor, views: Views) -> Tensor:
        pattern = self.disc.centred(predicted)
        return (
            self.disc.count
            * math.sqrt(self.options.snr)
            * pattern
            / _length(pattern, self._sigma(views))
        )


def _length(values: Tensor, sigma: Tensor) -> Tensor:
    """The norm "B 1" of "B N", but at least that of a contrast of TINY."""
    return (values.square().sum(1, keepdim=True) + values.shape[1] * (TINY * sigma) ** 2).sqrt()


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
    series = torch.log1p(first / v + second / v**2 + third / v**3)
    bessel = (
        v * (root - torch.log1p(root) - math.log(v))
        - 0.5 * math.log(2 * math.pi * v)
        - 0.5 * root.log()
        + series
    )
    return (v + 1) * math.log(2 * math.pi) + bessel


def _draw_correlation(
    concentration: Tensor, dimensions: int, generator: torch.Generator | None
) -> Tensor:
    """r "B 1" with density ∝ exp(κ r) (1 - r²)^((p - 3)/2) for κ "B 1": from its cumulative sum,
    linear within a cell.
    """
    edges = torch.linspace(-1, 1, CELLS + 1, dtype=torch.float64, device=concentration.device)
    middle = 0.5 * (edges[1:] + edges[:-1])
    weight = torch.softmax(
        concentration.double() * middle + 0.5 * (dimensions - 3) * torch.log1p(-(middle**2)), 1
    )
    below = torch.nn.functional.pad(weight.cumsum(1), (1, 0))
    draw = (
        torch.rand(
            concentration.shape,
            generator=generator,
            dtype=torch.float64,
            device=concentration.device,
        )
        * below[:, -1:]
    )
    cell = (torch.searchsorted(below, draw, right=True) - 1).clamp(0, CELLS - 1)
    share = (draw - below.gather(1, cell)) / weight.gather(1, cell)
    return (edges[cell] + share.clamp(0, 1) * (2 / CELLS)).to(concentration.dtype)
