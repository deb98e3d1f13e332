"""The half of an image's Fourier plane that tells all of it, and what its components weigh."""

import math

import torch
from torch import Tensor, nn

from instamap.geometry import grids

NYQUIST_MARGIN = 1e-6  # components by which |k| must stay below D/2


class FourierPlane(nn.Module):
    """The components 0 < |k| < D/2 of half the Fourier plane of an image and the one at 0, "P" in
    all.

    points "P 2": (kx, ky), whole numbers. shell "P": rounded |k|. share "P": what to take of each
    when -k is added after: 1, at 0 one half.
    """

    points: Tensor
    shell: Tensor
    share: Tensor
    _chosen: Tensor
    _kx: Tensor
    _ky: Tensor

    def __init__(self, box: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.box = box
        k = grids.frequencies(box, 1 / box, dtype=torch.float64)
        radius = k.norm(dim=-1)
        half = (k[..., 0] > 0) | (k[..., 1] >= 0)
        inside = radius < box / 2 - NYQUIST_MARGIN
        chosen = (inside & half).flatten().nonzero()[:, 0]
        points = k.flatten(0, 1).to(dtype)[chosen]
        shell = radius.round().long().flatten()[chosen]
        share = torch.where(shell == 0, 0.5, 1.0).to(points)
        self.register_buffer("points", points, persistent=False)
        self.register_buffer("shell", shell, persistent=False)
        self.register_buffer("share", share, persistent=False)
        self.register_buffer("_chosen", chosen, persistent=False)
        self.register_buffer("_kx", k[0, :, 0].clone(), persistent=False)
        self.register_buffer("_ky", k[:, 0, 1].clone(), persistent=False)

    def __len__(self) -> int:
        return len(self.points)

    def select(self, values: Tensor) -> Tensor:
        """The components "B P" of "B D D//2+1" in rfft2 layout."""
        return values.flatten(1)[:, self._chosen]

    def transform(self, images: Tensor, origin: Tensor) -> Tensor:
        """Fourier components "B P" of images "B D D" about the place where the particle's centre
        is: -`origin` "B 2" (x, y in pixels) from pixel D // 2.
        """
        centre = 2 * math.pi / self.box * (self.box // 2 - origin.double())
        spectrum = torch.fft.rfft2(images)
        spectrum *= _wave(centre[:, 0, None] * self._kx).to(spectrum.dtype).unsqueeze(1)
        spectrum *= _wave(centre[:, 1, None] * self._ky).to(spectrum.dtype).unsqueeze(2)
        return self.select(spectrum)

    def variance(self, noise_variance: Tensor) -> Tensor:
        """The variance "B P" of each component, for a `noise_variance` "B D//2+1" of pixels: D²
        σ².
        """
        return (self.box**2 * noise_variance)[:, self.shell]

    def transfer(self, ctf: Tensor | None, pixel_size: float) -> Tensor:
        """What a component is of the map's slice: Δ C "B P" for a CTF "B D D//2+1", or Δ "1 P"."""
        if ctf is None:
            return pixel_size * torch.ones_like(self.share)[None]
        return pixel_size * self.select(ctf)


def _wave(phase: Tensor) -> Tensor:
    """e^{i phase}, in the phase's precision: hundreds of turns are too many for float32."""
    return torch.polar(torch.ones_like(phase), phase)
