"""Central slices of a map's Fourier transform at any rotation: a type-2 non-uniform FFT,
differentiable in the map.

With the map V [z, y, x] of N voxels an edge and its origin at voxel N // 2, the value at frequency
q (in cycles per N voxels) is

    F(q) = Σ_x V(x) e^{-2πi q·x / N},    |q| < N/2,

found by dividing V by the transform of the Kaiser-Bessel window, a fast transform of M ≥ 2N points,
and the window's weights around q. The relative L2 error is 3e-4 for white noise. It is the
transpose of the gridding in `fit.gridding`, on a finer grid.
"""

import functools
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from instamap.fourier.kaiser_bessel import (
    MARGIN,
    first_cells,
    footprint,
    grid_size,
    taps,
    window_transform,
)
from instamap.geometry import compiled, grids

OVERSAMPLING = 2.0
BLOCK = 4096  # points at once in torch: of each, 125 cells are looked up


def central_slices(volume: Tensor, frames: Tensor, plane: Tensor) -> Tensor:
    """F "V P" (complex) at the frequencies plane @ frames of a map "N N N". frames "V 2 3": the
    first two rows of rotations; plane "P 2": (kx, ky) in cycles per N voxels, |k| < N/2 (else
    ValueError). The gradient is that of the map alone.
    """
    return Spectrum(volume).slices(frames, plane)


class Spectrum:
    """The transform of a map "N N N", kept: to be looked up time and again."""

    def __init__(self, volume: Tensor):
        self.box = len(volume)
        self.size = grid_size(len(volume), OVERSAMPLING)
        self._cells = torch.view_as_real(_grid(volume, self.size))

    def slices(self, frames: Tensor, plane: Tensor) -> Tensor:
        """As `central_slices`."""
        if plane.numel() and not float(plane.norm(dim=1).max()) < self.box / 2:
            raise ValueError(
                f"frequencies reach {float(plane.norm(dim=1).max()):g} cycles; they must stay below"
                f" half of {self.box} voxels"
            )
        return _Gather.apply(self._cells, frames * (self.size / self.box), plane, self.size // 2)


def _grid(volume: Tensor, size: int) -> Tensor:
    """The transform on the cells of `kaiser_bessel`: half a grid of `size` with margins, complex
    [z, y, x].
    """
    box = len(volume)
    undo = 1 / window_transform(grids.axis(box, 1 / size, dtype=torch.float64)).to(volume)
    weighted = volume * undo[:, None, None] * undo[:, None] * undo
    before = size // 2 - box // 2
    after = size - box - before
    padded = torch.nn.functional.pad(weighted, (before, after) * 3)
    half = torch.fft.rfftn(torch.fft.ifftshift(padded))

    def mirror(part):
        return part.flip(0, 1).roll((1, 1), (0, 1)).flip(2).conj()

    left = mirror(half[..., 1 : MARGIN + 1])
    right = mirror(half[..., size // 2 - MARGIN - 1 : size // 2])
    whole = torch.fft.fftshift(torch.cat([left, half, right], 2).resolve_conj(), dim=(0, 1))
    for axis in (0, 1):
        whole = torch.cat(
            [whole.narrow(axis, size - MARGIN, MARGIN), whole, whole.narrow(axis, 0, MARGIN + 1)],
            axis,
        )
    return whole


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grid: Tensor, frames: Tensor, plane: Tensor, half: int) -> Tensor:
        ctx.save_for_backward(frames, plane)
        ctx.half = half
        ctx.shape = grid.shape
        if fast := _kernels(grid):
            return fast.gather(grid, frames, plane, half)
        at, sign = (t.flatten(0, 1) for t in first_cells(frames, plane, half))
        table = taps().to(grid)
        cells = grid.reshape(-1, 2)
        parts = []
        for some in at.split(BLOCK):
            index, weights = footprint(some, table, grid.shape[:3])
            parts.append((cells[index] * weights[..., None]).sum(1))
        values = torch.cat(parts) * torch.cat([torch.ones_like(sign), sign], 1)
        return torch.view_as_complex(values).view(len(frames), len(plane))

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        frames, plane = ctx.saved_tensors
        found = torch.zeros(ctx.shape, dtype=frames.dtype, device=frames.device)
        if fast := _kernels(found):
            fast.scatter(found, frames, plane, upstream, ctx.half)
            return found, None, None, None
        at, sign = (t.flatten(0, 1) for t in first_cells(frames, plane, ctx.half))
        values = torch.view_as_real(upstream.flatten().resolve_conj()) * torch.cat(
            [torch.ones_like(sign), sign], 1
        )
        table = taps().to(found)
        cells = found.view(-1, 2)
        for some, value in zip(at.split(BLOCK), values.split(BLOCK), strict=True):
            index, weights = footprint(some, table, ctx.shape[:3])
            cells.index_add_(
                0, index.flatten(), (weights[..., None] * value[:, None]).flatten(0, 1)
            )
        return found, None, None, None


def _kernels(grid: Tensor) -> ModuleType | None:
    """The compiled form, for float32 on a CPU where there is a numba that works."""
    return _numba() if grid.dtype == torch.float32 and grid.device.type == "cpu" else None


@functools.cache
def _numba() -> ModuleType | None:
    if not compiled.usable():
        return None
    from instamap.fourier import central_slices_numba

    return central_slices_numba
