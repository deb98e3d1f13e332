"""Sums of plane waves at arbitrary frequencies, on a lattice: points are spread onto an oversampled
Fourier grid with a compact kernel.

For frequencies q_p in cycles per voxel and values v_p, one member of each pair (q, v), (-q, v*)
being given, this computes

    f(x) = Σ_p v_p e^{2πi q_p·x} + complex conjugate

on the lattice x = -size//2 ... size - 1 - size//2 of each axis,

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
from instamap.geometry.cube import Cube

OVERSAMPLING = 1.25  # of a lattice of 2N points
SHEETS_AT_ONCE = 16  # of the grid, transformed together
POINTS_AT_ONCE = 2048  # spread together in torch
CHANNELS = 3  # numbers in a cell with one sum of data and one of power


class Grid:
    """Half of the Fourier grid (q_x ≥ 0, the other half being its mirror image) with sums of data
    and of power in each cell.

    cube: where the sums are wanted, N voxels an edge of the box whose components frequencies are
    given in; the middle of the box is in it. data_sums, power_sums: how many sums of each there
    are, which differ in the weights of slices. cells "M+2m M+2m M/2+2m C" (with margin m = MARGIN,
    one more row at the end): real and imaginary part of each sum of data, then each of power.
    Raises ValueError for a cube without the middle.
    """

    def __init__(
        self,
        cube: Cube,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        data_sums: int = 1,
        power_sums: int = 1,
    ) -> None:
        self.cube = cube
        self.data_sums = data_sums
        self.power_sums = power_sums
        self.origin = cube.box // 2 - cube.low
        if not 0 <= self.origin <= cube.edge:
            raise ValueError(f"{cube} lie beside its middle, which waves are told about")
        self.size = kaiser_bessel.grid_size(2 * cube.edge, OVERSAMPLING)
        self.dtype = dtype
        self.device = torch.device(device)
        self._cells: Tensor | None = None

    @property
    def cells(self) -> Tensor:
        """The numbers; memory is taken for them when they are first asked for."""
        if self._cells is None:
            edge = self.size + 2 * MARGIN + 1
            width = self.size // 2 + 2 * MARGIN + 2
            self._cells = torch.zeros(
                edge,
                edge,
                width,
                2 * self.data_sums + self.power_sums,
                dtype=self.dtype,
                device=self.device,
            )
        return self._cells

    @property
    def cells_per_component(self) -> float:
        """Cells between neighbouring Fourier components of the box."""
        return self.size / self.cube.box

    def clear(self) -> None:
        """Sets all cells back to zero, and gives their memory back until they are asked for."""
        self._cells = None

    def first_cells(self, frames: Tensor, plane: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates "V P 3" (x, y, z) in cells, whose whole part is the first cell that a point
        reaches, and the sign "V P 1" it got.

        frames "V 2 3": the first two rows of rotations; plane "P 2": frequencies (kx, ky) in
        components of the box.
        """
        scaled = frames * self.cells_per_component
        return kaiser_bessel.first_cells(scaled, plane, self.size // 2)

    def spread(
        self,
        frames: Tensor,
        plane: Tensor,
        data: Tensor,
        power: Tensor,
        *,
        block: int = POINTS_AT_ONCE,
    ) -> None:
        """Add complex `data` "V P" and real `power` "V P" at the frequencies plane @ frames, to a
        grid with one sum of each; in torch, on any device.
        """
        table = taps().to(self.cells)
        at, sign = self.first_cells(frames, plane)
        one = sign.abs()
        signs = torch.cat([one, sign, one], -1)
        values = torch.stack(
            [
                data.real,
                data.imag,
                power,
            ],
            -1,
        )
        signed = (values * signs).flatten(0, 1)
        shape = self.cells.shape[:3]
        flat = self.cells.view(-1)
        chunks = zip(
            at.flatten(0, 1).split(block),
            signed.split(block),
            strict=True,
        )
        for points, value in chunks:
            index, weights = footprint(points, table, shape)
            place = CHANNELS * index.view(-1)
            for channel in range(CHANNELS):
                terms = weights * value[:, channel, None]
                flat[channel:].scatter_add_(0, place, terms.view(-1))

    def data_lattice(self, number: int = 0) -> Tensor:
        """The sum of the data's waves on the voxels "N N N" [z, y, x] of the cube, with the origin
        in the middle of the box.

        number: which of the sums, from 0.
        """

        def read(cells: Tensor) -> Tensor:
            pairs = cells[..., 2 * number : 2 * number + 2].contiguous()
            return torch.view_as_complex(pairs)

        position = torch.arange(self.cube.edge) - self.origin
        lattice = self._lattice(read, position)
        return lattice.contiguous()

    def power_lattice(self, number: int = 0) -> Tensor:
        """The sum of the power's waves on the periodic lattice "2N 2N 2N" with the origin first;
        zero at -N, which has no opposite.

        number: which of the sums, from 0.
        """

        def read(cells: Tensor) -> Tensor:
            return cells[..., 2 * self.data_sums + number]

        edge = self.cube.edge
        position = torch.fft.ifftshift(torch.arange(-edge, edge))
        full = self._lattice(read, position)
        full[edge] = 0
        full[:, edge] = 0
        full[:, :, edge] = 0
        return full

    def _lattice(
        self,
        read: Callable[[Tensor], Tensor],
        position: Tensor,
    ) -> Tensor:
        """Inverse FFT of what `read` takes from the cells at positions "n" along each axis, axis by
        axis, each cropped at once; sheets in turn to save memory. It is a part of a larger block.
        """
        device = self.device
        size = len(position)
        position = position.to(device)
        frequency = position.double() / self.size
        undo = 1 / window_transform(frequency).to(self.cells)
        in_sheet = undo[:, None, None] * undo[:, None]
        rows = position % self.size
        width = self.size // 2 + 1
        half = torch.empty(
            size,
            size,
            width,
            dtype=torch.promote_types(self.cells.dtype, torch.complex64),
            device=device,
        )
        for start in range(0, width, SHEETS_AT_ONCE):
            stop = min(start + SHEETS_AT_ONCE, width)
            sheets = fold(
                self.cells,
                read,
                range(start, stop),
                self.size,
            )
            for axis in (0, 1):
                waves = torch.fft.ifft(sheets, dim=axis, norm="forward")
                sheets = waves.index_select(axis, rows)
            half[:, :, start:stop] = sheets * in_sheet
        in_place = torch.view_as_real(half).flatten(2)
        lattice = in_place[:, :, :size]  # of each row, which is not needed any more
        for start in range(0, size, SHEETS_AT_ONCE):
            sheets = half[start : start + SHEETS_AT_ONCE]
            waves = torch.fft.irfft(sheets, n=self.size, dim=2, norm="forward")
            lattice[start : start + SHEETS_AT_ONCE] = waves.index_select(2, rows)
        return lattice.mul_(undo)


def fold(
    cells: Tensor,
    read: Callable[[Tensor], Tensor],
    sheets: range,
    size: int,
) -> Tensor:
    """Sheets "M M sheets" of the Hermitian half that an inverse FFT wants, of cells with margins.

    sheets: their x. G(c) = g(c) + g(-c)*, c periodic, with what `read` takes from the cells as g.
    """
    middle = size // 2
    # Cell c is at c + M/2 + m on the first two axes, for c = -M/2-m ... M/2+m, and at c + m on the
    # third.
    m = MARGIN
    inner = slice(m + sheets.start, m + sheets.stop)
    half = read(cells[:, :, inner]).clone()
    for i, x in enumerate(sheets):
        if x <= m:
            half[:, :, i] += _opposite(read, cells, m - x)
        if x >= middle - m:
            half[:, :, i] += _opposite(read, cells, m + size - x)
    for axis in (0, 1):
        half = _without_margins(half, axis, size)
        half = half.roll(-middle, axis)
    return half


def _opposite(
    read: Callable[[Tensor], Tensor],
    cells: Tensor,
    sheet: int,
) -> Tensor:
    """The sheet that lies opposite to one of the cells', conjugate."""
    values = read(cells[:, :, sheet])
    return values.flip(0, 1).conj()


def _without_margins(
    half: Tensor,
    axis: int,
    size: int,
) -> Tensor:
    """The `size` inner cells of an axis, with what its margins hold added at the other end."""
    m = MARGIN
    inner = half.narrow(axis, m, size).clone()
    end = inner.narrow(axis, size - m, m)
    start = inner.narrow(axis, 0, m + 1)
    end.add_(half.narrow(axis, 0, m))
    start.add_(half.narrow(axis, size + m, m + 1))
    return inner
