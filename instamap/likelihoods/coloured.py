"""Gaussian noise with a power spectrum."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from instamap.errors import CompositionError
from instamap.geometry import grids
from instamap.parts import Likelihood
from instamap.plugin.options import Options, option
from instamap.scene import Scene, Views


class Coloured(Likelihood):
    """log p(y | μ) = -½ Σ_k |Y - M|² / (D² σ²(k)) - ½ Σ_k log 2πσ²(k), with a σ² for each optics
    group and Fourier shell.

    White noise is the special case of equal σ². For images that were multiplied by their CTF see
    `Gaussian`.
    """

    premultiplied = True
    quadratic = True

    @dataclass(frozen=True)
    class Options(Options):
        noise: Literal["residuals", "corners"] = option(
            "residuals",
            "where the spectrum is measured: on what a first map leaves of the images, or in their"
            " corners",
        )

    def __init__(self, options: Options, scene: Scene):
        super().__init__(options, scene)
        self.refines = options.noise == "residuals"
        if scene.noise_variance is None:
            raise CompositionError(
                "likelihood 'coloured' knows no noise spectrum: the data gave none; choose"
                " --likelihood gaussian"
            )
        self.register_buffer("variance", scene.noise_variance.clone())
        self.register_buffer("shell", grids.noise_shells(scene.box), persistent=False)

    def noise_variance(self, views: Views) -> Tensor:
        return self.variance[views.group]

    def _components(self, views: Views) -> Tensor:
        """σ² of each component of the full plane, "B D D"."""
        return self.variance[views.group][:, self.shell]

    def log_prob(self, predicted: Tensor, observed: Tensor, views: Views) -> Tensor:
        variance = self._components(views)
        power = torch.fft.fft2(observed - predicted).abs().square() / predicted[0].numel()
        return -0.5 * (power / variance + torch.log(2 * math.pi * variance)).flatten(1).sum(1)

    def log_prob_premultiplied(
        self, projection: Tensor, predicted: Tensor, observed: Tensor, views: Views
    ) -> Tensor:
        data, field, image = (torch.fft.fft2(x) for x in (observed, projection, predicted))
        terms = (data * field.conj()).real - 0.5 * image.abs().square()
        return (terms / self._components(views)).flatten(1).sum(1) / predicted[0].numel()

    def sample(
        self, predicted: Tensor, views: Views, *, generator: torch.Generator | None = None
    ) -> Tensor:
        noise = torch.randn(
            predicted.shape, generator=generator, dtype=predicted.dtype, device=predicted.device
        )
        return (
            predicted + torch.fft.ifft2(torch.fft.fft2(noise) * self._components(views).sqrt()).real
        )
