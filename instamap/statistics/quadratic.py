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
        return Quadratic(b.contiguous(), _cropped(self.kernel, b.shape))

    def to(self, *args: Any) -> "Quadratic":
        """A copy of another dtype or on another device: see Tensor.to."""
        return replace(
            self,
            b=self.b.to(*args),
            kernel=self.kernel.to(*args),
        )


def curvature(volume: Tensor, kernel: Tensor) -> Tensor:
    """K∗V of a map V "nz ny nx", differentiable."""
    curved: Tensor = _Curvature.apply(volume, kernel)
    return curved


def real_transform(lattice: Tensor) -> Tensor:
    """The Fourier transform (rfftn) of a lattice that is real and even about its first number."""
    _, my, mx = lattice.shape
    return _real_along_z(_planes(lattice, my, mx))


def _real_along_z(spectrum: Tensor) -> Tensor:
    """The transforms along z, which are real, of those of the planes of a lattice."""
    mz, my, columns = spectrum.shape
    kernel = torch.empty(
        spectrum.shape,
        dtype=spectrum.real.dtype,
        device=spectrum.device,
    )

    def along_z(rows: slice) -> None:
        kernel[:, rows] = torch.fft.fft(spectrum[:, rows], dim=0).real

    in_pieces(
        along_z,
        my,
        mz * columns,
        spectrum.device,
    )
    return kernel


def _cropped(kernel: Tensor, sides: Sequence[int]) -> Tensor:
    """The transform of K on the lattice of twice as long `sides`, axis by axis."""
    nz, ny, nx = sides
    mz, my, columns = kernel.shape
    mx = 2 * (columns - 1)
    near_z = _nearest(nz, mz).to(kernel.device)
    near_y = _nearest(ny, my).to(kernel.device)
    near_x = _nearest(nx, mx).to(kernel.device)
    dtype = torch.promote_types(kernel.dtype, torch.complex64)
    planes_before = torch.empty(
        2 * nz,
        my,
        columns,
        dtype=dtype,
        device=kernel.device,
    )
    planes_after = torch.empty(
        2 * nz,
        2 * ny,
        nx + 1,
        dtype=dtype,
        device=kernel.device,
    )

    def along_z(rows: slice) -> None:
        planes_before[:, rows] = torch.fft.ifft(kernel[:, rows], dim=0)[near_z]

    def along_y_and_x(planes: slice) -> None:
        lattice = torch.fft.irfft2(planes_before[planes], s=(my, mx))
        lattice = lattice.index_select(1, near_y).index_select(2, near_x)
        planes_after[planes] = torch.fft.rfft2(lattice)

    in_pieces(
        along_z,
        my,
        mz * columns,
        kernel.device,
    )
    in_pieces(
        along_y_and_x,
        2 * nz,
        my * mx,
        kernel.device,
    )
    return _real_along_z(planes_after)


def _nearest(n: int, m: int) -> Tensor:
    """The places -n ... n - 1 on a periodic axis of m, the origin first."""
    place = torch.arange(-n, n)
    return torch.fft.ifftshift(place) % m


def _planes(
    volume: Tensor,
    my: int,
    mx: int,
) -> Tensor:
    """The transforms "nz my mx//2+1" of a volume's planes, padded to my and mx numbers."""
    nz = len(volume)
    dtype = torch.promote_types(volume.dtype, torch.complex64)
    spectrum = torch.empty(
        nz,
        my,
        mx // 2 + 1,
        dtype=dtype,
        device=volume.device,
    )

    def along_y_and_x(planes: slice) -> None:
        spectrum[planes] = torch.fft.rfft2(volume[planes].contiguous(), s=(my, mx))

    in_pieces(
        along_y_and_x,
        nz,
        my * mx,
        volume.device,
    )
    return spectrum


def _padded_along_z(rows: Tensor) -> Tensor:
    """The transforms "2nz ..." along z of rows "nz ..." of planes' transforms, padded to twice as
    many.
    """
    return torch.fft.fft(
        rows,
        n=2 * len(rows),
        dim=0,
    )


def _convolved(volume: Tensor, kernel: Tensor) -> Tensor:
    """K∗V "nz ny nx". z apart, as the planes of padding need no other axis; a part of the axes at
    once, so that little more than one spectrum is in memory.
    """
    nz, ny, nx = volume.shape
    my, mx = 2 * ny, 2 * nx
    spectrum = _planes(
        volume,
        my,
        mx,
    )
    curved = torch.empty_like(volume)

    def along_z(rows: slice) -> None:
        waves = _padded_along_z(spectrum[:, rows])
        waves *= kernel[:, rows]
        spectrum[:, rows] = torch.fft.ifft(waves, dim=0)[:nz]

    def back(planes: slice) -> None:
        kept = torch.fft.ifft(spectrum[planes], dim=1)[:, :ny]
        curved[planes] = torch.fft.irfft(kept, n=mx)[:, :, :nx]

    in_pieces(
        along_z,
        my,
        2 * nz * spectrum.shape[2],
        volume.device,
    )
    in_pieces(
        back,
        nz,
        my * mx,
        volume.device,
    )
    return curved


def _power(volume: Tensor, kernel: Tensor) -> Tensor:
    """⟨V, K∗V⟩, a float64 scalar, by Parseval's theorem: the FFTs there, and none back."""
    nz, ny, nx = volume.shape
    spectrum = _planes(
        volume,
        2 * ny,
        2 * nx,
    )
    of_row = torch.empty(
        2 * ny,
        dtype=torch.float64,
        device=volume.device,
    )

    def along_z(rows: slice) -> None:
        waves = _padded_along_z(spectrum[:, rows])
        powers = waves.real**2 + waves.imag**2
        powers *= kernel[:, rows]
        powers[..., 1:-1] *= 2  # rfftn leaves out the conjugates of others
        of_row[rows] = powers.sum((0, 2), dtype=torch.float64)

    in_pieces(
        along_z,
        2 * ny,
        2 * nz * spectrum.shape[2],
        volume.device,
    )
    return of_row.sum() / (8 * volume.numel())


class _Curvature(torch.autograd.Function):
    """K∗V; its gradient is of the same kind, as K is symmetric."""

    @staticmethod
    def forward(
        ctx: Any,
        volume: Tensor,
        kernel: Tensor,
    ) -> Tensor:
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
    def forward(
        ctx: Any,
        volume: Tensor,
        function: Quadratic,
    ) -> Tensor:
        if not ctx.needs_input_grad[0]:
            along = (volume * function.b).sum(dtype=torch.float64)
            return 0.5 * _power(volume, function.kernel) - along
        curved = _convolved(volume, function.kernel)
        of_plane = torch.empty(
            len(volume),
            dtype=torch.float64,
            device=volume.device,
        )

        def weigh(planes: slice) -> None:
            b = function.b[planes]
            terms = volume[planes] * (0.5 * curved[planes] - b)
            # float32 would lose a nat in a million
            of_plane[planes] = terms.sum((1, 2), dtype=torch.float64)
            curved[planes] -= b

        in_pieces(
            weigh,
            len(volume),
            volume[0].numel(),
            volume.device,
        )
        ctx.save_for_backward(curved)
        return of_plane.sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        factor = upstream.to(gradient.dtype)
        return factor * gradient, None
