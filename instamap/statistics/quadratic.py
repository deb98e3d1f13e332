"""The quadratic function of a map that statistics tell, its gradient and its curvature, by FFTs of
blocks of voxels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

NUMBERS_AT_ONCE = 1 << 17  # that are transformed together, to stay in a cache


@dataclass(frozen=True)
class Quadratic:
    """½⟨V, K∗V⟩ - ⟨b, V⟩ of maps V "nz ny nx" of a block of voxels.

    b "nz ny nx". kernel "2nz 2ny nx+1": the Fourier transform (rfftn, real since K is real and
    even) of K on the periodic lattice of twice the block's sides.
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
        lattice = torch.fft.irfftn(self.kernel, s=[2 * n for n in self.b.shape])
        for axis, n in enumerate(b.shape):
            place = torch.arange(-n, n, device=lattice.device)
            near = torch.fft.ifftshift(place) % lattice.shape[axis]
            lattice = lattice.index_select(axis, near)
        return Quadratic(b.contiguous(), real_transform(lattice))

    def to(self, *args: Any) -> "Quadratic":
        """A copy of another dtype or on another device: see Tensor.to."""
        return replace(self, b=self.b.to(*args), kernel=self.kernel.to(*args))


def curvature(volume: Tensor, kernel: Tensor) -> Tensor:
    """K∗V of a map V "nz ny nx", differentiable."""
    curved: Tensor = _Curvature.apply(volume, kernel)
    return curved


def real_transform(lattice: Tensor) -> Tensor:
    """The Fourier transform (rfftn) of a lattice that is real and even about its first number."""
    mz, my, mx = lattice.shape
    spectrum = _planes(lattice, my, mx)
    kernel = torch.empty(spectrum.shape, dtype=lattice.dtype, device=lattice.device)
    for rows in _at_once(my, mz * spectrum.shape[2]):
        waves = torch.fft.fft(spectrum[:, rows], dim=0)
        kernel[:, rows] = waves.real
    return kernel


def _planes(volume: Tensor, my: int, mx: int) -> Tensor:
    """The transforms "nz my mx//2+1" of a volume's planes, padded to my and mx numbers."""
    nz = len(volume)
    dtype = torch.promote_types(volume.dtype, torch.complex64)
    spectrum = torch.empty(nz, my, mx // 2 + 1, dtype=dtype, device=volume.device)
    for planes in _at_once(nz, my * mx):
        spectrum[planes] = torch.fft.rfft2(volume[planes].contiguous(), s=(my, mx))
    return spectrum


def _convolved(volume: Tensor, kernel: Tensor) -> Tensor:
    """K∗V "nz ny nx". z apart, as the planes of padding need no other axis; a part of the axes at
    once, so that little more than one spectrum is in memory.
    """
    nz, ny, nx = volume.shape
    my, mx = 2 * ny, 2 * nx
    spectrum = _planes(volume, my, mx)
    for rows, waves in _along_z(spectrum):
        waves *= kernel[:, rows]
        spectrum[:, rows] = torch.fft.ifft(waves, dim=0)[:nz]
    curved = torch.empty_like(volume)
    for planes in _at_once(nz, my * mx):
        curved[planes] = torch.fft.irfft2(spectrum[planes], s=(my, mx))[:, :ny, :nx]
    return curved


def _power(volume: Tensor, kernel: Tensor) -> Tensor:
    """⟨V, K∗V⟩, a float64 scalar, by Parseval's theorem: the FFTs there, and none back."""
    _, ny, nx = volume.shape
    spectrum = _planes(volume, 2 * ny, 2 * nx)
    sums = []
    for rows, waves in _along_z(spectrum):
        powers = waves.real**2 + waves.imag**2
        powers *= kernel[:, rows]
        powers[..., 1:-1] *= 2  # rfftn leaves out the conjugates of others
        sums.append(powers.sum(dtype=torch.float64))
    return torch.stack(sums).sum() / (8 * volume.numel())


def _along_z(spectrum: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The transforms along z, padded to twice as many numbers, of some rows of planes' transforms
    at once: "2nz rows columns".
    """
    nz, my, columns = spectrum.shape
    for rows in _at_once(my, 2 * nz * columns):
        yield rows, torch.fft.fft(spectrum[:, rows], n=2 * nz, dim=0)


def _at_once(count: int, numbers: int) -> Iterator[slice]:
    """Slices of `count` pieces of so many numbers that are transformed together."""
    size = max(1, NUMBERS_AT_ONCE // numbers)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


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
        values = []
        for planes in _at_once(len(volume), volume[0].numel()):
            b = function.b[planes]
            terms = volume[planes] * (0.5 * curved[planes] - b)
            values.append(terms.sum(dtype=torch.float64))  # float32 would lose a nat in a million
            curved[planes] -= b
        ctx.save_for_backward(curved)
        return torch.stack(values).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        factor = upstream.to(gradient.dtype)
        return factor * gradient, None
