"""Projections of a map on a lattice, by the projection theorem: central slices, moved and
transformed back.
"""

import torch
from torch import Tensor, nn

from instamap.fourier.central_slices import Spectrum
from instamap.fourier.electrons import wavelength
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
        return self.of_spectrum(Spectrum(volume), views)

    def of_spectrum(self, transform: Spectrum, views: Views) -> Tensor:
        """Images "B D D" as `forward`, of a map whose transform is kept."""
        plane = transform.like(self.plane)
        in_box = plane * (self.box / self.frame)
        slices = self._slices(transform, views, in_box)
        return self.images(slices, views)

    def curved(self, volume: Tensor, views: Views, curvature: float) -> tuple[Tensor, Tensor]:
        """Images "B D D" in phase and in quadrature, of what the Ewald sphere reaches.

        With V± the map's components at Aᵀ(M k, ±λ|M k|²/2), for `curvature` 1, or the other way
        round for -1, these have the components ½(V+ + V-) and -½i (V+ - V-); an image is the first
        times the CTF plus the second times `ctf.quadrature_ctf`.
        """
        plane = self.plane.to(volume)
        in_box = plane * (self.box / self.frame)
        transform = Spectrum(volume)
        above = self._curved_slices(transform, views, in_box, curvature)
        below = self._curved_slices(transform, views, in_box, -curvature)
        in_phase = self.images(0.5 * (above + below), views)
        quadrature = self.images(-0.5j * (above - below), views)
        return in_phase, quadrature

    def images(self, slices: Tensor, views: Views) -> Tensor:
        """Images "B D D" of slices "B P" of a map's transform at the components `plane`."""
        plane = self.plane.to(slices.real)
        projected = slices * self.pixel_size
        moved = projected * self._shift(plane, views.origin)
        shape = (len(views), *self.inside.shape)
        spectrum = moved.new_zeros(shape)
        spectrum[:, self.inside] = moved
        size = (self.frame, self.frame)
        images = torch.fft.irfft2(spectrum, s=size)
        return grids.crop(images, self.box)

    def _slices(self, transform: Spectrum, views: Views, plane: Tensor) -> Tensor:
        """Slices "B P" at the components "P 2" in cycles per box; of distorted images, without
        those that lie beyond the map's.
        """
        if views.magnification is None:
            return transform.slices(views.frames, plane)
        parts = []
        order = []
        for matrix, rows in views.by_magnification():
            assert matrix is not None
            radius = (plane @ matrix.mT.to(plane)).norm(dim=1)
            parts.append(self._within_map(transform, views[rows].frames, plane, radius))
            order.append(rows)
        place = torch.argsort(torch.cat(order))
        return torch.cat(parts)[place]

    def _within_map(
        self, transform: Spectrum, frames: Tensor, points: Tensor, radius: Tensor
    ) -> Tensor:
        """Slices "B P" at `points` "P 2" or "P 3"; 0 at those whose `radius` "P" is beyond the
        map's components.
        """
        reached = radius < self.box / 2 - ROUNDING
        values = transform.slices(frames, points[reached])
        whole = values.new_zeros(len(frames), len(points))
        whole[:, reached] = values
        return whole

    def _curved_slices(
        self, transform: Spectrum, views: Views, plane: Tensor, curvature: float
    ) -> Tensor:
        """Slices "B P" over the components "P 2", on a sphere of radius 1/(λ · curvature)."""
        assert views.optics is not None, "without optics no wavelength is known"
        edge = self.box * self.pixel_size
        lengths = wavelength(views.optics.voltage).to(plane)
        parts = []
        order = []
        for matrix, group in views.by_magnification():
            true = plane if matrix is None else plane @ matrix.mT.to(plane)
            square = (true**2).sum(1)
            for length in lengths[group].unique():
                rows = group[lengths[group] == length]
                depth = 0.5 * curvature * length / edge * square
                points = torch.cat([true, depth[:, None]], 1)
                rotation = views.rotation[rows].to(plane)
                radius = points.norm(dim=1)
                parts.append(self._within_map(transform, rotation, points, radius))
                order.append(rows)
        place = torch.argsort(torch.cat(order))
        return torch.cat(parts)[place]

    def _shift(self, plane: Tensor, origin: Tensor) -> Tensor:
        """Phase factors "B P" that bring the particle's centre from pixel 0 to its place."""
        centre = self.frame // 2 - origin / self.pixel_size
        turns = plane @ centre.T / self.frame
        angle = -2 * torch.pi * turns
        return torch.polar(torch.ones_like(turns), angle).T
