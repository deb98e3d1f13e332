"""Tilt series as RELION's tomograms file has them: each tilt's projection, defocus and dose."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from instamap.data.formats import star_file
from instamap.data.formats.star_file import Table
from instamap.data.particle_table import Numbers
from instamap.errors import DataError
from instamap.geometry import rotations

GLOBAL = "global"
NAME = "rlnTomoName"
SERIES_FILE = "rlnTomoTiltSeriesStarFile"
HAND = "rlnTomoHand"
PIXEL_SIZE = "rlnTomoTiltSeriesPixelSize"
MIRRORED = "instamapMirrored"  # 1 of tomograms whose z axis is to point the other way
_MATRIX = ("rlnTomoProjX", "rlnTomoProjY", "rlnTomoProjZ")
_SIZES = ("rlnTomoSizeX", "rlnTomoSizeY", "rlnTomoSizeZ")
_OF_CTF = (
    "rlnDefocusU",
    "rlnDefocusV",
    "rlnDefocusAngle",
    "rlnPhaseShift",
    "rlnCtfScalefactor",
)
_MAX_DISTORTION = 0.05  # of a projection matrix, by which it is no rotation any more
_REMEDY = "take the tomograms file that the particles were extracted with"


@dataclass(frozen=True)
class TiltSeries:
    """The tilts "t" of one tomogram, in the file's order.

    projection "t 3 3": from the tomogram's frame to the image's; its third row gives the depth.
    columns: for each tilt, in the file's units, those of the CTF that the file has. dose "t":
    electrons/Å² before the image. b_factor_per_dose: 0 where dose acts as it does in proteins.
    depth_slope: by how much defocus grows with depth, or None. centre "3": Å, or None. pixel_size:
    Å, of the tilt series. is_shifted: the matrices carry the shifts of the alignment too.
    is_mirrored: whether the tomogram's z axis is to point the other way; None where the file does
    not say.
    """

    name: str
    projection: Numbers
    columns: dict[str, Numbers]
    dose: Numbers
    b_factor_per_dose: float
    depth_slope: float | None
    centre: Numbers | None
    pixel_size: float
    is_shifted: bool
    is_mirrored: bool | None = None

    def __len__(self) -> int:
        return len(self.projection)


def read(path: Path) -> dict[str, TiltSeries]:
    """The tilt series of a tomograms file by name. Raises DataError."""
    tables = {table.name: table for table in star_file.read(path)}
    overview = tables.get(GLOBAL)
    if overview is None or NAME not in overview.columns:
        raise DataError(f"'{path}' lists no tomograms (data_global with {NAME}); {_REMEDY}")
    series = {}
    for row, name in enumerate(overview.columns[NAME].texts()):
        tilts, file = _tilts(path, overview, tables, row, name)
        series[name] = _series(path, overview, row, name, _Tilts(file, tilts))
    return series


class _Tilts:
    """The table of one tilt series, a row a tilt."""

    def __init__(self, path: Path, table: Table) -> None:
        self._path = path
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, name: str) -> bool:
        return name in self._table.columns

    def numbers(self, name: str, default: float | None = None) -> Numbers:
        """Values "t". Raises DataError."""
        if name not in self:
            if default is None:
                raise DataError(f"{self._where} has no column {name}; {_REMEDY}")
            return np.full(len(self), default)
        values = self._table.columns[name].numbers()
        self._check(name, np.isfinite(values), "a number")
        return values

    def vectors(self, name: str) -> Numbers:
        """Values "t 4", which are written as [1,0,0,0]. Raises DataError."""
        texts = self._table.columns[name].texts()
        rows = [vector(text) for text in texts]
        whole = np.array([len(row) == 4 for row in rows])
        self._check(name, whole, "four numbers, as [1,0,0,0]")
        return np.array(rows)

    def projections(self) -> Numbers:
        """Rotations "t 3 3" from the tomogram to each image. Raises DataError."""
        if all(name in self for name in _MATRIX):
            rows = [self.vectors(name)[:, :3] for name in _MATRIX]
            return self._rotations(np.stack(rows, 1))
        about_x = _about_axis(0, self.numbers("rlnTomoXTilt", 0.0))
        about_y = _about_axis(1, self.numbers("rlnTomoYTilt"))
        about_z = _about_axis(2, self.numbers("rlnTomoZRot"))
        turned: Numbers = about_z @ about_y @ about_x
        return turned

    def is_shifted(self) -> bool:
        """Whether the geometry has shifts of the images."""
        if all(name in self for name in _MATRIX):
            return any(self.vectors(name)[:, 3].any() for name in _MATRIX)
        return True

    def _rotations(self, matrices: Numbers) -> Numbers:
        """The rotations next to matrices that were rounded."""
        left, scale, right = np.linalg.svd(matrices)
        nearest: Numbers = left @ right
        distortion = np.abs(scale - 1).max(-1)
        sound = (distortion < _MAX_DISTORTION) & (np.linalg.det(nearest) > 0)
        self._check(_MATRIX[0][:-1] + "X, Y and Z", sound, "the rows of a rotation")
        return nearest

    @property
    def _where(self) -> str:
        return f"table data_{self._table.name} of '{self._path}'"

    def _check(self, name: str, sound: np.ndarray, words: str) -> None:
        if not sound.all():
            row = int((~sound).argmax())
            raise DataError(
                f"{name} of tilt {row + 1} in {self._where} must be {words};"
                f" mend it ({(~sound).sum()} of {len(self)} are wrong)"
            )


def _about_axis(axis: int, degrees: Numbers) -> Numbers:
    """Rotations "t 3 3" about an axis of the tomogram."""
    vectors = torch.zeros(len(degrees), 3, dtype=torch.float64)
    vectors[:, axis] = torch.deg2rad(torch.from_numpy(degrees))
    turned: Numbers = rotations.from_rotvec(vectors).numpy()
    return turned


def vector(text: str) -> list[float]:
    """The numbers of a value that is written as [1,0,0]; none where it is not."""
    try:
        values = [float(word) for word in text.strip("[]").split(",")]
    except ValueError:
        return []
    return values if np.isfinite(values).all() else []


def _tilts(
    path: Path, overview: Table, tables: dict[str, Table], row: int, name: str
) -> tuple[Table, Path]:
    """The table of a tilt series: in the file itself, or in one that it names; and its file."""
    if name in tables:
        return tables[name], path
    if SERIES_FILE not in overview.columns:
        raise DataError(f"'{path}' has no table data_{name} for tomogram '{name}'; {_REMEDY}")
    file = found_from(path, overview.columns[SERIES_FILE].texts()[row])
    inner = star_file.read(file)
    for table in inner:
        if table.name == name:
            return table, file
    return inner[0], file


def found_from(path: Path, name: str) -> Path:
    """The file that a STAR file names: from its folder, or one of that folder's parents, since
    RELION names files from the project's root. Raises DataError.
    """
    folder = path.absolute().parent
    for place in (folder, *folder.parents):
        if (place / name).is_file():
            return place / name
    raise DataError(
        f"'{path}' names '{name}', which is not in its folder nor from any of that folder's"
        " parents; put it there"
    )


def _series(path: Path, overview: Table, row: int, name: str, tilts: _Tilts) -> TiltSeries:
    def value(column: str, default: float | None) -> float | None:
        if column not in overview.columns:
            return default
        found = float(overview.columns[column].numbers()[row])
        if not np.isfinite(found):
            raise DataError(
                f"{column} of tomogram '{name}' in '{path}' is no number; mend that row"
            )
        return found

    columns = {name: tilts.numbers(name) for name in _OF_CTF if name in tilts}
    pixel_size = value(PIXEL_SIZE, None)
    if pixel_size is None or pixel_size <= 0:
        raise DataError(
            f"'{path}' does not say the pixel size of tilt series '{name}' ({PIXEL_SIZE}, in Å and"
            " above 0); add it"
        )
    sizes = [value(column, None) for column in _SIZES]
    centre = None
    if None not in sizes:
        centre = np.array(sizes, float) / 2 * pixel_size
    hand = value(HAND, None)
    slope = value("rlnTomoDefocusSlope", 1.0)
    assert slope is not None
    per_dose = value("rlnCtfBfactorPerElectronDose", 0.0)
    assert per_dose is not None
    mirrored = value(MIRRORED, None)
    if mirrored is not None and mirrored not in (0.0, 1.0):
        raise DataError(
            f"{MIRRORED} of tomogram '{name}' in '{path}' is {mirrored:g}; it must be 0 or 1"
        )
    return TiltSeries(
        name=name,
        projection=tilts.projections(),
        columns=columns,
        dose=tilts.numbers("rlnMicrographPreExposure", 0.0),
        b_factor_per_dose=max(per_dose, 0.0),
        depth_slope=None if hand is None else hand * slope,
        centre=centre,
        pixel_size=pixel_size,
        is_shifted=tilts.is_shifted(),
        is_mirrored=None if mirrored is None else bool(mirrored),
    )
