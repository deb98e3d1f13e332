"""Central slices of a map's Fourier transform at any rotation: a type-2 non-uniform FFT,
differentiable in the map.

With the map V [z, y, x] of N voxels an edge and its origin at voxel N // 2, the value at frequency
q (in cycles per N voxels) is

    F(q) = Σ_x V(x) e^{-2πi q·x / N},    |q| < N/2,

found by dividing V by the transform of the Kaiser-Bessel window, a fast transform of M ≥ 2N points,
and the window's weights around q. The relative L2 error is 3e-4 for white noise. It is the
transpose of the gridding in `gridding`, on a finer grid.
"""

import functools
import math
from types import ModuleType
from typing import Any

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
from instamap.geometry import compiled, device_kernels, grids

OVERSAMPLING = 2.0
PLANE_AXES = 2
FEWEST_AT_ONCE = 3  # maps: fewer are looked up faster one by one
POINTS_AT_ONCE = 4096  # in torch: of each, 125 cells are looked up


def central_slices(volume: Tensor, frames: Tensor, plane: Tensor) -> Tensor:
    """F "V P" (complex) at the frequencies plane @ frames of a map "N N N".

    frames "V 2 3": the first two rows of rotations; plane "P 2": (kx, ky) in cycles per N voxels,
    |k| < N/2 (else ValueError). The gradient is that of the map alone.
    """
    return Spectrum(volume).slices(frames, plane)


class Spectrum:
    """The transform of a map "N N N", kept: to be looked up time and again.

    highest: cycles per N voxels below which it will be looked up (None: N/2). The rest is neither
    kept nor, for the most part, computed.
    """

    def __init__(self, volume: Tensor, highest: float | None = None) -> None:
        self.box = len(volume)
        self.size = grid_size(self.box, OVERSAMPLING)
        self.highest = self.box / 2 if highest is None else min(highest, self.box / 2)
        if highest is None:
            grid = _oversampled_grid(volume, self.size)
            self._half = self.size // 2
        else:
            self._half = math.ceil(self.highest * self.size / self.box)
            grid = _pruned_grid(volume, self.size, self._half)
        self._cells = torch.view_as_real(grid)

    def like(self, values: Tensor) -> Tensor:
        """Values of any shape "*" in the precision and on the device of the transform."""
        return values.to(self._cells)

    def slices(self, frames: Tensor, plane: Tensor) -> Tensor:
        """F "V P" (complex) at the frequencies plane @ frames, as `central_slices`.

        With frames "V 3 3" and points "P 3" they may lie outside the plane.
        """
        self._check(plane)
        scaled = frames * (self.size / self.box)
        return _Gather.apply(self._cells, scaled, plane, self._half)

    def _check(self, plane: Tensor) -> None:
        """Refuses frequencies beyond the highest."""
        if not plane.numel():
            return
        reached = _furthest(plane)
        if not reached < self.highest:
            raise ValueError(
                f"frequencies reach {reached:g} cycles in {self.box} voxels; they must stay"
                f" below {self.highest:g}"
            )


class Spectra:
    """The transforms of C maps "C N N N", kept: to be looked up together, without a gradient.

    Values are the same, to the last bit, as those of each `Spectrum`. Compiled for CPUs, they take
    half as long where maps are many.
    """

    def __init__(self, volumes: Tensor) -> None:
        with torch.no_grad():
            self._each = [Spectrum(volume) for volume in volumes]
        self._cells: Tensor | None = None

    @torch.no_grad()
    def slices(self, frames: Tensor, plane: Tensor) -> Tensor:
        """F "V C P" (complex) at the frequencies plane @ frames: see `central_slices`."""
        first = self._each[0]
        first._check(plane)
        on_cpu = first._cells.device.type == "cpu"
        kernels = _kernels_for(first._cells, frames) if on_cpu else None
        if kernels is None or len(self._each) < FEWEST_AT_ONCE:
            return torch.stack([one.slices(frames, plane) for one in self._each], 1)
        if self._cells is None:
            self._cells = torch.stack([one._cells for one in self._each], 3)
        scaled = frames * (first.size / first.box)
        values: Tensor = kernels.gather_many(self._cells, scaled, plane, first._half)
        return values


