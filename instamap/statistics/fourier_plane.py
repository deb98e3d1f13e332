"""The half of an image's Fourier plane that tells all of it, and what its components weigh."""

import math

import torch
from torch import Tensor, nn

from instamap.fourier import aberrations
from instamap.geometry import grids
from instamap.scene import Views

NYQUIST_MARGIN = 1e-6  # components by which |k| must stay below D/2


class FourierPlane(nn.Module):
    """The components 0 < |k| < D/2 of half the Fourier plane of an image and the one at 0, "P" in
    all.

    points "P 2": (kx, ky), whole numbers. shell "P": rounded |k|. share "P": what to take of each
    when -k is added after: 1, at 0 one half. magnification "... 2 2": M of distorted images (see
    `Views.magnification`), of which only components with |M k| < D/2 are taken, the particle's own.
    """

    points: Tensor
    shell: Tensor
    share: Tensor
    _chosen: Tensor
    _kx: Tensor
    _ky: Tensor

    def __init__(
        self,
        box: int,
        dtype: torch.dtype = torch.float32,
        *,
        magnification: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.box = box
        k = grids.frequencies(box, 1 / box, dtype=torch.float64)
        kx = k[..., 0]
        ky = k[..., 1]
        radius = k.norm(dim=-1)
        reach = _largest_radius(k, magnification)
        inside = reach < box / 2 - NYQUIST_MARGIN
        half = (kx > 0) | (ky >= 0)
        chosen = inside & half
        index = chosen.flatten().nonzero()
        points = k[chosen].to(dtype)
        shell = radius[chosen].round()
        share = torch.where(shell == 0, 0.5, 1.0)
        buffers = {
            "points": points,
            "shell": shell.long(),
            "share": share.to(points),
            "_chosen": index[:, 0],
            "_kx": kx[0].clone(),
            "_ky": ky[:, 0].clone(),
        }
        for name, values in buffers.items():
            self.register_buffer(name, values, persistent=False)

    def __len__(self) -> int:
        return len(self.points)

    def select(self, values: Tensor) -> Tensor:
        """The components "B P" of "B D D//2+1" in rfft2 layout."""
        return values.flatten(1)[:, self._chosen]

    def particle_components(self, images: Tensor, views: Views, pixel_size: float) -> Tensor:
        """Fourier components "B P" of images "B D D" about the particle's centre, without what odd
        aberrations do to them.
        """
        origin = views.origin / pixel_size
        spectrum = self.transform(images, origin)
        modulation = aberrations.modulation(views.optics, self.box, pixel_size)
        if modulation is None:
            return spectrum
        return spectrum * self.select(modulation).conj()

    def transform(self, images: Tensor, origin: Tensor) -> Tensor:
        """Fourier components "B P" of images "B D D" about the place where the particle's centre
        is: -`origin` "B 2" (x, y in pixels) from pixel D // 2.
        """
        spectrum = torch.fft.rfft2(images)
        along_x, along_y = self.shift(origin)
        along_x = along_x.to(spectrum.dtype)
        along_y = along_y.to(spectrum.dtype)
        spectrum *= along_x[:, None, :]
        spectrum *= along_y[:, :, None]
        return self.select(spectrum)

    def shift(self, origin: Tensor) -> tuple[Tensor, Tensor]:
        """Factors "B D//2+1" and "B D" (complex, double precision) of the columns and rows of
        rfft2, after which `origin` "B 2" (x, y in pixels) is taken off and pixel D // 2 is the
        middle.
        """
        middle = self.box // 2
        centre = 2 * math.pi / self.box * (middle - origin.double())
        return _wave(centre[:, 0], self._kx), _wave(centre[:, 1], self._ky)

    @property
    def chosen(self) -> Tensor:
        """The places "P" of the components in the flat plane of rfft2."""
        return self._chosen

    def variance(self, noise_variance: Tensor) -> Tensor:
        """The variance "B P" of each component, for a `noise_variance` "B D//2+1" of pixels: D²
        σ².
        """
        variance = self.box**2 * noise_variance
        return variance[:, self.shell]

    def transfer(self, ctf: Tensor | None, pixel_size: float) -> Tensor:
        """What a component is of the map's slice: Δ C "B P" for a CTF "B D D//2+1", or Δ "1 P"."""
        if ctf is None:
            ones = torch.ones_like(self.share)
            return pixel_size * ones[None]
        return pixel_size * self.select(ctf)


def _largest_radius(k: Tensor, magnification: Tensor | None) -> Tensor:
    """The largest |k| and |M k| of components "* 2"."""
    radius = k.norm(dim=-1)
    if magnification is None:
        return radius
    matrices = magnification.reshape(-1, 2, 2).to(k).unique(dim=0)
    for matrix in matrices:
        true_radius = (k @ matrix.mT).norm(dim=-1)
        radius = torch.maximum(radius, true_radius)
    return radius


def _wave(position: Tensor, k: Tensor) -> Tensor:
    """e^{i position k} "B K", in float64: phases reach hundreds of turns, too many for float32."""
    phase = position[:, None] * k
    return torch.polar(torch.ones_like(phase), phase)
