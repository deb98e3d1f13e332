"""Sums of plane waves at arbitrary frequencies, on a lattice: points are spread onto an oversampled
Fourier grid with a compact kernel.

For frequencies q_p in cycles per voxel and values v_p, one member of each pair (q, v), (-q, v*)
being given, this computes

    f(x) = Σ_p v_p e^{2πi q_p·x} + complex conjugate on the lattice x = -size//2 ... size - 1 -
    size//2 of each axis,

a non-uniform FFT of type 1 (Dutt & Rokhlin 1993) with the Kaiser-Bessel window (Jackson 1991). The
grid has M ≥ 2.5 N cells along an edge: 1.25 times the 2N that the convolution kernel of the normal
equations needs; the data, which need N, come for free with it. Relative L2 error 2e-4 for the data
and for what the convolution kernel makes of a map (docs/decisions/0002-accumulation.md).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from instamap.fourier import kaiser_bessel
from instamap.fourier.kaiser_bessel import MARGIN, footprint, taps, window_transform

OVERSAMPLING = 1.25  # of a lattice of 2N points
SHEETS = 16  # of the grid transformed at once


class Grid:
    """Half of the Fourier grid (q_x ≥ 0, the other half being its mirror image) with three numbers
    in each cell.

    cells "M+2m M+2m M/2+2m 3" (with margin m = MARGIN, one more row at the end): real and imaginary
    part of the data, and the power.
    """

    def __init__(
        self, box: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ):
        self.box = box
        self.size = kaiser_bessel.grid_size(2 * box, OVERSAMPLING)
        edge = self.size + 2 * MARGIN + 1
        self.cells = torch.zeros(
            edge, edge, self.size // 2 + 2 * MARGIN + 2, 3, dtype=dtype, device=device
        )

    def clear(self) -> None:
        """Back to zero."""
        self.cells.zero_()

    def first_cells(self, frames: Tensor, plane: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates "V P 3" (x, y, z) in cells, whose whole part is the first cell that a point
        reaches, and the sign "V P 1" it got.

        frames "V 2 3": the first two rows of rotations; plane "P 2": frequencies (kx, ky) in
        components of the box.
        """
        return kaiser_bessel.first_cells(frames * (self.size / self.box), plane, self.size // 2)

    def spread(
        self, frames: Tensor, plane: Tensor, data: Tensor, power: Tensor, *, block: int = 2048
    ) -> None:
        """Add complex `data` "V P" and real `power` "V P" at the frequencies plane @ frames; in
        torch, on any device.
        """
        table = taps().to(self.cells)
        at, sign = (t.flatten(0, 1) for t in self.first_cells(frames, plane))
        values = torch.stack([data.real, data.imag, power], -1).flatten(0, 1) * torch.cat(
            [sign.abs(), sign, sign.abs()], -1
        )
        flat = self.cells.view(-1)
        for a, v in zip(at.split(block), values.split(block), strict=True):
            index, weights = footprint(a, table, self.cells.shape[:3])
            for channel in range(3):
                flat[channel:].scatter_add_(
                    0, 3 * index.view(-1), (weights * v[:, channel, None]).view(-1)
                )

    def data_lattice(self) -> Tensor:
        """The sum of the data's waves on the lattice "N N N" [z, y, x] with the origin at voxel N
        // 2.
        """
        return self._lattice(
            lambda cells: torch.view_as_complex(cells[..., :2].contiguous()),
            self.box,
            self.box // 2,
        )

    def power_lattice(self) -> Tensor:
        """The sum of the power's waves on "2N 2N 2N" with the origin at voxel N; zero at -N, which
        has no opposite.
        """
        full = self._lattice(lambda cells: cells[..., 2], 2 * self.box, self.box)
        full[0], full[:, 0], full[:, :, 0] = 0, 0, 0
        return full

    def _lattice(self, read: Callable[[Tensor], Tensor], size: int, origin: int) -> Tensor:
        """Inverse FFT of what `read` takes from the cells, axis by axis, each cropped at once;
        sheets of equal x in turn to save memory.
        """
        at = torch.arange(size, device=self.cells.device) - origin
        inverse = 1 / window_transform(at.double() / self.size).to(self.cells)
        half = torch.empty(
            size,
            size,
            self.size // 2 + 1,
            dtype=torch.promote_types(self.cells.dtype, torch.complex64),
            device=at.device,
        )
        for start in range(0, half.shape[2], SHEETS):
            sheets = fold(
                self.cells, read, range(start, min(start + SHEETS, half.shape[2])), self.size
            )
            for axis in (0, 1):
                sheets = torch.fft.ifft(sheets, dim=axis, norm="forward").index_select(
                    axis, at % self.size
                )
            half[:, :, start : start + SHEETS] = sheets * (
                inverse[:, None, None] * inverse[:, None]
            )
        return (
            torch.fft.irfft(half, n=self.size, dim=2, norm="forward")
            .index_select(2, at % self.size)
            .mul_(inverse)
        )


def fold(cells: Tensor, read: Callable[[Tensor], Tensor], sheets: range, size: int) -> Tensor:
    """Some x of the Hermitian half "M M sheets" that an inverse FFT wants, of cells with margins:
    G(c) = g(c) + g(-c)*, c periodic.
    """
    middle = size // 2
    # cell c is at c + M/2 + m on the first two axes, for c = -M/2-m ... M/2+m, and at c + m on the
    # third
    m = MARGIN
    half = read(cells[:, :, m + sheets.start : m + sheets.stop]).clone()
    for i, x in enumerate(sheets):
        for opposite in [m - x] * (x <= m) + [m + size - x] * (x >= middle - m):
            half[:, :, i] += read(cells[:, :, opposite]).flip(0, 1).conj()
    for axis in (0, 1):
        inner = half.narrow(axis, m, size).clone()
        inner.narrow(axis, size - m, m).add_(half.narrow(axis, 0, m))
        inner.narrow(axis, 0, m + 1).add_(half.narrow(axis, size + m, m + 1))
        half = inner.roll(-middle, axis)
    return half
