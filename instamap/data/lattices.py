"""Images of several boxes and pixel sizes, brought to one lattice."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.geometry import grids

ROUNDING = 1e-6  # of pixels and Fourier components, that are whole or at Nyquist but for this


@dataclass(frozen=True)
class Lattice:
    """Pixels of images: `box` of them along an edge, of `pixel_size` Å, the origin at box // 2."""

    box: int
    pixel_size: float

    def __str__(self) -> str:
        return f"{self.box} px of {self.pixel_size:g} Å"


def common(lattices: Sequence[Lattice]) -> Lattice:
    """The lattice on which all images are known everywhere: the coarsest pixels, in the largest
    even box that lies within all of theirs.

    Nothing is made up then: with finer pixels some images would have Fourier components without
    noise, with a larger box pixels without value.
    """
    first = lattices[0]
    if all(lattice == first for lattice in lattices):
        return first
    pixel_size = max(lattice.pixel_size for lattice in lattices)
    boxes = {lattice.box for lattice in lattices if lattice.pixel_size == pixel_size}
    edge = min(lattice.box * lattice.pixel_size for lattice in lattices)
    box = math.floor(edge / pixel_size + ROUNDING)
    if box not in boxes:
        box -= box % 2
    return Lattice(box, pixel_size)


class Resampler:
    """Images "B D D" [y, x] on the lattice `before` to those on `after`, a coarser or equal one
    that lies within it: of the same values at the new pixels' centres, without the Fourier
    components beyond the new Nyquist.

    The origin stays the origin, at D // 2, whatever the ratio of the pixels: images are summed as
    the Fourier series that they are, at positions in Å.
    """

    def __init__(self, before: Lattice, after: Lattice) -> None:
        self._box = after.box
        self._matrix = None
        if before.pixel_size != after.pixel_size:
            self._matrix = series_matrix(before, after)

    def __call__(self, images: Tensor) -> Tensor:
        """In the images' dtype."""
        if self._matrix is None:
            return grids.crop(images, self._box)
        # one product an image: its value depends on no other image
        matrix = self._matrix.to(images).expand(len(images), -1, -1)
        rows = torch.bmm(matrix, images)
        return torch.bmm(rows, matrix.mT)


def series_matrix(before: Lattice, after: Lattice) -> Tensor:
    """The matrix M "d D" (float64) with which M I Mᵀ is image I "D D" at the pixels of `after`.

    M[m, n] = 1/D Σ_k w(k) cos(2πk (x_m - x_n) / D) over the components |k| <= D/2 that are not
    beyond the Nyquist of `after`, with positions x in pixels of `before`, and w = 1 but for ½ at a
    Nyquist: that is real, and `preprocess.fourier_crop` where the edges are equal.
    """
    ratio = after.pixel_size / before.pixel_size
    nyquist = 0.5 * before.box / ratio  # in components of the images
    k = torch.arange(-(before.box // 2), before.box // 2 + 1, dtype=torch.float64)
    k = k[k.abs() <= nyquist + ROUNDING]
    at_nyquist = ((k.abs() - nyquist).abs() < ROUNDING) | (2 * k.abs() == before.box)
    weight = torch.where(at_nyquist, 0.5, 1.0)
    old = grids.axis(before.box, 1.0, dtype=torch.float64)
    new = grids.axis(after.box, ratio, dtype=torch.float64)
    distance = new[:, None] - old
    phase = (2 * math.pi / before.box) * distance[..., None] * k
    return (phase.cos() * weight).sum(-1) / before.box
