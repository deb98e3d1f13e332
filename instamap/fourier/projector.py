"""Projections of a map on a lattice, by the projection theorem: central slices, moved and
transformed back.
"""

import torch
from torch import Tensor, nn

from instamap.fourier.central_slices import Spectrum
from instamap.geometry import grids
from instamap.scene import Views

# Edge of the frame in boxes: what a shift moves over an edge by up to an eighth of the box leaves,
# and does not come back opposite.
FRAME_EDGE = 1.25
ROUNDING = 1e-6  # components: a circle of this much less holds no component at Nyquist


class Projector(nn.Module):
    """P(u) = F⁻¹[ Δ · V̂(Aᵀ(k, 0)) e^{2πi k·origin} ] of maps V of `box` voxels of `pixel_size` Å.

    For a density without frequencies beyond Nyquist images err by at most 3e-4 of their largest
    pixel, typically 8e-5. The corners of the image's Fourier plane, beyond its inscribed circle,
    are left empty.
    """

    inside: Tensor
    plane: Tensor

    def __init__(self, box: int, pixel_size: float) -> None:
        super().__init__()
        self.box = box
        self.pixel_size = pixel_size
        edge = box * FRAME_EDGE
        self.frame = 2 * round(edge / 2) + box % 2
        k = grids.frequencies(
            self.frame,
            1 / self.frame,
            dtype=torch.float64,
        )
        radius = k.norm(dim=-1)
        inside = radius < self.frame / 2 - ROUNDING
        # "P 2": (kx, ky) in cycles per frame
        plane = k[inside]
        self.register_buffer("inside", inside, persistent=False)
        self.register_buffer("plane", plane, persistent=False)

    def forward(
        self,
        volume: Tensor,
        views: Views,
    ) -> Tensor:
        """Images "B D D" [y, x] of `volume` "D D D" [z, y, x] at the poses of `views`, distorted as
        these are, without contrast transfer.

        Differentiable in the volume alone.
        """
        plane = self.plane.to(volume)
        in_box = plane * (self.box / self.frame)
        slices = self._slices(volume, views, in_box)
        projected = slices * self.pixel_size
        moved = projected * self._shift(plane, views.origin)
        shape = (len(views), *self.inside.shape)
        spectrum = moved.new_zeros(shape)
        spectrum[:, self.inside] = moved
        size = (self.frame, self.frame)
        images = torch.fft.irfft2(spectrum, s=size)
        return grids.crop(images, self.box)

    def _slices(self, volume: Tensor, views: Views, plane: Tensor) -> Tensor:
        """Slices "B P" at the components "P 2" in cycles per box; of distorted images, without
        those that lie beyond the map's.
        """
        transform = Spectrum(volume)
        if views.magnification is None:
            return transform.slices(views.frames, plane)
        parts = []
        order = []
        for matrix, rows in views.by_magnification():
            assert matrix is not None
            radius = (plane @ matrix.mT.to(plane)).norm(dim=1)
            reached = radius < self.box / 2 - ROUNDING
            values = transform.slices(views[rows].frames, plane[reached])
            whole = values.new_zeros(len(rows), len(plane))
            whole[:, reached] = values
            parts.append(whole)
            order.append(rows)
        place = torch.argsort(torch.cat(order))
        return torch.cat(parts)[place]

    def _shift(self, plane: Tensor, origin: Tensor) -> Tensor:
        """Phase factors "B P" that bring the particle's centre from pixel 0 to its place."""
        centre = self.frame // 2 - origin / self.pixel_size
        turns = plane @ centre.T / self.frame
        angle = -2 * torch.pi * turns
        return torch.polar(torch.ones_like(turns), angle).T
