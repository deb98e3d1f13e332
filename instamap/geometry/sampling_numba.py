"""A map looked up between its voxels, compiled for CPUs: `sampling.sample_volume` in float32, to
rounding the same values.
"""

import numpy as np
import torch
from torch import Tensor

from instamap.geometry.compiled import jit
from instamap.threads import in_threads, shares


@jit(fastmath={"contract", "reassoc", "nsz"})  # points that are not finite stay so
def _sample(
    volume: np.ndarray,
    x: np.ndarray,
    pixel_size: float,
    out: np.ndarray,
    low: int,
    high: int,
) -> None:
    """Writes the values `out` "P" of points low ≤ p < high."""
    box = volume.shape[0]
    middle = np.float32(box // 2)
    per_voxel = np.float32(1) / pixel_size
    wx = np.empty(2, np.float32)
    wy = np.empty(2, np.float32)
    wz = np.empty(2, np.float32)
    i = np.empty(2, np.uintp)  # unsigned: numba would test signed ones for counting from the end
    j = np.empty(2, np.uintp)
    k = np.empty(2, np.uintp)
    for p in range(low, high):
        along_x = x[p, 0] * per_voxel + middle
        along_y = x[p, 1] * per_voxel + middle
        along_z = x[p, 2] * per_voxel + middle
        value = np.float32(0)
        if _reaches(along_x, box) and _reaches(along_y, box) and _reaches(along_z, box):
            _beside(
                along_x,
                box,
                i,
                wx,
            )
            _beside(
                along_y,
                box,
                j,
                wy,
            )
            _beside(
                along_z,
                box,
                k,
                wz,
            )
            for dz in range(2):
                for dy in range(2):
                    line = volume[k[dz], j[dy]]
                    between = wx[0] * line[i[0]] + wx[1] * line[i[1]]
                    value += wz[dz] * wy[dy] * between
        out[p] = value


@jit(inline="always")
def _reaches(along: float, box: int) -> bool:
    """Whether a place in voxels has one of `box` voxels beside it; no number has none."""
    return along > -1 and along < box


@jit(inline="always")
def _beside(
    along: float,
    box: int,
    voxels: np.ndarray,
    weights: np.ndarray,
) -> None:
    """Writes the voxels on both sides of a place and their weights, zero of those beyond the box,
    in whose place others are named.
    """
    before = int(np.floor(along))
    share = along - np.float32(before)
    weights[0] = np.float32(1) - share if before >= 0 else np.float32(0)
    weights[1] = share if before + 1 < box else np.float32(0)
    voxels[0] = max(before, 0)
    voxels[1] = min(before + 1, box - 1)


def fits(volume: Tensor, x: Tensor) -> bool:
    """Whether these are of the type that this is for, and no gradient is asked for."""
    kinds = {(each.dtype, each.device.type) for each in (volume, x)}
    differentiable = torch.is_grad_enabled() and (volume.requires_grad or x.requires_grad)
    return kinds == {(torch.float32, "cpu")} and not differentiable


def sample(
    volume: Tensor,
    x: Tensor,
    pixel_size: float,
) -> Tensor:
    """Values "P" of a map "D D D" at points "P 3" (Å), by torch.get_num_threads() threads."""
    values = torch.empty(len(x))
    given = (volume.contiguous().numpy(), x.contiguous().numpy(), np.float32(pixel_size))
    out = values.numpy()

    def work(low: int, high: int) -> None:
        _sample(
            *given,
            out,
            low,
            high,
        )

    in_threads(work, shares(len(x)))
    return values
