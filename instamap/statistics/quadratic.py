"""The quadratic function of a map that statistics tell, its gradient and its curvature, by FFTs of
blocks of voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from instamap.threads import in_pieces


@dataclass(frozen=True)
class Quadratic:
    """½⟨V, K∗V⟩ - ⟨b, V⟩ of maps V "nz ny nx" of a block of voxels.

    b "nz ny nx". kernel "nx+1 2ny 2nz": the Fourier transform (along x that of real numbers; real,
    since K is even) of K on the periodic lattice of twice the block's sides.
    """

    b: Tensor
    kernel: Tensor

    def __call__(self, volume: Tensor) -> Tensor:
        """The value, a float64 scalar, of a map "nz ny nx".

        Its gradient K∗V - b comes from the same pair of FFTs; where nobody asks for it, half of
        them are left out.
        """
        value: Tensor = _Value.apply(volume, self)
        return value

    def crop(self, inside: tuple[slice, slice, slice]) -> "Quadratic":
        """The function of maps that are zero outside a part of the block."""
        b = self.b[inside]
        if b.shape == self.b.shape:
            return self
        return Quadratic(b.contiguous(), _cropped(self.kernel, b.shape))

    def to(self, *args: Any) -> "Quadratic":
        """A copy of another dtype or on another device: see Tensor.to."""
        return replace(self, b=self.b.to(*args), kernel=self.kernel.to(*args))


def curvature(volume: Tensor, kernel: Tensor) -> Tensor:
    """K∗V of a map V "nz ny nx", differentiable."""
    curved: Tensor = _Curvature.apply(volume, kernel)
    return curved


def real_transform(lattice: Tensor) -> Tensor:
    """The Fourier transform "mx//2+1 my mz" of a lattice "mz my mx" that is real and even about its
    first number.
    """
    return _real_along_y_and_z(_along_x(lattice, lattice.shape[2]))


# A volume's transform goes axis by axis: x in planes of z, then y and z in planes of a frequency
# along x, which stay in a cache. Each axis is transformed where it lies last in memory.


def _along_x(volume: Tensor, mx: int) -> Tensor:
    """The transforms "mx//2+1 nz ny" along x of a volume "nz ny nx", padded to mx numbers."""
    nz, ny, _ = volume.shape
    dtype = torch.promote_types(volume.dtype, torch.complex64)
    spectrum = torch.empty(mx // 2 + 1, nz, ny, dtype=dtype, device=volume.device)

    def transform(planes: slice) -> None:
        waves = torch.fft.rfft(volume[planes], n=mx)
        spectrum[:, planes] = waves.permute(2, 0, 1)

    in_pieces(transform, nz, ny * mx, volume.device)
    return spectrum


def _along_y_and_z(planes: Tensor, my: int, mz: int) -> Tensor:
    """The transforms "c my mz" of planes "c nz ny", padded to my and mz numbers."""
    rows = torch.fft.fft(planes, n=my)
    return torch.fft.fft(rows.transpose(1, 2), n=mz)


def _real_along_y_and_z(spectrum: Tensor) -> Tensor:
    """The transforms "c my mz", which are real, of planes "c mz my"."""
    columns, mz, my = spectrum.shape
    kernel = torch.empty(columns, my, mz, dtype=spectrum.real.dtype, device=spectrum.device)

    def transform(some: slice) -> None:
        kernel[some] = _along_y_and_z(spectrum[some], my, mz).real

    in_pieces(transform, columns, my * mz, spectrum.device)
    return kernel


def _cropped(kernel: Tensor, sides: Sequence[int]) -> Tensor:
    """The transform of K on the lattice of twice as long `sides`, axis by axis."""
    nz, ny, nx = sides
    columns, my, mz = kernel.shape
    mx = 2 * (columns - 1)
    device = kernel.device
    near_z = _nearest(nz, mz).to(device)
    near_y = _nearest(ny, my).to(device)
    near_x = _nearest(nx, mx).to(device)
    dtype = torch.promote_types(kernel.dtype, torch.complex64)
    before = torch.empty(columns, 2 * nz, 2 * ny, dtype=dtype, device=device)
    after = torch.empty(nx + 1, 2 * nz, 2 * ny, dtype=dtype, device=device)

    def along_z_and_y(some: slice) -> None:
        rows = torch.fft.ifft(kernel[some]).index_select(2, near_z)
        planes = torch.fft.ifft(rows.transpose(1, 2))
        before[some] = planes.index_select(2, near_y)

    def along_x(planes: slice) -> None:
        waves = before[:, planes].permute(1, 2, 0)
        lattice = torch.fft.irfft(waves, n=mx).index_select(2, near_x)
        after[:, planes] = torch.fft.rfft(lattice).permute(2, 0, 1)

    in_pieces(along_z_and_y, columns, my * mz, device)
    in_pieces(along_x, 2 * nz, 2 * ny * mx, device)
    return _real_along_y_and_z(after)


def _nearest(n: int, m: int) -> Tensor:
    """The places -n ... n - 1 on a periodic axis of m, the origin first."""
    place = torch.arange(-n, n)
    return torch.fft.ifftshift(place) % m


def _convolved(volume: Tensor, kernel: Tensor) -> Tensor:
    """K∗V "nz ny nx"."""
    nz, ny, nx = volume.shape
    spectrum = _along_x(volume, 2 * nx)
    curved = torch.empty_like(volume)

    def filtered(some: slice) -> None:
        waves = _along_y_and_z(spectrum[some], 2 * ny, 2 * nz)
        waves *= kernel[some]
        rows = torch.fft.ifft(waves)[:, :, :nz].transpose(1, 2)
        spectrum[some] = torch.fft.ifft(rows)[:, :, :ny]

    def back(planes: slice) -> None:
        waves = spectrum[:, planes].permute(1, 2, 0)
        curved[planes] = torch.fft.irfft(waves, n=2 * nx)[:, :, :nx]

    in_pieces(filtered, nx + 1, 4 * ny * nz, volume.device)
    in_pieces(back, nz, 2 * ny * nx, volume.device)
    return curved


def _power(volume: Tensor, kernel: Tensor) -> Tensor:
    """⟨V, K∗V⟩, a float64 scalar, by Parseval's theorem: the FFTs there, and none back."""
    nz, ny, nx = volume.shape
    spectrum = _along_x(volume, 2 * nx)
    of_plane = torch.empty(nx + 1, dtype=torch.float64, device=volume.device)

    def weigh(some: slice) -> None:
        waves = _along_y_and_z(spectrum[some], 2 * ny, 2 * nz)
        powers = torch.view_as_real(waves * kernel[some]) * torch.view_as_real(waves)
        of_row = powers.sum((2, 3))
        of_plane[some] = of_row.sum(1, dtype=torch.float64)

    in_pieces(weigh, nx + 1, 4 * ny * nz, volume.device)
    of_plane[1:-1] *= 2  # rfft leaves out the conjugates of others
    return of_plane.sum() / (8 * volume.numel())


