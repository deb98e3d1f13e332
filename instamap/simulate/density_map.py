"""A map as a specimen: fitted to the wanted lattice and projected by the projection theorem."""

import torch
from torch import Tensor

from instamap.data.preprocess import fourier_crop
from instamap.errors import OptionError
from instamap.fourier.central_slices import Spectrum
from instamap.fourier.projector import Projector
from instamap.scene import Views
from instamap.threads import single_thread


class DensityMap:
    """A map "M M M" [z, y, x] of voxels of `size` Å on a lattice of `box` pixels of `pixel_size` Å.

    Each is that of the map if None. It is surrounded with zeros, or its middle kept, and then
    scaled down by Fourier cropping. Raises OptionError where pixels are finer than voxels, or the
    box's edge is no whole number of voxels.
    """

    def __init__(
        self,
        volume: Tensor,
        size: float,
        box: int | None = None,
        pixel_size: float | None = None,
    ) -> None:
        self.pixel_size = size if pixel_size is None else pixel_size
        if box is None:
            box = max(1, round(len(volume) * size / self.pixel_size))
        self.box = box
        extent = self.box * self.pixel_size
        voxels = round(extent / size)
        if abs(voxels * size - extent) > 1e-3 * size or voxels < self.box:
            raise OptionError(
                f"{self.box} pixels of {self.pixel_size:g} Å cannot be made of the map's voxels of"
                f" {size:g} Å; leave out --box and --pixel, or choose pixels that are no finer,"
                " with an edge that is a whole number of voxels"
            )
        fitted = _pad_or_crop(volume, voxels)
        self._volume = _fourier_cropped(fitted, self.box)
        self._projector = Projector(self.box, self.pixel_size)
        with single_thread():
            self._spectrum = Spectrum(self._volume, self.box / 2)

    def project(self, rotation: Tensor, origin: Tensor) -> Tensor:
        """Projections "B D D" [y, x] (float32) at poses: rotation "B 3 3", origin "B 2" in Å."""
        with torch.no_grad():
            views = Views.of(rotation.float(), origin.float())
            return self._projector.of_spectrum(self._spectrum, views)

    def density(self) -> Tensor:
        """The map "D D D" [z, y, x] (float32)."""
        return self._volume


def _pad_or_crop(volume: Tensor, edge: int) -> Tensor:
    """The middle "E E E", or zeros with the map in their middle, origin on origin."""
    before = edge // 2 - len(volume) // 2
    after = edge - len(volume) - before
    return torch.nn.functional.pad(volume, (before, after) * 3)


def _fourier_cropped(volume: Tensor, box: int) -> Tensor:
    """The map of "D D D" voxels that has the same Fourier components below their Nyquist."""
    if len(volume) == box:
        return volume.float()
    matrix = fourier_crop(len(volume), box).float()
    for _ in range(3):  # each pass takes the first axis to the end
        volume = torch.tensordot(volume.float(), matrix, ([0], [1]))
    return volume
