"""Projections of a map on a lattice, by the projection theorem: central slices, moved and
transformed back.
"""

import torch
from torch import Tensor, nn

from instamap.fourier.central_slices import central_slices
from instamap.geometry import grids

# of the box: what a shift moves over an edge by up to an eighth of the box leaves, and does not
# come back opposite
FRAME = 1.25


class Projector(nn.Module):
    """P(u) = F⁻¹[ Δ · V̂(Aᵀ(k, 0)) e^{2πi k·origin} ] of maps V of `box` voxels of `pixel_size` Å.

    For a density without frequencies beyond Nyquist images err by at most 3e-4 of their largest
    pixel, typically 8e-5. The corners of the image's Fourier plane, beyond its inscribed circle,
    are left empty.
    """

    def __init__(self, box: int, pixel_size: float):
        super().__init__()
        self.box = box
        self.pixel_size = pixel_size
        self.frame = 2 * round(box * FRAME / 2) + box % 2
        k = grids.frequencies(self.frame, 1 / self.frame, dtype=torch.float64)
        self.register_buffer("known", k.norm(dim=-1) < self.frame / 2 - 1e-6, persistent=False)
        self.register_buffer(
            "plane", k[self.known], persistent=False
        )  # "P 2": (kx, ky) in cycles per frame

    def forward(self, volume: Tensor, rotation: Tensor, origin: Tensor) -> Tensor:
        """Images "B D D" [y, x] of `volume` "D D D" [z, y, x] at poses: rotation "B 3 3", origin "B
        2" in Å.

        Differentiable in the volume alone.
        """
        plane = self.plane.to(volume)
        slices = (
            central_slices(volume, rotation[:, :2], plane * (self.box / self.frame))
            * self.pixel_size
        )
        turns = (
            plane @ (self.frame // 2 - origin / self.pixel_size).T / self.frame
        )  # "P B", of the particle's centre
        slices = slices * torch.polar(torch.ones_like(turns), -2 * torch.pi * turns).T
        spectrum = slices.new_zeros(len(rotation), *self.known.shape)
        spectrum[:, self.known] = slices
        return grids.crop(torch.fft.irfft2(spectrum, s=(self.frame, self.frame)), self.box)
