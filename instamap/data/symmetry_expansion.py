"""Symmetry expansion: each row of particles in all poses that a point group makes equal, so that
what breaks the symmetry can be told from copy to copy.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from instamap.data.particle_table import Columns, Numbers, ParticleTable, RowNumbers
from instamap.scene import Views


@dataclass(frozen=True)
class Expansion:
    """The point group's rotations "S 3 3", the identity first.

    Row i becomes rows S i, S i + 1, ... S i + S - 1; of copy s the pose is A g_s, in which a
    symmetric density looks as in A (see `geometry.symmetry.point_group`).
    """

    group: Tensor

    @property
    def copies(self) -> int:
        """S: how many rows each becomes."""
        return len(self.group)

    def rows(self, rows: Tensor) -> Tensor:
        """The rows "m S" (flat) that the rows "m" become, in their order."""
        first = self.copies * rows[:, None]
        return (first + torch.arange(self.copies)).flatten()

    def source_rows(self, count: int) -> Tensor:
        """The row, before, of each of the rows "S count" (flat) that `count` become."""
        return torch.arange(count).repeat_interleave(self.copies)

    def table(self, table: ParticleTable) -> ParticleTable:
        """The expanded table. Images of one particle stay together copy by copy."""
        count = len(table)
        source = self.source_rows(count)
        rows = source.numpy()
        copy = torch.arange(self.copies).repeat(count)
        rotation = (table.rotation[:, None] @ self.group.to(table.rotation)).flatten(0, 1)
        origin = table.origin[source]
        optics = None if table.optics is None else table.optics[source]
        views = Views(rotation, origin, source, table.group[source], optics)
        written = table.source.take(rows).with_poses(views, np.ones(len(rows), bool))
        particle = table.particle
        if particle is not None:
            particle = self.copies * particle[source] + copy
        return replace(
            table,
            image_names=[table.image_names[row] for row in rows.tolist()],
            rotation=rotation,
            origin=origin,
            optics=optics,
            group=table.group[source],
            pixel_size=table.pixel_size[source],
            box=_of_rows(table.box, source),
            phase_flipped=_of_rows(table.phase_flipped, source),
            sign=_of_rows(table.sign, source),
            half=_of_rows(table.half, source),
            columns=RepeatedColumns(table.columns, rows),
            source=written.with_copies(copy),
            particle=particle,
            copy=copy,
        )


def _of_rows(values: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if values is None else values[rows]


class RepeatedColumns(Columns):
    """The values of some rows of a file, by their numbers before."""

    path: Path

    def __init__(self, columns: Columns, rows: RowNumbers) -> None:
        self._columns = columns
        self._rows = rows
        self.path = columns.path

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def texts(self, name: str, remedy: str = "name a column that the file has") -> list[str]:
        texts = self._columns.texts(name, remedy)
        return [texts[row] for row in self._rows.tolist()]

    def as_numbers(self, name: str, remedy: str = "name a column that the file has") -> Numbers:
        return self._columns.as_numbers(name, remedy)[self._rows]

    def keys(self, name: str) -> list[object]:
        keys = self._columns.keys(name)
        return [keys[row] for row in self._rows.tolist()]
