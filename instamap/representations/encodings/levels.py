"""The levels of a multiresolution grid: their cells, their share of the table, and what points and
table must be like.
"""

from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

from instamap.errors import OptionError

# Factors of a vertex's x, y and z in its hash.
PRIMES = (1, 2654435761, 805459861)
MAX_CELLS = 1 << 16  # along an axis of the finest level
MAX_LOG2_TABLE = 30


@dataclass(frozen=True)
class Levels:
    """Geometry of the table "E F": level l is `table[offsets[l] : offsets[l + 1]]`, with
    resolutions[l] cells along an axis.
    """

    resolutions: tuple[int, ...]
    offsets: tuple[int, ...]  # one more than there are levels: the last is E
    dense: tuple[bool, ...]
    features: int
    smoothstep: bool

    @property
    def entries(self) -> int:
        """E: rows of the table."""
        return self.offsets[-1]

    @property
    def width(self) -> int:
        """L F: features of an encoded point."""
        return len(self.resolutions) * self.features


def levels(
    count: int,
    base: int,
    finest: int,
    features: int,
    log2_table: int,
    smoothstep: bool,
) -> Levels:
    """`count` levels with cells along an axis rising geometrically from `base` to `finest`, of at
    most 2^log2_table entries each.

    smoothstep: interpolate with 3w² - 2w³ in place of w, so that the gradient is continuous (Müller
    et al. 2022, appendix A). A single level has `finest` cells. Raises OptionError if there can be
    no such levels.
    """
    if count < 1 or features < 1:
        raise OptionError(
            f"a grid of {count} levels with {features} features cannot be made; both must be at"
            " least 1"
        )
    if not 1 <= base <= finest <= MAX_CELLS:
        raise OptionError(
            f"levels from {base} to {finest} cells cannot be made; 1 <= base <= finest <="
            f" {MAX_CELLS}"
        )
    if not 0 <= log2_table <= MAX_LOG2_TABLE:
        raise OptionError(
            f"a table of 2^{log2_table} entries cannot be made; the exponent must be from 0 to"
            f" {MAX_LOG2_TABLE}"
        )
    growth = (finest / base) ** (1 / max(count - 1, 1))
    coarser = [round(base * growth**level) for level in range(count - 1)]
    resolutions = (*coarser, finest)
    largest = 1 << log2_table
    vertices = [(n + 1) ** 3 for n in resolutions]
    entries = [min(n, largest) for n in vertices]
    return Levels(
        resolutions=resolutions,
        offsets=tuple(accumulate(entries, initial=0)),
        dense=tuple(n <= largest for n in vertices),
        features=features,
        smoothstep=smoothstep,
    )


def check(x: Tensor, table: Tensor, levels: Levels) -> None:
    """Raises ValueError unless points are "n 3" and the table is "E F" as `levels` has it, both of
    one dtype and on one device.
    """
    if x.ndim != 2 or x.shape[1] != 3:
        raise ValueError(f"points have shape {tuple(x.shape)}; they must be (n, 3)")
    needed = (levels.entries, levels.features)
    if table.shape != needed:
        raise ValueError(f"the table has shape {tuple(table.shape)}; these levels need {needed}")
    if (x.dtype, x.device) != (table.dtype, table.device):
        raise ValueError(
            f"points are {x.dtype} on {x.device}, the table is {table.dtype} on {table.device};"
            " they must be alike"
        )
