"""Lattices looked up between their points: where the half pixel is minded, once for all."""

import torch
from torch import Tensor

from instamap.geometry import compiled


def sample_volume(volume: Tensor, x: Tensor, pixel_size: float) -> Tensor:
    """Values "*n" of a map "D D D" [z, y, x] at points "*n 3" (x, y, z in Å), trilinear.

    The origin is voxel D // 2; beyond the box there is nothing: zero.
    """
    points = x.reshape(-1, 3)
    if compiled.usable():
        from instamap.geometry import sampling_numba  # here, since numba may be missing

        if sampling_numba.fits(volume, points):
            return sampling_numba.sample(volume, points, pixel_size).view(x.shape[:-1])
    values = sample_volumes(volume[None], points[None], pixel_size)
    return values.reshape(x.shape[:-1])


def sample_volumes(volumes: Tensor, x: Tensor, pixel_size: float) -> Tensor:
    """Values "M P" of maps "M D D D" [z, y, x], each at its own points "M P 3", as `sample_volume`
    finds them.
    """
    box = volumes.shape[-1]
    from_face = _from_outer_face(x / pixel_size, box)
    normalised = 2 * from_face / box - 1
    values = torch.nn.functional.grid_sample(
        volumes[:, None],
        normalised[:, None, None],
        align_corners=False,
    )
    return values[:, 0, 0, 0]


def sample_images(images: Tensor, x: Tensor) -> Tensor:
    """Values "B *n" of images "B D D" [y, x], each at its own points "B H W 2" (x, y in pixels from
    pixel D // 2), bilinear; zero beyond the edge.
    """
    box = images.shape[-1]
    from_face = _from_outer_face(x, box)
    normalised = from_face * (2 / box) - 1
    values = torch.nn.functional.grid_sample(
        images[:, None],
        normalised,
        align_corners=False,
    )
    return values[:, 0]


def _from_outer_face(position: Tensor, box: int) -> Tensor:
    """Positions in pixels from the origin, counted from the outer face of the first pixel, which is
    half a pixel before its centre.

    torch's `grid_sample` without aligned corners has its -1 and +1 at the outer faces of the first
    and last pixel; here the origin is the centre of pixel `box` // 2.
    """
    return position + box // 2 + 0.5


def dilate(mask: Tensor) -> Tensor:
    """Voxels "D D D" (bool) at which a mask "D D D" is above zero, and the 26 around each of them:
    points inside the mask that move by up to half a voxel stay in.
    """
    inside = (mask > 0).float()
    reached = torch.nn.functional.max_pool3d(
        inside[None],
        kernel_size=3,
        stride=1,
        padding=1,
    )
    return reached[0] > 0
