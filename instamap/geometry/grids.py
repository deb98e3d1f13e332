"""Lattices of pixels, voxels and Fourier components; the origin is pixel D // 2 on every axis."""

import math

import numpy as np
import torch
from torch import Tensor

LARGEST_FACTOR = 5  # of the edges of lattices that are transformed fast


def axis(
    box: int,
    pixel_size: float,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Positions "D" in Å of the pixel centres of one axis: (i - D // 2) pixel_size."""
    index = torch.arange(box, dtype=dtype)
    return (index - box // 2) * pixel_size


def voxel_centres(
    box: int,
    pixel_size: float,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Positions "D D D 3" (x, y, z in Å) of the voxels of a map [z, y, x]."""
    along = axis(box, pixel_size, dtype=dtype)
    z, y, x = torch.meshgrid(along, along, along, indexing="ij")
    return torch.stack([x, y, z], -1)


def pixel_centres(
    box: int,
    pixel_size: float,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Positions "D D 2" (x, y in Å) of the pixels of an image [y, x]."""
    along = axis(box, pixel_size, dtype=dtype)
    y, x = torch.meshgrid(along, along, indexing="ij")
    return torch.stack([x, y], -1)


def frequencies(
    box: int,
    pixel_size: float,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Spatial frequencies "D D//2+1 2" (kx, ky in 1/Å) of the components of torch.fft.rfft2."""
    ky = torch.fft.fftfreq(box, pixel_size, dtype=dtype)
    kx = torch.fft.rfftfreq(box, pixel_size, dtype=dtype)
    y, x = torch.meshgrid(ky, kx, indexing="ij")
    return torch.stack([x, y], -1)


def shells(box: int, dimensions: int) -> Tensor:
    """Index of the Fourier shell (rounded radius in components) of each component of a full FFT, "D
    D" or "D D D".
    """
    along = torch.fft.fftfreq(
        box,
        1.0 / box,
        dtype=torch.float64,
    )
    axes = [along] * dimensions
    components = torch.meshgrid(*axes, indexing="ij")
    square = sum(component**2 for component in components)
    radius = torch.as_tensor(square).sqrt()
    return radius.round().long()


def noise_shells(box: int) -> Tensor:
    """Shell "D D" whose noise variance each component of an image's full FFT has: the plane's
    corners continue the last one, D // 2.
    """
    plane = shells(box, 2)
    return plane.clamp(max=box // 2)


def empty_map(box: int, like: Tensor) -> Tensor:
    """A map "D D D" of zeros, with the type and on the device of another tensor.

    On a CPU numpy asks the system for zeros: what is never written, as most of a large box around a
    molecule, takes neither memory nor time.
    """
    if like.device.type != "cpu":
        return like.new_zeros(box, box, box)
    kind = like.new_empty(0).numpy().dtype
    return torch.from_numpy(np.zeros((box, box, box), kind))


def extent(chosen: Tensor) -> list[tuple[int, int]]:
    """The first voxel and the one after the last, along each axis, of those that are chosen "D D D"
    (bool); none where none is.
    """
    if not bool(chosen.any()):
        return []
    in_plane = chosen.any(0)
    along = (chosen.flatten(1).any(1), in_plane.any(1), in_plane.any(0))
    found = []
    for axis in along:
        places = axis.nonzero()[:, 0]
        first = int(places[0])
        last = int(places[-1])
        found.append((first, last + 1))
    return found


def pad(images: Tensor, box: int) -> Tensor:
    """Images "* D D" in the middle of zeros "* box box", origin on origin."""
    edge = images.shape[-1]
    before = box // 2 - edge // 2
    after = box - edge - before
    margins = (before, after, before, after)
    return torch.nn.functional.pad(images, margins)


def crop(images: Tensor, box: int) -> Tensor:
    """The middle "* box box" of images "* D D", origin on origin: undoes `pad`."""
    edge = images.shape[-1]
    start = edge // 2 - box // 2
    middle = slice(start, start + box)
    return images[..., middle, middle]


def fast_edge(least: float) -> int:
    """The least even number from `least` on that has no prime factor above LARGEST_FACTOR."""
    edge = 2 * math.ceil(least / 2)
    while not _transforms_fast(edge):
        edge += 2
    return edge


def _transforms_fast(edge: int) -> bool:
    """Whether an edge has no prime factor above LARGEST_FACTOR."""
    rest = edge
    for prime in range(2, LARGEST_FACTOR + 1):
        while rest % prime == 0:
            rest //= prime
    return rest == 1
