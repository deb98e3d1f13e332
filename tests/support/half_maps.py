"""Half maps of which it is known what they share: blobs, or white noise that is filtered, and noise
of their own.
"""

import math

import torch
from torch import Tensor

from instamap.geometry import grids
from instamap.maps import sharpening


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def white(box: int, seed: int) -> Tensor:
    """White noise "D D D" of variance one."""
    return torch.randn(box, box, box, generator=seeded(seed), dtype=torch.float64)


def low_passed(volume: Tensor, frequency: float, pixel_size: float) -> Tensor:
    """The map without what is beyond `frequency` (1/Å)."""
    box = len(volume)
    radius = sharpening.component_radius(box) / (box * pixel_size)
    transform = torch.fft.rfftn(volume) * (radius <= frequency)
    return torch.fft.irfftn(transform, s=volume.shape)


def halves(truth: Tensor, noise: float, seed: int = 1000) -> tuple[Tensor, Tensor]:
    """Two half maps: the truth, and white noise of a standard deviation of `noise` in each."""
    box = len(truth)
    return truth + noise * white(box, seed), truth + noise * white(box, seed + 1)


def particle(box: int, pixel_size: float, b_factor: float, seed: int = 500) -> Tensor:
    """A ball of points of like strength, as atoms are, with a B-factor (Å²)."""
    generator = seeded(seed)
    spread = box * pixel_size / 8
    centre = spread * torch.randn(400, 3, generator=generator, dtype=torch.float64)
    centre = centre[centre.norm(dim=1) < 2 * spread]
    axis = grids.axis(box, pixel_size, dtype=torch.float64)
    sigma = math.sqrt(b_factor / (8 * math.pi**2))
    x, y, z = (
        torch.exp(-0.5 * ((axis - along[:, None]) / sigma).square()) for along in centre.unbind(1)
    )
    return torch.einsum("pz,py,px->zyx", z, y, x)
