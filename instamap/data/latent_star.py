"""Coordinates of particles beside all that their STAR file says of them, for all rows or for some."""

import re
from pathlib import Path

import pandas as pd
import starfile
from torch import Tensor

from instamap.data.formats import star, star_tables
from instamap.data.stacks import Stacks
from instamap.errors import DataError
from instamap.files import replacing
from instamap.geometry import rotations

# and a number from 1: RELION keeps columns that it does not know, and no prefix of its own is taken
COLUMN = "instamapLatent"


def source(settings: dict, given: Path | None, count: int) -> star.StarTable:
    """The STAR file of a run with `settings`, or the one that is given in its place, which must
    have `count` rows. Raises DataError.
    """
    if given is None and "particles" not in settings:
        raise DataError(
            "run.toml does not name the particles; give their STAR file with --particles"
        )
    path = Path(settings["particles"]) if given is None else given
    if not path.exists():
        raise DataError(
            f"the particles' STAR file '{path}' does not exist (seen from '{Path.cwd()}'); give it"
            " with --particles"
        )
    table = star.read(path, ctf=False)
    if len(table) != count:
        raise DataError(
            f"'{path}' has {len(table)} rows, but the run has coordinates of {count}; give the STAR"
            " file that was fitted"
        )
    return table


def rotation(table: star.StarTable) -> Tensor:
    """Rotations "n 3 3" of the rows, particle frame to image frame."""
    return rotations.from_euler(*table.angles.unbind(-1))


def write(table: star.StarTable, latents: Tensor, file: Path, rows: Tensor | None = None) -> None:
    """Write the rows "m" (all if None) of a STAR file, in its order, with columns instamapLatent1,
    2, ... of the coordinates "n L".

    Every table, column and value is kept to the letter, but for columns of these names from an
    earlier run, which are replaced. Raises OutputError.
    """
    found = star_tables.texts(table.columns)
    main = table.columns.name
    particles = (
        found[main] if isinstance(found[main], pd.DataFrame) else pd.DataFrame([found[main]])
    )
    particles = particles.drop(
        columns=[name for name in particles if re.fullmatch(rf"{COLUMN}\d+", name)]
    )
    values = {
        f"{COLUMN}{i + 1}": [f"{v:.6f}" for v in column]
        for i, column in enumerate(latents.T.tolist())
    }
    particles = particles.assign(**values)
    found[main] = particles if rows is None else particles.iloc[rows.sort().values.numpy()]
    with replacing(file) as sibling:
        starfile.write(found, sibling, na_rep="nan", overwrite=True)


def datadir(table: star.StarTable, file: Path, given: Path | None) -> Path | None:
    """The folder with which the images that `table` names are found for a STAR file `file` that
    names them likewise.

    None where they are found without, or the run itself (`given`: its datadir) would not find them.
    """
    names = list(
        {name.rpartition("@")[2]: name for name in table.image_names}.values()
    )  # one of each stack
    start = table.path.absolute().parent
    places = [given] if given is not None else [start, *start.parents]
    true = _files(names, table.path, given)
    if true is None or _files(names, file, None) == true:
        return None
    return next((place for place in places if _files(names, file, place) == true), None)


def _files(names: list[str], file: Path, folder: Path | None) -> list[Path] | None:
    """The stacks that are found for a STAR file, or None."""
    try:
        return [path.resolve() for path in Stacks(names, file, folder).files]
    except DataError:
        return None
