"""Lattices of pixels, voxels and Fourier components, with the origin at pixel D // 2 on every axis."""

import torch
from torch import Tensor


def axis(box: int, pixel_size: float, *, dtype=torch.float32) -> Tensor:
    """Positions "D" in Å of the pixel centres of one axis: (i - D // 2) pixel_size."""
    return (torch.arange(box, dtype=dtype) - box // 2) * pixel_size


def voxel_centres(box: int, pixel_size: float, *, dtype=torch.float32) -> Tensor:
    """Positions "D D D 3" (x, y, z in Å) of the voxels of a map [z, y, x]."""
    a = axis(box, pixel_size, dtype=dtype)
    z, y, x = torch.meshgrid(a, a, a, indexing="ij")
    return torch.stack([x, y, z], -1)


def pixel_centres(box: int, pixel_size: float, *, dtype=torch.float32) -> Tensor:
    """Positions "D D 2" (x, y in Å) of the pixels of an image [y, x]."""
    a = axis(box, pixel_size, dtype=dtype)
    y, x = torch.meshgrid(a, a, indexing="ij")
    return torch.stack([x, y], -1)


def frequencies(box: int, pixel_size: float, *, dtype=torch.float32) -> Tensor:
    """Spatial frequencies "D D//2+1 2" (kx, ky in 1/Å) of the components of torch.fft.rfft2."""
    ky = torch.fft.fftfreq(box, pixel_size, dtype=dtype)
    kx = torch.fft.rfftfreq(box, pixel_size, dtype=dtype)
    y, x = torch.meshgrid(ky, kx, indexing="ij")
    return torch.stack([x, y], -1)


def shells(box: int, dimensions: int) -> Tensor:
    """Index of the Fourier shell (rounded radius in components) of each component of a full FFT, "D
    D" or "D D D".
    """
    k = torch.fft.fftfreq(box, 1.0 / box, dtype=torch.float64)
    square = sum(f**2 for f in torch.meshgrid(*[k] * dimensions, indexing="ij"))
    return square.sqrt().round().long()


def noise_shells(box: int) -> Tensor:
    """Shell "D D" whose noise variance each component of an image's full FFT has: the plane's
    corners continue the last one, D // 2.
    """
    return shells(box, 2).clamp(max=box // 2)


def pad(images: Tensor, box: int) -> Tensor:
    """Images "* D D" in the middle of zeros "* box box", origin on origin."""
    before = box // 2 - images.shape[-1] // 2
    after = box - images.shape[-1] - before
    return torch.nn.functional.pad(images, (before, after, before, after))


def crop(images: Tensor, box: int) -> Tensor:
    """The middle "* box box" of images "* D D", origin on origin: undoes `pad`."""
    start = images.shape[-1] // 2 - box // 2
    return images[..., start : start + box, start : start + box]
