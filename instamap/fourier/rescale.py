"""Maps on more or fewer voxels of the same edge, by their Fourier transform."""

import torch
from torch import Tensor

LAST_AXES = (-3, -2, -1)


def rescale(maps: Tensor, box: int) -> Tensor:
    """Maps "* N N N" on `box` voxels an edge: Fourier components beyond the smaller of both boxes
    are dropped, or zero.
    """
    before = maps.shape[-1]
    if before == box:
        return maps
    spectrum = _transform(maps)
    low = box // 2 - before // 2
    high = box - before - low
    margins = (low, high) * 3
    spectrum = torch.nn.functional.pad(spectrum, margins)
    volumes = _inverse(spectrum)
    return volumes.real * (box / before) ** 3


def _transform(maps: Tensor) -> Tensor:
    """Fourier components of maps "* N N N", both with the origin in the middle."""
    from_corner = torch.fft.ifftshift(maps, dim=LAST_AXES)
    spectrum = torch.fft.fftn(from_corner, dim=LAST_AXES)
    return torch.fft.fftshift(spectrum, dim=LAST_AXES)


def _inverse(spectrum: Tensor) -> Tensor:
    """The maps "* N N N" that have these Fourier components: undoes `_transform`."""
    from_corner = torch.fft.ifftshift(spectrum, dim=LAST_AXES)
    maps = torch.fft.ifftn(from_corner, dim=LAST_AXES)
    return torch.fft.fftshift(maps, dim=LAST_AXES)