def _furthest(plane: Tensor) -> float:
    """The largest frequency of components "P 2" or "P 3"."""
    return float(plane.norm(dim=1).max())


def _oversampled_grid(volume: Tensor, size: int) -> Tensor:
    """The transform on the cells of `kaiser_bessel`: half a grid of `size` with margins, complex
    [z, y, x].
    """
    box = len(volume)
    undo = _undone_window(volume, size)
    weighted = volume * undo[:, None, None]
    weighted = weighted * undo[:, None]
    weighted = weighted * undo
    before = size // 2 - box // 2
    after = size - box - before
    margins = (before, after) * 3
    padded = torch.nn.functional.pad(weighted, margins)
    half = torch.fft.rfftn(torch.fft.ifftshift(padded))
    last = size // 2 - MARGIN - 1
    lowest = half.narrow(2, 1, MARGIN)
    highest = half.narrow(2, last, MARGIN + 1)
    wide = torch.cat(
        [
            _opposite(lowest),
            half,
            _opposite(highest),
        ],
        2,
    )
    whole = torch.fft.fftshift(wide.resolve_conj(), dim=(0, 1))
    for axis in (0, 1):
        end = whole.narrow(axis, size - MARGIN, MARGIN)
        start = whole.narrow(axis, 0, MARGIN + 1)
        whole = torch.cat([end, whole, start], axis)
    return whole


def _undone_window(volume: Tensor, size: int) -> Tensor:
    """Factors "N" of the voxels along each axis by which the window's transform cancels."""
    along = grids.axis(
        len(volume),
        1 / size,
        dtype=torch.float64,
    )
    return 1 / window_transform(along).to(volume)


