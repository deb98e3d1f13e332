"""What Gaussian noise lets the images say of a density that all share: the statistics b and K of
the normal equations.

Image i, with its origin at pixel D // 2, has the discrete Fourier transform F_i(k), and a map V [z,
y, x] of N = D voxels an edge predicts

    P_i(k) = C_i(k) e^{2πi k·origin_i} Δ Σ_x V(x) e^{-2πi q·x},    q = A_iᵀ (k, 0),

with Δ the pixel size in Å. Noise of variance σ²(shell) in the pixels of an unfiltered image has D²
σ² in a Fourier component, so

    -log p = Σ_i w_i ½ Σ_k |F_i(k) - P_i(k)|² / (D² σ²(k)) + const = ½ ⟨V, K∗V⟩ - ⟨b, V⟩ + ½ energy
    + const.

The sum is over the components with |k| < D/2 of the full plane: those inside the Nyquist circle,
which leaves out that circle itself and so the row and the column -D/2 of an even box. A shell of
infinite variance does not count.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from instamap.errors import DataError
from instamap.fourier.gridding import Grid
from instamap.geometry.cube import Cube
from instamap.tensor_files import DamagedFile, read_npz, reason_of, write_npz

VERSION = 3  # of the files
TENSORS = ("b", "kernel")
NUMBERS_AT_ONCE = 1 << 18  # that are transformed together
SAME_PIXEL_SIZE = 1e-4  # relative difference that is mere rounding


@dataclass(frozen=True)
class Statistics:
    """All that a set of images says of a map that is zero outside a cube; sets that are disjoint
    add.

    cube: the voxels of the images' box for which they were gathered, n an edge. pixel_size: Å. b "n
    n n": Σ_i w_i A_iᴴ C_i y_i / σ², per unit of density. kernel "2n 2n n+1": the Fourier transform
    (rfftn, real since K is real and even) of K on the periodic lattice of 2n. count: images.
    weight: Σ w_i. energy: Σ_i w_i Σ_k |F_i|² / (D² σ²), nan if any image was multiplied by its CTF,
    as what its zeros removed is not known.
    """

    cube: Cube
    pixel_size: float
    b: Tensor
    kernel: Tensor
    count: int
    weight: float
    energy: float

    @staticmethod
    def empty(
        cube: Cube,
        pixel_size: float,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> "Statistics":
        """The statistics of no image."""
        n = cube.edge
        b = torch.zeros(n, n, n, dtype=dtype, device=device)
        kernel = torch.zeros(2 * n, 2 * n, n + 1, dtype=dtype, device=device)
        return Statistics(cube, pixel_size, b, kernel, 0, 0.0, 0.0)

    @staticmethod
    def from_grid(
        grid: Grid,
        pixel_size: float,
        count: int,
        weight: float,
        energy: float,
    ) -> "Statistics":
        """The statistics of images whose weighted slices were spread on a Fourier grid, which is
        emptied: it takes more memory than anything else.
        """
        b = grid.data_lattice()
        lattice = grid.power_lattice()
        grid.clear()
        kernel = _real_transform(lattice)
        return Statistics(grid.cube, pixel_size, b, kernel, count, weight, energy)

    @property
    def edge(self) -> int:
        """n: voxels along an edge of the cube."""
        return self.cube.edge

    def __add__(self, other: "Statistics") -> "Statistics":
        """The statistics of the union of two disjoint sets of images. Raises DataError if cubes or
        pixel sizes differ.
        """
        difference = abs(self.pixel_size - other.pixel_size)
        if self.cube != other.cube or difference > SAME_PIXEL_SIZE * self.pixel_size:
            raise DataError(
                f"statistics of {self.cube} of {self.pixel_size:g} Å cannot be added to those"
                f" of {other.cube} of {other.pixel_size:g} Å; scale the images to one box and"
                " pixel size, and gather both for one cube"
            )
        return replace(
            self,
            b=self.b + other.b,
            kernel=self.kernel + other.kernel,
            count=self.count + other.count,
            weight=self.weight + other.weight,
            energy=self.energy + other.energy,
        )

    def scaled(self, factor: float) -> "Statistics":
        """The statistics of the same images with their weights times a factor."""
        return replace(
            self,
            b=factor * self.b,
            kernel=factor * self.kernel,
            weight=factor * self.weight,
            energy=factor * self.energy,
        )

    def crop(self, cube: Cube) -> "Statistics":
        """The statistics for maps that are zero outside a smaller cube: the same loss, smaller
        FFTs. Raises ValueError for a cube that is not inside this one.
        """
        if cube == self.cube:
            return self
        inside = self.cube.slices_of(cube)
        n = cube.edge
        size = 2 * self.edge
        lattice = torch.fft.irfftn(self.kernel, s=(size, size, size))
        place = torch.arange(-n, n, device=lattice.device)
        near = torch.fft.ifftshift(place) % size
        for axis in range(3):
            lattice = lattice.index_select(axis, near)
        kernel = _real_transform(lattice)
        b = self.b[inside]
        return replace(self, cube=cube, b=b.contiguous(), kernel=kernel)

    def to(self, *args: Any) -> "Statistics":
        """A copy of another dtype or on another device: see Tensor.to."""
        b = self.b.to(*args)
        kernel = self.kernel.to(*args)
        return replace(self, b=b, kernel=kernel)

    def apply(self, volume: Tensor) -> Tensor:
        """K∗V "n n n" of a map V "n n n": the Hessian of the loss times V, differentiable."""
        curved: Tensor = _Curvature.apply(volume, self.kernel)
        return curved

    def loss(self, volume: Tensor) -> Tensor:
        """½⟨V, K∗V⟩ - ⟨b, V⟩, a float64 scalar: -log p (nats, whole set) of a map "n n n" less that
        of the empty map.

        Its gradient K∗V - b comes from the same pair of FFTs.
        """
        loss: Tensor = _Loss.apply(volume, self)
        return loss

    def save(self, path: str | Path) -> None:
        """Write to a .npz file with a checksum, whole or not at all. Raises OutputError where the
        file system refuses.
        """
        arrays = {"version": np.array(VERSION)}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                arrays[name] = value.cpu().numpy()
            elif isinstance(value, Cube):
                arrays[name] = np.array([value.box, value.low, value.high])
            else:
                arrays[name] = np.array(value)
        write_npz(path, arrays)

    @staticmethod
    def load(path: str | Path) -> "Statistics":
        """Read what `save` wrote. Raises DataError for a file that is missing, damaged, not of this
        kind or of another version.
        """
        try:
            found = read_npz(path)
        except FileNotFoundError:
            raise DataError(f"statistics '{path}' do not exist; check the path") from None
        except (OSError, DamagedFile) as error:
            raise DataError(
                f"'{path}' is not a whole file of statistics: {reason_of(error)}; write it again"
            ) from None
        names = {field.name for field in fields(Statistics)}
        version = found.pop("version", None)
        if set(found) != names or version is None or not np.array_equal(version, VERSION):
            raise DataError(
                f"'{path}' does not hold statistics of version {VERSION}; write it again with this"
                " version of instamap"
            )
        cube = _check_arrays(found, path)
        values: dict[str, Any] = {"cube": cube}
        for name, array in found.items():
            if name == "cube":
                continue
            if array.ndim:
                values[name] = torch.from_numpy(array)
            else:
                values[name] = array.item()
        return Statistics(**values)


def _check_arrays(arrays: dict[str, np.ndarray], path: str | Path) -> Cube:
    """The cube that they are of. Raises DataError where b and the kernel are not real numbers of
    it, or the rest is no number.
    """
    for name, array in arrays.items():
        allowed = "iu" if name in ("cube", "count") else "fiu"
        if name in TENSORS:
            allowed = "f"
        elif array.shape != ((3,) if name == "cube" else ()):
            allowed = ""
        if array.dtype.kind not in allowed:
            raise DataError(f"'{path}' has statistics whose {name} is no number; write it again")
    box, low, high = (int(number) for number in arrays["cube"])
    n = high - low
    shapes = (arrays["b"].shape, arrays["kernel"].shape)
    if shapes != ((n, n, n), (2 * n, 2 * n, n + 1)):
        raise DataError(
            f"'{path}' has statistics of shapes {shapes[0]} and {shapes[1]}, which are not of"
            f" {n} voxels an edge; write it again"
        )
    try:
        return Cube(box, low, high)
    except ValueError as error:
        raise DataError(f"'{path}' has statistics of no cube: {error}; write it again") from None


def kernel_of(grid: Grid, number: int = 0) -> Tensor:
    """The transform "2n 2n n+1" of the kernel K of one of the sums of power on a grid, by its
    number from 0.
    """
    return _real_transform(grid.power_lattice(number))


def _real_transform(lattice: Tensor) -> Tensor:
    """The Fourier transform (rfftn) of a lattice that is real and even about its first number."""
    m = len(lattice)
    spectrum = _planes(lattice, m)
    kernel = torch.empty(spectrum.shape, dtype=lattice.dtype, device=lattice.device)
    for rows in _at_once(m, spectrum[:, 0].numel()):
        waves = torch.fft.fft(spectrum[:, rows], dim=0)
        kernel[:, rows] = waves.real
    return kernel


def _planes(volume: Tensor, m: int) -> Tensor:
    """The transforms "n m m//2+1" of a volume's planes, padded to m numbers an edge."""
    n = len(volume)
    dtype = torch.promote_types(volume.dtype, torch.complex64)
    spectrum = torch.empty(n, m, m // 2 + 1, dtype=dtype, device=volume.device)
    for planes in _at_once(n, m * m):
        spectrum[planes] = torch.fft.rfft2(volume[planes].contiguous(), s=(m, m))
    return spectrum


def _convolved(volume: Tensor, kernel: Tensor) -> Tensor:
    """K∗V "n n n". z apart, as the planes of padding need no other axis; a part of the axes at
    once, so that little more than one spectrum is in memory.
    """
    n = len(volume)
    m = 2 * n
    spectrum = _planes(volume, m)
    for rows in _at_once(m, m * (n + 1)):
        waves = torch.fft.fft(spectrum[:, rows], n=m, dim=0)
        waves *= kernel[:, rows]
        spectrum[:, rows] = torch.fft.ifft(waves, dim=0)[:n]
    curved = torch.empty_like(volume)
    for planes in _at_once(n, m * m):
        curved[planes] = torch.fft.irfft2(spectrum[planes], s=(m, m))[:, :n, :n]
    return curved


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


class _Loss(torch.autograd.Function):
    """The loss of a map and, from the same pair of FFTs, its gradient."""

    @staticmethod
    def forward(ctx: Any, volume: Tensor, statistics: Statistics) -> Tensor:
        curved = statistics.apply(volume)
        losses = []
        for planes in _at_once(len(volume), volume[0].numel()):
            b = statistics.b[planes]
            terms = volume[planes] * (0.5 * curved[planes] - b)
            losses.append(terms.sum(dtype=torch.float64))  # float32 would lose a nat in a million
            curved[planes] -= b
        ctx.save_for_backward(curved)
        return torch.stack(losses).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        factor = upstream.to(gradient.dtype)
        return factor * gradient, None
