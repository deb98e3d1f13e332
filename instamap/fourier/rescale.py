"""Maps on more or fewer voxels of the same edge, by their Fourier transform; and what is known for
each Fourier shell of one box, at the shells of another.
"""

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


def resample_shells(values: Tensor, box: int, other: int) -> Tensor:
    """Values "* D//2+1" at the Fourier shells of a box of D pixels, at those of another box of
    pixels of the same size: linear in frequency between shells, the last one's beyond it.
    """
    if box == other:
        return values
    last = box // 2
    place = torch.arange(other // 2 + 1, dtype=torch.float64, device=values.device)
    place = (place * box / other).clamp(max=last)
    before = place.long().clamp(max=last - 1)
    share = (place - before).to(values.dtype)
    return torch.lerp(values[..., before], values[..., before + 1], share)


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
