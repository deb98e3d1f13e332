"""White Gaussian noise."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.errors import CompositionError
from instamap.geometry import grids
from instamap.parts import Likelihood
from instamap.plugin.options import Options, option
from instamap.scene import Scene, Views


class Gaussian(Likelihood):
    """log p(y | μ) = -½ Σ (y - μ)²/σ² - ½ D² log 2πσ², with one σ² for each optics group.

    Images y' = C y that were multiplied by their CTF need no division: up to a constant of the
    data, log p = Re⟨y', PV⟩/σ² - ½ |C PV|²/σ².
    """

    premultiplied = True
    quadratic = True

    @dataclass(frozen=True)
    class Options(Options):
        variance: float | None = option(
            None,
            "noise variance of a pixel; none means the estimate from the images' corners",
            low=1e-30,
        )

    def __init__(self, options: Options, scene: Scene):
        super().__init__(options, scene)
        if options.variance is None and scene.noise_variance is None:
            raise CompositionError(
                "likelihood 'gaussian' knows no noise level: the data gave none; set variance (-L"
                " variance=...)"
            )
        groups = 1 if scene.noise_variance is None else len(scene.noise_variance)
        variance = (
            torch.full((groups,), options.variance)
            if options.variance
            else _mean_over_components(scene.noise_variance, scene.box)
        )
        self.register_buffer("variance", variance)

    def _variance(self, views: Views) -> Tensor:
        return self.variance[views.group.clamp(max=len(self.variance) - 1)]

    def log_prob(self, predicted: Tensor, observed: Tensor, views: Views) -> Tensor:
        variance = self._variance(views)
        square = (observed - predicted).square().flatten(1)
        return -0.5 * square.sum(1) / variance - 0.5 * square.shape[1] * torch.log(
            2 * math.pi * variance
        )

    def log_prob_premultiplied(
        self, projection: Tensor, predicted: Tensor, observed: Tensor, views: Views
    ) -> Tensor:
        cross = (observed * projection).flatten(1).sum(1)
        norm = predicted.square().flatten(1).sum(1)
        return (cross - 0.5 * norm) / self._variance(views)

    def noise_variance(self, views: Views) -> Tensor:
        return self._variance(views)[:, None].expand(-1, self.scene.box // 2 + 1)

    def sample(
        self, predicted: Tensor, views: Views, *, generator: torch.Generator | None = None
    ) -> Tensor:
        noise = torch.randn(
            predicted.shape, generator=generator, dtype=predicted.dtype, device=predicted.device
        )
        return predicted + noise * self._variance(views).sqrt()[:, None, None]


def _mean_over_components(spectrum: Tensor, box: int) -> Tensor:
    """Variance of a pixel "G" for a spectrum "G D//2+1" per shell."""
    return spectrum[:, grids.noise_shells(box).flatten()].mean(1)
