"""Gaussian noise with a power spectrum."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from instamap.errors import CompositionError
from instamap.geometry import grids
from instamap.likelihoods.white_noise import standard_normal
from instamap.parts import GaussianLikelihood, RefinesNoise
from instamap.plugin.options import Options as PartOptions
from instamap.plugin.options import option
from instamap.scene import Scene, Views


class Coloured(GaussianLikelihood, RefinesNoise):
    """log p(y | μ) = -½ Σ_k |Y - M|² / (D² σ²(k)) - ½ Σ_k log 2πσ²(k), with a σ² for each optics
    group and Fourier shell.

    White noise is the special case of equal σ². For images that were multiplied by their CTF see
    `Gaussian`.
    """

    @dataclass(frozen=True)
    class Options(PartOptions):
        noise: Literal["residuals", "corners"] = option(
            "residuals",
            "where the spectrum is measured: on what a first map leaves of the images, or in their"
            " corners",
        )

    @classmethod
    def refines_noise(cls, options: Options) -> bool:
        """Whether the spectrum is measured again, on what a first map leaves of the images."""
        return options.noise == "residuals"

    variance: Tensor
    shell: Tensor

    def __init__(self, options: Options, scene: Scene) -> None:
        super().__init__(options, scene)
        if scene.noise_variance is None:
            raise CompositionError(
                "likelihood 'coloured' knows no noise spectrum: the data gave none; choose"
                " --likelihood gaussian"
            )
        shell = grids.noise_shells(scene.box)
        self.register_buffer("variance", scene.noise_variance.clone())
        self.register_buffer("shell", shell, persistent=False)

    def noise_variance(self, views: Views) -> Tensor:
        """σ² "B D//2+1" per Fourier shell."""
        return self.variance[views.group]

    def _components(self, views: Views) -> Tensor:
        """σ² of each component of the full plane, "B D D"."""
        spectrum = self.variance[views.group]
        return spectrum[:, self.shell]

    def log_prob(
        self,
        predicted: Tensor,
        observed: Tensor,
        views: Views,
    ) -> Tensor:
        """log p "B": what the residuals' Fourier components leave."""
        variance = self._components(views)
        pixels = predicted[0].numel()
        residual = torch.fft.fft2(observed - predicted)
        power = residual.abs().square() / pixels
        terms = power / variance + torch.log(2 * math.pi * variance)
        return -0.5 * terms.flatten(1).sum(1)

    def log_prob_premultiplied(
        self,
        projection: Tensor,
        predicted: Tensor,
        observed: Tensor,
        views: Views,
    ) -> Tensor:
        """log p "B" of CTF-multiplied `observed`, up to a constant of the data."""
        data = torch.fft.fft2(observed)
        field = torch.fft.fft2(projection)
        image = torch.fft.fft2(predicted)
        cross = (data * field.conj()).real
        terms = cross - 0.5 * image.abs().square()
        weighted = terms / self._components(views)
        pixels = predicted[0].numel()
        return weighted.flatten(1).sum(1) / pixels

    def sample(
        self,
        predicted: Tensor,
        views: Views,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The prediction and noise of the spectrum, "B D D"."""
        white = standard_normal(predicted.shape, predicted, generator)
        deviation = self._components(views).sqrt()
        coloured = torch.fft.fft2(white) * deviation
        noise = torch.fft.ifft2(coloured).real
        return predicted + noise
