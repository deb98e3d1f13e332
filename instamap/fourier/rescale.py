"""Maps on more or fewer voxels of the same edge, by their Fourier transform."""

import torch
from torch import Tensor


def rescale(maps: Tensor, box: int) -> Tensor:
    """Maps "* N N N" on `box` voxels an edge: Fourier components beyond the smaller of both boxes
    are dropped, or zero.
    """
    before = maps.shape[-1]
    axes = (-3, -2, -1)
    spectrum = torch.fft.fftn(torch.fft.ifftshift(maps, dim=axes), dim=axes)
    spectrum = torch.fft.fftshift(spectrum, dim=axes)
    low = box // 2 - before // 2
    high = (box - box // 2) - (before - before // 2)
    spectrum = torch.nn.functional.pad(spectrum, (low, high) * 3)
    volumes = torch.fft.ifftn(torch.fft.ifftshift(spectrum, dim=axes), dim=axes)
    volumes = torch.fft.fftshift(volumes, dim=axes)
    return volumes.real * (box / before) ** 3
