"""White Gaussian noise."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.errors import CompositionError
from instamap.likelihoods.white_noise import pixel_variance, standard_normal
from instamap.parts import GaussianLikelihood
from instamap.plugin.options import Options as PartOptions
from instamap.plugin.options import option
from instamap.scene import Scene, Views


class Gaussian(GaussianLikelihood):
    """log p(y | μ) = -½ Σ (y - μ)²/σ² - ½ D² log 2πσ², with one σ² for each optics group.

    Images y' = C y that were multiplied by their CTF need no division: up to a constant of the
    data, log p = Re⟨y', PV⟩/σ² - ½ |C PV|²/σ².
    """

    @dataclass(frozen=True)
    class Options(PartOptions):
        variance: float | None = option(
            None,
            "noise variance of a pixel; none means the estimate from the images' corners",
            low=1e-30,
        )

    variance: Tensor

    def __init__(self, options: Options, scene: Scene) -> None:
        super().__init__(options, scene)
        self.register_buffer("variance", _variance(options.variance, scene))

    def _variance_of(self, views: Views) -> Tensor:
        """σ² "B" of the pixels of each image."""
        last = len(self.variance) - 1
        return self.variance[views.group.clamp(max=last)]

    def log_prob(
        self,
        predicted: Tensor,
        observed: Tensor,
        views: Views,
    ) -> Tensor:
        """log p "B": what the residuals leave."""
        variance = self._variance_of(views)
        square = (observed - predicted).square().flatten(1)
        pixels = square.shape[1]
        misfit = -0.5 * square.sum(1) / variance
        return misfit - 0.5 * pixels * torch.log(2 * math.pi * variance)

    def log_prob_premultiplied(
        self,
        projection: Tensor,
        predicted: Tensor,
        observed: Tensor,
        views: Views,
    ) -> Tensor:
        """log p "B" of CTF-multiplied `observed`, up to a constant of the data."""
        cross = (observed * projection).flatten(1).sum(1)
        norm = predicted.square().flatten(1).sum(1)
        return (cross - 0.5 * norm) / self._variance_of(views)

    def noise_variance(self, views: Views) -> Tensor:
        """σ² "B D//2+1", the same on every shell."""
        shells = self.scene.box // 2 + 1
        variance = self._variance_of(views)
        return variance[:, None].expand(-1, shells)

    def sample(
        self,
        predicted: Tensor,
        views: Views,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The prediction and white noise, "B D D"."""
        noise = standard_normal(predicted.shape, predicted, generator)
        deviation = self._variance_of(views).sqrt()
        return predicted + noise * deviation[:, None, None]


def _variance(chosen: float | None, scene: Scene) -> Tensor:
    """Variance of a pixel "G" in each optics group: chosen, or the spectrum's mean."""
    spectrum = scene.noise_variance
    if chosen:
        groups = 1 if spectrum is None else len(spectrum)
        return torch.full((groups,), chosen)
    if spectrum is None:
        raise CompositionError(
            "likelihood 'gaussian' knows no noise level: the data gave none; set variance (-L"
            " variance=...)"
        )
    return pixel_variance(spectrum, scene.box)
