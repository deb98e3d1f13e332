"""Cubes of voxels within the box of a map: where a molecule is, and all that need be computed."""

from dataclasses import dataclass

from torch import Tensor

from instamap.geometry import grids


@dataclass(frozen=True)
class Cube:
    """The voxels low..high-1 along each axis of a box of `box` voxels. Raises ValueError where they
    are none or reach beyond the box.
    """

    box: int
    low: int
    high: int

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= self.box:
            raise ValueError(f"{self} are no cube; the limits must be in the box")

    @staticmethod
    def whole(box: int) -> "Cube":
        """All voxels of a box."""
        return Cube(box, 0, box)

    @staticmethod
    def around(chosen: Tensor, within: "Cube | None" = None) -> "Cube":
        """The smallest cube that holds all voxels of `chosen` "D D D" (bool), a little larger where
        FFTs of twice its edge are faster for it, which no prime factor above 5 makes them by half.

        within: what it is not to leave; what is chosen beyond it does not count. Raises ValueError
        where nothing is chosen.
        """
        limits = within or Cube.whole(len(chosen))
        occupied = grids.extent(limits.of(chosen))
        if not occupied:
            raise ValueError(f"nothing is chosen in {limits}")
        first = limits.low + min(low for low, _ in occupied)
        end = limits.low + max(high for _, high in occupied)
        return Cube(limits.box, first, end).transformed_fast(limits)

    def centred(self) -> "Cube":
        """The least cube around this one whose voxel n // 2 is the box's voxel D // 2, so that it
        can stand for the box; all of the box where that is less.
        """
        middle = self.box // 2
        reach = max(middle - self.low, self.high - middle)
        if 2 * reach >= self.box:
            return Cube.whole(self.box)
        return Cube(self.box, middle - reach, middle + reach)

    def within(self, outer: "Cube") -> "Cube":
        """This cube in the voxels of `outer`, as if that were the box. Raises ValueError where it
        is not inside.
        """
        along = outer.slices_of(self)[0]
        return Cube(outer.edge, along.start, along.stop)

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the box."""
        return self.edge == self.box

    def transformed_fast(self, within: "Cube") -> "Cube":
        """The least cube around this one whose doubled edge has no prime factor above 5."""
        edge = grids.fast_edge(2 * self.edge) // 2
        edge = min(edge, within.edge)
        low = self.low - (edge - self.edge) // 2
        low = min(low, within.high - edge)
        low = max(within.low, low)
        return Cube(self.box, low, low + edge)

    @property
    def edge(self) -> int:
        """Voxels along an edge."""
        return self.high - self.low

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The cube's place in a map."""
        along = slice(self.low, self.high)
        return (along, along, along)

    def slices_of(self, inner: "Cube") -> tuple[slice, slice, slice]:
        """The place of another cube in this one. Raises ValueError where it is not inside."""
        if not self.holds(inner):
            raise ValueError(f"{inner} are not all among {self}")
        along = slice(inner.low - self.low, inner.high - self.low)
        return (along, along, along)

    def holds(self, other: "Cube") -> bool:
        """Whether another cube of the same box lies inside this one."""
        return self.box == other.box and self.low <= other.low and other.high <= self.high

    def of(self, volume: Tensor) -> Tensor:
        """The cube's voxels "n n n" of a map "D D D"."""
        return volume[self.slices]

    def whole_map(self, values: Tensor) -> Tensor:
        """The map "D D D" that has these values "n n n" in the cube and is empty elsewhere."""
        if self.is_whole:
            return values
        volume = grids.empty_map(self.box, values)
        volume[self.slices] = values
        return volume

    def __str__(self) -> str:
        return f"voxels {self.low} to {self.high - 1} of {self.box}"