class _Curvature(torch.autograd.Function):
    """K∗V; its gradient is of the same kind, as K is symmetric."""

    @staticmethod
    def forward(ctx: Any, volume: Tensor, kernel: Tensor) -> Tensor:
        ctx.save_for_backward(kernel)
        return _convolved(volume, kernel)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (kernel,) = ctx.saved_tensors
        gradient: Tensor = _Curvature.apply(upstream.contiguous(), kernel)
        return gradient, None


class _Value(torch.autograd.Function):
    """The value of a map and, from the same pair of FFTs, its gradient."""

    @staticmethod
    def forward(ctx: Any, volume: Tensor, function: Quadratic) -> Tensor:
        if not ctx.needs_input_grad[0]:
            along = (volume * function.b).sum(dtype=torch.float64)
            return 0.5 * _power(volume, function.kernel) - along
        curved = _convolved(volume, function.kernel)
        of_plane = torch.empty(len(volume), dtype=torch.float64, device=volume.device)

        def weigh(planes: slice) -> None:
            b = function.b[planes]
            terms = volume[planes] * (0.5 * curved[planes] - b)
            # float32 would lose a nat in a million
            of_plane[planes] = terms.sum((1, 2), dtype=torch.float64)
            curved[planes] -= b

        in_pieces(weigh, len(volume), volume[0].numel(), volume.device)
        ctx.save_for_backward(curved)
        return of_plane.sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        factor = upstream.to(gradient.dtype)
        return factor * gradient, None
