"""The particles' columns of a STAR file, joined with those of their optics group."""

from pathlib import Path

import numpy as np

from instamap.data.formats import star_file
from instamap.data.formats.star_file import Column, Table
from instamap.data.particle_table import Columns, Numbers, RowNumbers
from instamap.errors import DataError

OPTICS = "optics"
# names of the particle table, the likeliest first
_PARTICLE_TABLES = ("particles", "images", "")
# columns whose values are names, even where they look like numbers
_NAMES = (
    "rlnImageName",
    "rlnMicrographName",
    "rlnGroupName",
    "rlnOpticsGroupName",
    "rlnTomoName",
    "rlnTomoParticleName",
)
_NO_VALUE = ("nan", "NaN", "<NA>")
_MAX_NAMED = 5  # tables that an error names


class StarColumns(Columns):
    """The particle table's columns, and those of the optics table for the particles' groups.

    tables: every table of the file. name: the particle table's. group "n": the 0-based row of the
    optics table (or, without one, the rank of rlnOpticsGroup). A column that both tables have is
    the particle table's.
    """

    def __init__(self, path: Path, tables: list[Table]) -> None:
        self.path = path
        self.tables = tables
        self.particles = _particle_table(path, tables)
        self.optics = _only(path, tables, OPTICS)
        if not len(self.particles):
            raise DataError(
                f"table data_{self.name} of '{path}' has no rows; select some particles"
            )
        self.group = self._groups()

    @classmethod
    def read(cls, path: Path) -> "StarColumns":
        """The columns of a STAR file (also gzipped: .star.gz). Raises DataError if it has no
        particle table, or a broken one.
        """
        return cls(path, star_file.read(path))

    @property
    def name(self) -> str:
        """The particle table's name."""
        return self.particles.name

    def __len__(self) -> int:
        return len(self.particles)

    def __contains__(self, name: object) -> bool:
        return name in self.particles.columns or name in self._optics_columns

    def texts(self, name: str, remedy: str = "name a column that the file has") -> list[str]:
        """Values "n" without quotes. Raises DataError if neither table has the column."""
        if name in self.particles.columns:
            return self.particles.columns[name].texts()
        of_groups = self._of_groups(name, remedy).texts()
        return [of_groups[row] for row in self.group.tolist()]

    def as_numbers(self, name: str, remedy: str = "name a column that the file has") -> Numbers:
        """Values "n", not a number where a value is none. Raises DataError if neither table has the
        column.
        """
        if name in self.particles.columns:
            return self.particles.columns[name].numbers()
        return self._of_groups(name, remedy).numbers()[self.group]

    def keys(self, name: str) -> list[object]:
        """Numbers where all values are numbers and the column does not hold names; else texts."""
        texts = self.texts(name)
        if name not in _NAMES:
            numbers = self.as_numbers(name)
            known = np.array([text not in _NO_VALUE for text in texts])
            if np.isfinite(numbers[known]).all():
                return [
                    value if is_known else None
                    for value, is_known in zip(numbers.tolist(), known.tolist(), strict=True)
                ]
        return [None if text in _NO_VALUE else text for text in texts]

    @property
    def _optics_columns(self) -> dict[str, Column]:
        return {} if self.optics is None else dict(self.optics.columns)

    def _of_groups(self, name: str, remedy: str) -> Column:
        column = self._optics_columns.get(name)
        if column is None:
            raise DataError(f"'{self.path}' has no column {name}; {remedy}")
        return column

    def _groups(self) -> RowNumbers:
        if self.optics is None:
            return self._ranks()
        name = "rlnOpticsGroup"
        tables = (("data_optics", self.optics), ("the particle table", self.particles))
        for called, table in tables:
            if name not in table.columns:
                raise DataError(
                    f"{called} of '{self.path}' has no column {name}, which joins them; add it"
                )
        places: dict[object, int] = {}
        for place, key in enumerate(_group_keys(self.optics.columns[name])):
            if key in places:
                raise DataError(
                    f"data_optics of '{self.path}' lists optics group {_said(key)} twice; give"
                    " each group one row"
                )
            places[key] = place
        keys = _group_keys(self.particles.columns[name])
        group = np.array([places.get(key, -1) for key in keys], np.int64)
        if (group < 0).any():
            row = int((group < 0).argmax())
            raise DataError(
                f"{name} of row {row + 1} of '{self.path}' is {_said(keys[row])}, which data_optics"
                " lacks; add that group to it"
            )
        return group

    def _ranks(self) -> RowNumbers:
        if "rlnOpticsGroup" not in self.particles.columns:
            return np.zeros(len(self), np.int64)
        column = self.particles.columns["rlnOpticsGroup"]
        numbers = column.numbers()
        values = numbers if np.isfinite(numbers).all() else np.array(column.texts())
        ranks = np.unique(values, return_inverse=True)[1]
        return ranks.reshape(-1).astype(np.int64)


def _group_keys(column: Column) -> list[object]:
    """Numbers of groups; the text of one that is no number."""
    numbers = column.numbers()
    keys: list[object] = list(numbers.tolist())
    if not np.isfinite(numbers).all():
        texts = column.texts()
        for row in np.flatnonzero(~np.isfinite(numbers)).tolist():
            keys[row] = texts[row]
    return keys


def _said(key: object) -> str:
    return f"{key:.10g}" if isinstance(key, float) else str(key)


def _particle_table(path: Path, tables: list[Table]) -> Table:
    names = dict.fromkeys(table.name for table in tables)
    others = [name for name in names if name not in (OPTICS, "general")]
    known = [name for name in others if name in _PARTICLE_TABLES] or others
    if len(known) > 1 and known[0] in _PARTICLE_TABLES:
        raise DataError(
            f"'{path}' has more than one particle table ({_listed(known)}); keep one of them in the"
            " file"
        )
    if len(known) != 1:
        raise DataError(
            f"'{path}' has no particle table (data_particles) among {_listed(list(names))}; take"
            " the STAR file that lists the particles"
        )
    table = _only(path, tables, known[0])
    assert table is not None
    return table


def _only(path: Path, tables: list[Table], name: str) -> Table | None:
    """The table of a name; None if there is none. Raises DataError if there are two."""
    found = [table for table in tables if table.name == name]
    if len(found) > 1:
        lines = " and ".join(str(table.line) for table in found)
        rows = " and ".join(str(len(table)) for table in found)
        raise DataError(
            f"table data_{name} is twice in '{path}' (lines {lines}, {rows} rows), of which RELION"
            " would read the first alone; join the files with relion_star_handler --combine, or"
            " keep one table"
        )
    return found[0] if found else None


def _listed(names: list[str]) -> str:
    listed = ", ".join(f"data_{name}" for name in names[:_MAX_NAMED])
    return f"{listed}, ..." if len(names) > _MAX_NAMED else listed
