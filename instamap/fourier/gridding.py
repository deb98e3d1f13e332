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
from instamap.threads import in_pieces

OVERSAMPLING = 1.25  # of a lattice of 2N points
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

    def first_cells(
        self,
        frames: Tensor,
        plane: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Coordinates "V P 3" (x, y, z) in cells, whose whole part is the first cell that a point
        reaches, and the sign "V P 1" it got.

        frames "V 2 3": the first two rows of rotations; plane "P 2": frequencies (kx, ky) in
        components of the box.
        """
        scaled = frames * self.cells_per_component
        return kaiser_bessel.first_cells(
            scaled,
            plane,
            self.size // 2,
        )

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
            index, weights = footprint(
                points,
                table,
                shape,
            )
            place = CHANNELS * index.view(-1)
            for channel in range(CHANNELS):
                terms = weights * value[:, channel, None]
                flat[channel:].scatter_add_(
                    0,
                    place,
                    terms.view(-1),
                )

    def data_lattice(self, number: int = 0) -> Tensor:
        """The sum of the data's waves on the voxels "N N N" [z, y, x] of the cube, with the origin
        in the middle of the box.

        number: which of the sums, from 0.
        """

        def read(cells: Tensor) -> Tensor:
            pairs = cells[..., 2 * number : 2 * number + 2]
            return torch.view_as_complex(pairs.contiguous())

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
        axis, each cropped at once: y in planes of z, then z and x in planes of y, so that what is
        transformed together is in a cache. It is a part of a larger block.
        """
        self._fold_margins()
        size = len(position)
        columns = self.size // 2 + 1
        position = position.to(self.device)
        frequency = position.double() / self.size
        undo = 1 / window_transform(frequency).to(self.cells)
        # Cells begin at -M/2 on the first two axes, which changes the sign of every other position.
        shifted = undo * (1 - 2 * (position % 2))
        rows = position % self.size
        half = torch.empty(
            self.size,
            size,
            columns,
            dtype=torch.promote_types(self.cells.dtype, torch.complex64),
            device=self.device,
        )
        m = MARGIN
        inner = self.cells[m : m + self.size, m : m + self.size, m : m + columns]

        def along_y(planes: slice) -> None:
            waves = torch.fft.ifft(
                read(inner[planes]),
                dim=1,
                norm="forward",
            )
            half[planes] = waves.index_select(1, rows)

        in_place = torch.view_as_real(half).flatten(2)
        lattice = in_place[:size, :, :size]  # of planes that are not needed any more

        def along_z_and_x(planes: slice) -> None:
            waves = torch.fft.ifft(
                half[:, planes],
                dim=0,
                norm="forward",
            )
            kept = waves.index_select(0, rows)
            kept *= shifted[:, None, None] * shifted[planes, None]
            # What lies opposite to a cell of the first and the last column is in the same column.
            kept[..., 0] = 2 * kept[..., 0].real
            kept[..., -1] = 2 * kept[..., -1].real
            values = torch.fft.irfft(
                kept,
                n=self.size,
                dim=2,
                norm="forward",
            )
            lattice[:, planes] = values.index_select(2, rows) * undo

        in_pieces(
            along_y,
            self.size,
            self.size * columns,
            self.device,
        )
        in_pieces(
            along_z_and_x,
            size,
            self.size * columns,
            self.device,
        )
        return lattice

    def _fold_margins(self) -> None:
        """Moves what is in the margins to the cells that it stands for: those at the other end, as
        the grid is periodic, or the opposite ones, conjugate.
        """
        cells = self.cells
        m = MARGIN
        middle = self.size // 2
        for axis in (0, 1):
            for margin, to in ((0, self.size), (m + self.size, m)):
                count = m if margin == 0 else m + 1
                beyond = cells.narrow(
                    axis,
                    margin,
                    count,
                )
                cells.narrow(
                    axis,
                    to,
                    count,
                ).add_(beyond)
                beyond.zero_()
        inner = cells[m : m + self.size, m : m + self.size]
        sign = torch.ones(
            cells.shape[-1],
            dtype=self.dtype,
            device=self.device,
        )
        sign[1 : 2 * self.data_sums : 2] = -1  # of imaginary parts
        for step in range(1, m + 1):
            for margin, to in ((m - step, m + step), (m + middle + step, m + middle - step)):
                beyond = inner[:, :, margin]
                opposite = beyond.flip(0, 1).roll((1, 1), (0, 1))
                inner[:, :, to] += opposite * sign
                beyond.zero_()
