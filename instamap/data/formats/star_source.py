"""STAR files written again: poses, images or coordinates changed, all else to the letter."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from instamap.data.formats import mirror, star_file
from instamap.data.formats.star_columns import OPTICS, StarColumns
from instamap.data.formats.star_file import Column, Table
from instamap.data.particle_table import Mask, Numbers, Rescaling, RowNumbers, Source
from instamap.errors import DataError
from instamap.geometry import rotations
from instamap.scene import Views

# and a number from 1: RELION keeps columns that it does not know, and no prefix of its own is taken
LATENT = "instamapLatent"
COPY = "instamapSymmetryCopy"
# Å per pixel of an image; those of the micrograph stay as they are
_PIXEL_SIZES = ("rlnImagePixelSize", "rlnPixelSize")
# in pixels of an image, as RELION wrote up to 3.0
_ORIGINS_IN_PIXELS = tuple(f"rlnOrigin{axis}{kind}" for axis in "XYZ" for kind in ("", "Prior"))
# relative difference of pixel sizes that may be rounding of a magnification
_MAGNIFICATION_ROUNDING = 1e-3


class StarSource(Source):
    """The tables of a STAR file."""

    suffix = ".star"

    def __init__(
        self,
        columns: StarColumns,
        pixel_size: Numbers,
        mirrored: Tensor | None,
        tables: list[Table] | None = None,
    ) -> None:
        """columns: of the file as it was read. pixel_size "n": Å. mirrored "n": which images are.
        tables: what is to be written.
        """
        self._columns = columns
        self._pixel_size = pixel_size
        self._mirrored = mirrored
        self._tables = columns.tables if tables is None else tables
        self._rows: RowNumbers | None = None  # of the file, that were taken

    def take(self, rows: RowNumbers) -> "StarSource":
        """Some particles, in the order given."""
        taken = self._with_particles(self._particles.take(rows))
        taken._rows = rows if self._rows is None else self._rows[rows]
        return taken

    def with_latents(self, latents: Tensor) -> "StarSource":
        """Coordinates "n L" in columns instamapLatent1, 2, ..., in place of any of these names."""
        particles = self._particles
        pattern = re.compile(rf"{LATENT}\d+")
        old = [label for label in particles.columns if pattern.fullmatch(label)]
        added = {}
        for number, values in enumerate(latents.T.tolist(), 1):
            added[f"{LATENT}{number}"] = Column.of(f"{value:.6f}" for value in values)
        return self._with_particles(particles.without(old).with_columns(added))

    def with_copies(self, copy: Tensor) -> "StarSource":
        """The number "n", from 0, of the copy that each row is, in a column of its own."""
        column = Column.of(str(number) for number in copy.tolist())
        return self._with_particles(self._particles.with_columns({COPY: column}))

    def with_poses(self, views: Views, changed: Mask) -> "StarSource":
        """Poses of the particles that are `changed` "n": angles and origins, in Å and in pixels,
        whichever the file has.
        """
        new = {}
        for name, values in self._poses(views).items():
            texts = self._texts_before(name)
            for row in np.flatnonzero(changed).tolist():
                texts[row] = b"%.6f" % values[row]
            column = Column()
            column.append(texts)
            new[name] = column
        return self._with_particles(self._particles.with_columns(new))

    def with_images(self, stack: str, rescaling: Rescaling) -> "StarSource":
        """Images in one stack, in the file's order; sizes, pixel sizes and origins in pixels are
        those of the images as they are now, whose phases are not flipped. Raises DataError.
        """
        tables = [self._rescaled(table, rescaling) for table in self._tables]
        resized = self._with_tables(tables)
        particles = resized._particles
        names = (f"{number:06d}@{stack}" for number in range(1, len(particles) + 1))
        return resized._with_particles(particles.with_columns({"rlnImageName": Column.of(names)}))

    def write(self, path: Path) -> None:
        """Write every table. Raises OSError."""
        star_file.write(self._tables, path)

    @property
    def _particles(self) -> Table:
        [found] = [table for table in self._tables if table.name == self._columns.name]
        return found

    def _with_particles(self, particles: Table) -> "StarSource":
        tables = [particles if table.name == particles.name else table for table in self._tables]
        return self._with_tables(tables)

    def _with_tables(self, tables: list[Table]) -> "StarSource":
        changed = StarSource(self._columns, self._pixel_size, self._mirrored, tables)
        changed._rows = self._rows
        return changed

    def _poses(self, views: Views) -> dict[str, list[float]]:
        """New values by column."""
        rows = slice(None) if self._rows is None else self._rows
        if self._mirrored is not None:
            views = mirror.mirrored(views, self._mirrored[rows])
        angles = torch.rad2deg(rotations.to_euler(views.rotation))
        new = {}
        for place, name in enumerate(("Rot", "Tilt", "Psi")):
            new[f"rlnAngle{name}"] = angles[:, place].tolist()
        for axis, lengths in zip("XY", views.origin.T, strict=True):
            in_pixels = f"rlnOrigin{axis}"
            in_angstrom = f"rlnOrigin{axis}Angst"
            if in_pixels in self._columns:
                new[in_pixels] = (lengths / torch.tensor(self._pixel_size[rows])).tolist()
            if in_angstrom in self._columns or in_pixels not in self._columns:
                new[in_angstrom] = lengths.tolist()
        return new

    def _texts_before(self, name: str) -> list[bytes]:
        particles = self._particles
        if name in particles.columns:
            return particles.columns[name].written()
        if name not in self._columns:
            return [b"0.0"] * len(particles)
        values = self._columns.numbers(name)
        return [str(value).encode() for value in values.tolist()]

    def _rescaled(self, table: Table, rescaling: Rescaling) -> Table:
        """A table that describes images, with the values that they have now."""
        if table.name not in (self._columns.name, OPTICS):
            return table
        if "rlnCtfDataArePhaseFlipped" in table.columns:
            undone = Column.of(["0"] * len(table))
            table = table.with_columns({"rlnCtfDataArePhaseFlipped": undone})
        has_one_size = rescaling.pixel_size is None
        is_resized = rescaling.box != rescaling.box_before or not has_one_size
        if is_resized and self._says_box(table):
            size = Column.of([str(rescaling.box)] * len(table))
            table = table.with_columns({"rlnImageSize": size})
        if rescaling.pixel_size is not None:
            return self._with_pixel_size(table, rescaling.pixel_size)
        if rescaling.edge == rescaling.box:
            return table
        growing = _scaled(self._columns.path, table, _PIXEL_SIZES, rescaling.edge, rescaling.box)
        shrinking: tuple[str, ...] = _ORIGINS_IN_PIXELS
        if self._magnification_is_of_images():
            shrinking = (*shrinking, "rlnMagnification")
        return _scaled(self._columns.path, growing, shrinking, rescaling.box, rescaling.edge)

    def _with_pixel_size(self, table: Table, pixel_size: float) -> Table:
        """A table that describes images of several pixel sizes, which now have one. Raises
        DataError where lengths are in pixels.
        """
        in_pixels = [name for name in _ORIGINS_IN_PIXELS if name in table.columns]
        if "rlnMagnification" in table.columns and self._magnification_is_of_images():
            in_pixels.append("rlnMagnification")
        if in_pixels:
            raise DataError(
                f"'{self._columns.path}' has {in_pixels[0]} for images of several pixel sizes,"
                " which cannot be brought to one; convert it with relion_convert_star first"
            )
        named = [name for name in _PIXEL_SIZES if name in table.columns]
        column = Column.of([repr(pixel_size)] * len(table))
        return table.with_columns(dict.fromkeys(named, column))

    def _says_box(self, table: Table) -> bool:
        """Whether the size of images belongs in this table: where it is, or else in the optics."""
        described = [t for t in self._tables if t.name in (self._columns.name, OPTICS)]
        if any("rlnImageSize" in each.columns for each in described):
            return "rlnImageSize" in table.columns
        return table.name == OPTICS

    def _magnification_is_of_images(self) -> bool:
        """Whether rlnDetectorPixelSize and rlnMagnification speak of the images, not of the
        micrographs that they were scaled down from.
        """
        columns = self._columns
        if "rlnDetectorPixelSize" not in columns or "rlnMagnification" not in columns:
            return False
        detector = columns.numbers("rlnDetectorPixelSize") * 1e4
        size = detector / columns.numbers("rlnMagnification")
        return bool(np.allclose(size, self._pixel_size, rtol=_MAGNIFICATION_ROUNDING, atol=0))


def _scaled(path: Path, table: Table, names: Iterable[str], above: int, below: int) -> Table:
    """The table with columns multiplied by above/below. Raises DataError for a value that is no
    number.
    """
    new = {}
    for name in names:
        if name not in table.columns:
            continue
        column = table.columns[name]
        values = column.numbers()
        wrong = np.isnan(values)
        if wrong.any():
            raise DataError(
                f"{name} of '{path}' is {column.texts()[int(wrong.argmax())]}, which cannot be"
                " scaled; make it a number"
            )
        new[name] = Column.of(repr(value * above / below) for value in values.tolist())
    return table.with_columns(new)
