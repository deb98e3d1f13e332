"""The level of the noise in a pixel, and draws of white noise."""

import torch
from torch import Tensor

from instamap.errors import CompositionError
from instamap.geometry import grids
from instamap.scene import Scene


def pixel_variance(spectrum: Tensor, box: int) -> Tensor:
    """Variance "G" of a pixel's noise for a spectrum "G D//2+1" per shell."""
    shell = grids.noise_shells(box).flatten()
    components = spectrum[:, shell]
    return components.mean(1)


def pixel_deviation(scene: Scene, likelihood: str) -> Tensor:
    """Standard deviation "G" of a pixel's noise in each optics group. Raises CompositionError where
    the data told none.
    """
    if scene.noise_variance is None:
        raise CompositionError(
            f"likelihood '{likelihood}' knows no noise level: the data gave none; choose"
            " --likelihood gaussian"
        )
    return pixel_variance(scene.noise_variance, scene.box).sqrt()


def standard_normal(
    shape: tuple[int, ...],
    like: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """Independent numbers "*" of mean 0 and variance 1, of the dtype and device of `like`."""
    return torch.randn(
        shape,
        generator=generator,
        dtype=like.dtype,
        device=like.device,
    )
