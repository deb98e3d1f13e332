"""Regions of a motion: those that a person names, and the wells of an energy profile."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from instamap.errors import OptionError
from instamap.motion.selection import low_and_high

MIN_BARRIER = 1.0  # kT above the shallower of two wells: what is lower parts nothing


@dataclass(frozen=True)
class Region:
    """A part of the coordinates: `bounds` of the first ones, low and high; others are free."""

    name: str
    bounds: tuple[tuple[float, float], ...]

    def contains(self, z: Tensor) -> Tensor:
        """Which of the coordinates "K L" are inside, the lower bound included."""
        inside = torch.ones(len(z), dtype=torch.bool)
        for (low, high), values in zip(self.bounds, z.T, strict=False):
            inside &= (values >= low) & (values < high)
        return inside

    @property
    def first_bounds(self) -> str:
        """The bounds of the first coordinate, in words."""
        low, high = self.bounds[0]
        if not math.isfinite(low):
            return f"below {high:.3g}" if math.isfinite(high) else "all"
        return f"{low:.3g} to {high:.3g}" if math.isfinite(high) else f"{low:.3g} and above"

    def record(self) -> list[list[float | None]]:
        """The bounds, None where there is none."""
        return [[_finite(low), _finite(high)] for low, high in self.bounds]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def parse(words: Sequence[str], latent: int) -> list[Region]:
    """The regions of "name=low:high", with further bounds after commas for further coordinates.

    Either end may be left out. Raises OptionError.
    """
    regions: list[Region] = []
    for text in words:
        name, equals, bounds = text.partition("=")
        if not name.strip() or not equals:
            raise OptionError(
                f'region is "{text}"; it must be a name and bounds, such as "closed=-1:0"'
            )
        pairs = [_bounds(text, word) for word in bounds.split(",")]
        if len(pairs) > latent:
            raise OptionError(
                f'region "{text}" has bounds of {len(pairs)} coordinates, but particles have'
                f" {latent}; leave out the others"
            )
        if name in [region.name for region in regions]:
            raise OptionError(f"region '{name}' is given twice; give each its own name")
        regions.append(Region(name, tuple(pairs)))
    return regions


def _bounds(text: str, word: str) -> tuple[float, float]:
    """The numbers of "low:high"; infinite where one is left out."""
    try:
        low, high = low_and_high(word, ":")
    except ValueError:
        raise OptionError(
            f'region is "{text}"; its bounds must be two numbers with a colon between them, such as'
            ' "closed=-1:0", either of which may be left out'
        ) from None
    if not low < high:
        raise OptionError(f'region is "{text}"; its first bound must be below the second')
    return low, high


def pieces(splits: Sequence[float]) -> list[Region]:
    """The regions into which a single coordinate is split. Raises OptionError."""
    for split in splits:
        if not math.isfinite(split):
            raise OptionError(f"split is {split}; it must be a number")
    ends = [-math.inf, *sorted(set(splits)), math.inf]
    regions = []
    for low, high in pairwise(ends):
        if low == -math.inf:
            name = f"below {high:g}"
        elif high == math.inf:
            name = f"from {low:g}"
        else:
            name = f"{low:g} to {high:g}"
        regions.append(Region(name, ((low, high),)))
    return regions


@dataclass(frozen=True)
class Wells:
    """Numbers of the pieces of an energy profile in which wells have their lowest energy, and in
    which barriers between them have their highest.
    """

    wells: list[int]
    barriers: list[int]


def find_wells(energy: Tensor, sure_height: Callable[[int, int, int], float]) -> Wells:
    """The wells of an energy "G" (kT) that barriers part which are surely MIN_BARRIER high: of all
    dips, those that the lowest of the other barriers part are joined first.

    sure_height(start, barrier, end): how high at least an energy is in the piece `barrier`, above
    the shallower of the wells in the pieces from `start` to there and from there to before `end`.
    """
    values = energy.tolist()
    wells = [place for place in range(len(values)) if _is_dip(values, place)]
    barriers = []
    for well, following in pairwise(wells):
        barriers.append(max(range(well, following), key=values.__getitem__))
    while True:
        ends = [0, *barriers, len(values)]
        doubtful = {}
        for number, barrier in enumerate(barriers):
            if sure_height(ends[number], barrier, ends[number + 2]) < MIN_BARRIER:
                shallower = max(values[wells[number]], values[wells[number + 1]])
                doubtful[number] = values[barrier] - shallower
        if not doubtful:
            return Wells(wells, barriers)
        lowest = min(doubtful, key=doubtful.__getitem__)
        _join(values, wells, barriers, lowest)


def _is_dip(values: Sequence[float], place: int) -> bool:
    """Whether the value is below the one before, and not above the one after."""
    falls = place == 0 or values[place] < values[place - 1]
    return falls and (place == len(values) - 1 or values[place] <= values[place + 1])


def _join(values: Sequence[float], wells: list[int], barriers: list[int], number: int) -> None:
    """Takes away a barrier, and the shallower of the wells that it parts."""
    deeper_before = values[wells[number]] <= values[wells[number + 1]]
    del wells[number + int(deeper_before)]
    del barriers[number]
