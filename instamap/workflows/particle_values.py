"""Values of all particles from independent fits: each has its own fit's, held-out ones the mean."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FittedValues:
    """Values "m L" that one fit has for the particles in its images, by row numbers "m"."""

    rows: Tensor
    values: Tensor


def joined(
    count: int, fitted: Sequence[FittedValues], held_out: Tensor, of_held_out: Sequence[Tensor]
) -> Tensor:
    """Values "n L" (float64) of `count` images.

    of_held_out: each fit's values "h L" for the rows `held_out` "h"; where there are none, these
    rows are zero.
    """
    size = fitted[0].values.shape[1]
    values = torch.zeros(count, size, dtype=torch.float64)
    for one in fitted:
        values[one.rows] = one.values.double()
    if of_held_out:
        mean = torch.stack(list(of_held_out)).mean(0)
        values[held_out] = mean.double()
    return values
