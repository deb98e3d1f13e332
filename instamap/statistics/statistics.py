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

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from instamap.errors import DataError
from instamap.fourier.gridding import Grid
from instamap.geometry.block import Block
from instamap.geometry.cube import Cube
from instamap.statistics.quadratic import Quadratic, curvature, real_transform
from instamap.tensor_files import DamagedFile, read_npz, reason_of, write_npz

VERSION = 3  # of the files
TENSORS = ("b", "kernel")
SAME_PIXEL_SIZE = 1e-4  # relative difference that is mere rounding


@dataclass(frozen=True)
class Statistics:
    """All that a set of images says of a map that is zero outside a cube; sets that are disjoint
    add.

    cube: the voxels of the images' box for which they were gathered, n an edge. pixel_size: Å. b "n
    n n": Σ_i w_i A_iᴴ C_i y_i / σ², per unit of density. kernel "n+1 2n 2n": the Fourier transform,
    axes x, y, z, of K on the periodic lattice of 2n (see Quadratic). count: images. weight: Σ w_i.
    energy: Σ_i w_i Σ_k |F_i|² / (D² σ²), nan if any image was multiplied by its CTF, as what its
    zeros removed is not known.
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
        kernel = torch.zeros(n + 1, 2 * n, 2 * n, dtype=dtype, device=device)
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
        kernel = real_transform(lattice)
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
        part = self.within(Block.of_cube(cube))
        return replace(self, cube=cube, b=part.b, kernel=part.kernel)

    def within(self, block: Block) -> Quadratic:
        """The loss of maps that are zero outside a block, whose sides may differ. Raises ValueError
        for a block that is not inside the cube.
        """
        return self.quadratic.crop(block.slices_in(self.cube))

    @property
    def quadratic(self) -> Quadratic:
        """The loss of maps of the cube."""
        return Quadratic(self.b, self.kernel)

    def to(self, *args: Any) -> "Statistics":
        """A copy of another dtype or on another device: see Tensor.to."""
        b = self.b.to(*args)
        kernel = self.kernel.to(*args)
        return replace(self, b=b, kernel=kernel)

    def apply(self, volume: Tensor) -> Tensor:
        """K∗V "n n n" of a map V "n n n": the Hessian of the loss times V, differentiable."""
        return curvature(volume, self.kernel)

    def loss(self, volume: Tensor) -> Tensor:
        """½⟨V, K∗V⟩ - ⟨b, V⟩, a float64 scalar: -log p (nats, whole set) of a map "n n n" less that
        of the empty map.
        """
        return self.quadratic(volume)

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
    if shapes != ((n, n, n), (n + 1, 2 * n, 2 * n)):
        raise DataError(
            f"'{path}' has statistics of shapes {shapes[0]} and {shapes[1]}, which are not of"
            f" {n} voxels an edge, or of another version; write it again"
        )
    try:
        return Cube(box, low, high)
    except ValueError as error:
        raise DataError(f"'{path}' has statistics of no cube: {error}; write it again") from None


def kernel_of(grid: Grid, number: int = 0) -> Tensor:
    """The transform "n+1 2n 2n" of the kernel K of one of the sums of power on a grid, by its
    number from 0.
    """
    return real_transform(grid.power_lattice(number))
