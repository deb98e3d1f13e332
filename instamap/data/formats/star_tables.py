"""Tables of a STAR file as they are written, and the particles' columns joined with those of their
optics group.
"""

import gzip
import linecache
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import starfile

from instamap.errors import DataError

_TEXT = [
    "rlnImageName",
    "rlnMicrographName",
    "rlnGroupName",
    "rlnOpticsGroupName",
    "rlnTomoName",
    "rlnTomoParticleName",
]


@dataclass(frozen=True)
class Columns:
    """The tables of a STAR file as they are written, and the particles' columns joined with those
    of their optics group.

    blocks: every table of the file, by name and in the file's order, with all columns in theirs.
    name: the particle table's. group: "N", the 0-based row of the optics table (or, without one,
    the rank of rlnOpticsGroup).
    """

    path: Path
    blocks: dict[str, pd.DataFrame]
    name: str
    group: np.ndarray

    @property
    def particles(self) -> pd.DataFrame:
        return self.blocks[self.name]

    @property
    def optics(self) -> pd.DataFrame | None:
        return self.blocks.get("optics")

    def __len__(self) -> int:
        return len(self.particles)

    def __contains__(self, column: str) -> bool:
        return column in self.particles or (self.optics is not None and column in self.optics)

    def column(self, column: str, remedy: str) -> np.ndarray:
        """Values "N" as read; the particle table wins where the optics table has the column too.
        Raises DataError if neither has.
        """
        if column in self.particles:
            return self.particles[column].to_numpy()
        if column in self:
            return self.optics[column].to_numpy()[self.group]
        raise DataError(f"'{self.path}' has no column {column}; {remedy}")

    def numbers(
        self,
        column: str,
        *,
        default: float | None = None,
        remedy: str = "mend or remove that row",
        allowed: Callable[[np.ndarray], np.ndarray] = np.isfinite,
        words: str = "a number",
    ) -> np.ndarray:
        """Finite float64 values "N" that are `allowed` (in `words`). Raises DataError naming the
        row, counted from 1.
        """
        if default is not None and column not in self:
            return np.full(len(self), default)
        written = self.column(column, remedy)
        values = pd.to_numeric(pd.Series(written), errors="coerce").to_numpy(np.float64)
        bad = ~(np.isfinite(values) & allowed(values))
        if bad.any():
            row = int(bad.argmax())
            raise DataError(
                f"{column} of row {row + 1} of '{self.path}' is {written[row]}; it must be {words};"
                f" mend or remove that row ({bad.sum()} of {len(self)} are wrong)"
            )
        return values


def load(path: Path) -> Columns:
    """All tables of `path` (also gzipped: .star.gz). Raises DataError if it has no particle table,
    or a broken one.
    """
    blocks = {
        name: pd.DataFrame([block]) if isinstance(block, dict) else block
        for name, block in _blocks(path, _TEXT).items()
    }
    name = _particle_block(path, blocks)
    particles = blocks[name]
    optics = blocks.get("optics")
    for block, table in blocks.items():
        twice = table.columns[table.columns.duplicated()]
        if len(twice):
            raise DataError(
                f"table data_{block} of '{path}' has column {twice[0]} twice; remove one of them"
            )
    if particles.empty:
        raise DataError(f"table data_{name} of '{path}' has no rows; select some particles")
    return Columns(path, blocks, name, _groups(path, particles, optics))


def texts(columns: Columns) -> dict[str, pd.DataFrame | dict]:
    """Every table of the file, which is read again, with each value as the text that is written; a
    dict where it is without loop_.
    """
    return _blocks(
        columns.path, list({name for table in columns.blocks.values() for name in table})
    )


def _blocks(path: Path, text: list[str]) -> dict[str, pd.DataFrame | dict]:
    """Every table of the file, in which the columns `text` stay text; a dict of one that is written
    without loop_.
    """
    content = _content(path)
    try:
        with tempfile.TemporaryDirectory() as folder:
            plain = path
            if path.suffix == ".gz":
                plain = Path(folder) / path.stem
                plain.write_bytes(content)
            linecache.checkcache(
                str(plain)
            )  # the parser reads through linecache: forget a file that changed since it failed
            blocks = starfile.read(plain, always_dict=True, parse_as_string=text)
    except TypeError as error:  # how the parser fails on data_ that nothing follows
        raise DataError(
            f"'{path}' ends in a data_ block without a table; copy it again or mend it"
        ) from error
    except ValueError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"'{path}' can't be read as a STAR file ({reason}); copy it again or mend it"
        ) from error
    if not blocks:
        raise DataError(f"'{path}' holds no data_ table; give a STAR file of particles")
    return blocks


def _content(path: Path) -> bytes:
    """The file's bytes, unpacked, once they look like a STAR file: the parser itself passes over
    what it can't read.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        text = content.decode()
    except FileNotFoundError as error:
        raise DataError(f"'{path}' does not exist; give the path of a STAR file") from error
    except (OSError, EOFError) as error:
        raise DataError(
            f"'{path}' can't be read ({error}); give a STAR file that can be"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"'{path}' is not a STAR file (byte {error.start} is no text); give the metadata, not"
            " the images"
        ) from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("data_") and len(line.split("#")[0].split()) > 1:
            raise DataError(
                f"line {number} of '{path}' is a row that begins with data_, which ends a table;"
                " put another column first"
            )
    return content


def _particle_block(path: Path, blocks: dict[str, pd.DataFrame]) -> str:
    others = [name for name in blocks if name not in ("optics", "general")]
    known = [name for name in others if name in ("particles", "images", "")] or others
    if len(known) == 1:
        return known[0]
    found = ", ".join(f"data_{name}" for name in list(blocks)[:5]) + (
        ", ..." if len(blocks) > 5 else ""
    )
    raise DataError(
        f"'{path}' has no particle table (data_particles) among {found}; take the STAR file that"
        " lists the particles"
    )


def _groups(path: Path, particles: pd.DataFrame, optics: pd.DataFrame | None) -> np.ndarray:
    if optics is None:
        if "rlnOpticsGroup" not in particles:
            return np.zeros(len(particles), np.int64)
        return np.unique(particles["rlnOpticsGroup"].to_numpy(), return_inverse=True)[1].astype(
            np.int64
        )
    for name, table in (("data_optics", optics), ("the particle table", particles)):
        if "rlnOpticsGroup" not in table:
            raise DataError(
                f"{name} of '{path}' has no column rlnOpticsGroup, which joins them; add it"
            )
    known = pd.Index(optics["rlnOpticsGroup"])
    if known.has_duplicates:
        raise DataError(
            f"data_optics of '{path}' lists optics group {known[known.duplicated()][0]} twice; give"
            " each group one row"
        )
    group = known.get_indexer(particles["rlnOpticsGroup"])
    if (group < 0).any():
        row = int((group < 0).argmax())
        value = particles["rlnOpticsGroup"].iloc[row]
        raise DataError(
            f"rlnOpticsGroup of row {row + 1} of '{path}' is {value}, which data_optics lacks; add"
            " that group to it"
        )
    return group.astype(np.int64)