def _pruned_grid(volume: Tensor, size: int, half: int) -> Tensor:
    """The cells of `_oversampled_grid` that points within `half` cells reach, complex [z, y, x]:
    what the other would be for a grid of 2 · half.

    Axis after axis, lines of zeros are left out before each transform, and what lies beyond is
    dropped after it: at half = size / 4 a fourth of the work, and no array of the whole grid.
    """
    box = len(volume)
    undo = _undone_window(volume, size)
    reach = half + MARGIN
    kept = torch.arange(-reach, reach + 1) % size
    place = (torch.arange(box) - box // 2) % size
    edge = 2 * reach + 1
    planes = volume.new_empty(box, edge, reach + 1, dtype=volume.dtype.to_complex())
    flat = volume.new_zeros(box, size)
    for number, plane in enumerate(volume):
        weighted = plane * (undo[number] * undo[:, None])
        flat[:, place] = weighted * undo
        lines = _first_components(torch.fft.rfft(flat), reach + 1, size)
        planes[number] = _kept_transform(lines.T, place, kept, size).T
    width = reach + MARGIN + 2  # the last cell is idle, as in the whole grid
    cells = planes.new_zeros(edge, edge, width)
    for number in range(edge):
        columns = planes[:, number].T
        cells[:, number, MARGIN : MARGIN + reach + 1] = _kept_transform(
            columns, place, kept, size
        ).T
    low = cells[:, :, MARGIN + 1 : 2 * MARGIN + 1]
    cells[:, :, :MARGIN] = low.flip(0, 1, 2).conj()
    return cells


def _first_components(half: Tensor, count: int, size: int) -> Tensor:
    """The first `count` of the `size` components of real lines, of which torch.fft.rfft gives half.

    These of the other half are conjugates.
    """
    within = half[:, :count]
    beyond = count - within.shape[1]
    if not beyond:
        return within
    last = size - half.shape[1]
    opposite = half[:, last - beyond + 1 : last + 1].flip(1)
    return torch.cat([within, opposite.conj()], 1)


def _kept_transform(lines: Tensor, place: Tensor, kept: Tensor, size: int) -> Tensor:
    """The components `kept` of lines "L N" whose numbers are at `place` among `size`."""
    padded = lines.new_zeros(len(lines), size)
    padded[:, place] = lines
    return torch.fft.fft(padded)[:, kept]


def _opposite(part: Tensor) -> Tensor:
    """The components opposite to components "M M X" of a real map: their conjugates."""
    flipped = part.flip(0, 1)
    aligned = flipped.roll((1, 1), (0, 1))
    return aligned.flip(2).conj()


class _Gather(torch.autograd.Function):
    """Interpolation in the cells of a grid; backward spreads onto them."""

    @staticmethod
    def forward(
        ctx: Any,
        grid: Tensor,
        frames: Tensor,
        plane: Tensor,
        half: int,
    ) -> Tensor:
        ctx.save_for_backward(frames, plane)
        ctx.half = half
        ctx.shape = grid.shape
        kernels = _kernels_for(grid, frames)
        if kernels is not None:
            return kernels.gather(grid, frames, plane, half)
        at, sign = _points(frames, plane, half)
        table = taps().to(grid)
        shape = grid.shape[:3]
        cells = grid.reshape(-1, 2)
        parts = []
        for chunk in at.split(POINTS_AT_ONCE):
            index, weights = footprint(chunk, table, shape)
            terms = cells[index] * weights[..., None]
            parts.append(terms.sum(1))
        values = torch.cat(parts) * _conjugating(sign)
        flat = torch.view_as_complex(values)
        return flat.view(len(frames), len(plane))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        frames, plane = ctx.saved_tensors
        grad = torch.zeros(
            ctx.shape,
            dtype=frames.dtype,
            device=frames.device,
        )
        kernels = _kernels_for(grad, frames)
        if kernels is not None:
            kernels.scatter(grad, frames, plane, upstream, ctx.half)
            return grad, None, None, None
        at, sign = _points(frames, plane, ctx.half)
        flat = torch.view_as_real(upstream.flatten().resolve_conj())
        values = flat * _conjugating(sign)
        table = taps().to(grad)
        shape = grad.shape[:3]
        cells = grad.view(-1, 2)
        chunks = zip(
            at.split(POINTS_AT_ONCE),
            values.split(POINTS_AT_ONCE),
            strict=True,
        )
        for chunk, value in chunks:
            index, weights = footprint(chunk, table, shape)
            terms = weights[..., None] * value[:, None]
            cells.index_add_(0, index.flatten(), terms.flatten(0, 1))
        return grad, None, None, None


def _points(
    frames: Tensor,
    plane: Tensor,
    half: int,
) -> tuple[Tensor, Tensor]:
    """Coordinates "V·P 3" of all points, and their signs "V·P 1"."""
    at, sign = first_cells(frames, plane, half)
    return at.flatten(0, 1), sign.flatten(0, 1)


def _conjugating(sign: Tensor) -> Tensor:
    """Factors "P 2" of real and imaginary parts, which conjugate where the sign "P 1" is -1."""
    return torch.cat([torch.ones_like(sign), sign], 1)


def _kernels_for(grid: Tensor, frames: Tensor) -> ModuleType | None:
    """The compiled form, for planes in float32: by numba on a CPU and by Triton on a card, where
    they can be imported.
    """
    if frames.shape[1] != PLANE_AXES or grid.dtype != torch.float32:
        return None
    if grid.device.type == "cpu":
        return _numba()
    if device_kernels.usable(grid.device):
        return _triton()
    return None


def _triton() -> ModuleType:
    """The kernels for cards."""
    from instamap.fourier import gridding_triton

    return gridding_triton


@functools.cache
def _numba() -> ModuleType | None:
    """The compiled kernels, or None where there is no numba that works."""
    if not compiled.usable():
        return None
    from instamap.fourier import central_slices_numba

    return central_slices_numba
