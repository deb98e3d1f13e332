"""Blocks of voxels within the box of a map, no longer along any axis than what they hold."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from instamap.geometry import grids
from instamap.geometry.cube import Cube


@dataclass(frozen=True)
class Block:
    """The voxels low..high-1 along each axis (z, y, x) of a box of `box` voxels. Raises ValueError
    where they are none or reach beyond the box.
    """

    box: int
    low: tuple[int, int, int]
    high: tuple[int, int, int]

    def __post_init__(self) -> None:
        for low, high in self.limits:
            if not 0 <= low < high <= self.box:
                raise ValueError(f"{self} are no block; the limits must be in the box")

    @staticmethod
    def of_cube(cube: Cube) -> "Block":
        """All voxels of a cube."""
        return Block(cube.box, (cube.low,) * 3, (cube.high,) * 3)

    @staticmethod
    def around(chosen: Tensor, within: Cube | None = None) -> "Block":
        """The smallest block that holds all voxels of `chosen` "D D D" (bool), each of its sides a
        little longer where FFTs of twice that are faster: see `Cube.around`.
        """
        limits = within or Cube.whole(len(chosen))
        occupied = grids.extent(limits.of(chosen))
        if not occupied:
            raise ValueError(f"nothing is chosen in {limits}")
        cubes = []
        for low, high in occupied:
            cube = Cube(limits.box, limits.low + low, limits.low + high)
            cubes.append(cube.transformed_fast(limits))
        z, y, x = cubes
        return Block(limits.box, (z.low, y.low, x.low), (z.high, y.high, x.high))

    @property
    def limits(self) -> Iterator[tuple[int, int]]:
        """Low and high along each axis (z, y, x)."""
        return zip(self.low, self.high, strict=True)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis."""
        z, y, x = (high - low for low, high in self.limits)
        return (z, y, x)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The block's place in a map."""
        z, y, x = (slice(low, high) for low, high in self.limits)
        return (z, y, x)

    def slices_in(self, cube: Cube) -> tuple[slice, slice, slice]:
        """The block's place in a cube. Raises ValueError where it is not inside."""
        inside = cube.low <= min(self.low) and max(self.high) <= cube.high
        if self.box != cube.box or not inside:
            raise ValueError(f"{self} are not all among {cube}")
        z, y, x = (slice(low - cube.low, high - cube.low) for low, high in self.limits)
        return (z, y, x)

    def of(self, volume: Tensor) -> Tensor:
        """The block's voxels "nz ny nx" of a map "D D D"."""
        return volume[self.slices]

    def whole_map(self, values: Tensor) -> Tensor:
        """The map "D D D" that has these values "nz ny nx" in the block and is empty elsewhere."""
        volume = grids.empty_map(self.box, values)
        volume[self.slices] = values
        return volume

    def __str__(self) -> str:
        sides = zip("zyx", self.limits, strict=True)
        limits = ", ".join(f"{axis} {low} to {high - 1}" for axis, (low, high) in sides)
        return f"voxels {limits} of {self.box}"
