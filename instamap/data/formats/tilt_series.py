"""Particles of tilt series as RELION 5 and WarpTools write them: one stack of 2-D images each."""

import gzip
import re
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from instamap.data.formats import star, star_file, tomograms
from instamap.data.formats.base import InputFormat
from instamap.data.formats.star_columns import StarColumns
from instamap.data.formats.star_file import Column, Table
from instamap.data.formats.star_source import StarSource
from instamap.data.formats.tomograms import TiltSeries
from instamap.data.particle_table import (
    Mask,
    Numbers,
    ParticleTable,
    Rescaling,
    RowNumbers,
    Source,
)
from instamap.data.stacks import Stacks
from instamap.errors import DataError
from instamap.geometry import rotations
from instamap.scene import Views

PARTICLES_FILE = "rlnTomoParticlesFile"
TOMOGRAMS_FILE = "rlnTomoTomogramsFile"
VISIBLE = "rlnTomoVisibleFrames"
BINNING = "rlnTomoSubtomogramBinning"
_CENTRED = tuple(f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ")
_CORNERED = tuple(f"rlnCoordinate{axis}" for axis in "XYZ")
_ORIGIN = tuple(f"rlnOrigin{axis}Angst" for axis in "XYZ")
_ANGLES = tuple(f"rlnAngle{name}" for name in ("Rot", "Tilt", "Psi"))
_SUBTOMOGRAM_ANGLES = tuple(f"rlnTomoSubtomogram{name}" for name in ("Rot", "Tilt", "Psi"))
_OF_PARTICLES_ALONE = (VISIBLE, _ORIGIN[2], *_SUBTOMOGRAM_ANGLES)
_HEAD = 1 << 16  # bytes in which a STAR file has its first labels
_LABEL = re.compile(rf"^\s*_(?:{PARTICLES_FILE}|{VISIBLE})\b".encode(), re.MULTILINE)
_MAX_NAMED = 5  # files that an error names
_FROM_SET = "give the optimisation set, which names both files"


class TiltSeriesFormat(InputFormat):
    """Optimisation sets of RELION 5 (data_ with rlnTomoParticlesFile and rlnTomoTomogramsFile), and
    their particle files, beside which the set or the tomograms file is found.

    A particle at tomogram point p with pose A is seen in a tilt with P A, where P is the tilt's
    projection, and with origin P o. Its defocus is that of the tilt plus rlnTomoHand times its
    depth, and its CTF falls with the dose as in RELION. Each visible tilt is a row, and the rows of
    a particle belong together. A stack has an image for each visible tilt, or (WarpTools up to
    2025) for each tilt, which its length tells.

    Exports of WarpTools up to 2025 count coordinates in pixels of the images, but state another
    pixel size, and one hand for all. No depth is taken from these, and they are mirrored in the
    tomogram's z, as defocus grows along it in the one such set of which the hand is known. In all
    files instamapMirrored, 0 or 1 of each tomogram, says otherwise.
    """

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """By a label near its beginning."""
        if not path.is_file():
            return False
        head = _head(path)
        return b"\0" not in head and _LABEL.search(head) is not None

    def read(self, path: Path, *, ctf: bool = True) -> ParticleTable:
        """The images of all particles, one row each. Raises DataError."""
        return self.read_beside(path, None, ctf=ctf)

    def read_beside(self, path: Path, datadir: Path | None, *, ctf: bool = True) -> ParticleTable:
        """The images of all particles, with stacks in `datadir`. Raises DataError."""
        particles_file, tomograms_file = _files(path)
        particles = StarColumns.read(particles_file)
        if VISIBLE not in particles:
            return star.table_of(particles, ctf=ctf)
        _check_2d(particles)
        images = _Images(particles, tomograms.read(tomograms_file), tomograms_file)
        columns = images.columns(datadir)
        return images.table(columns, ctf=ctf)


class _Images:
    """The visible tilts of particles.

    particle "n": the particle's row. tilt "n": its place in the tilt series.
    """

    def __init__(
        self, particles: StarColumns, series: dict[str, TiltSeries], tomograms_file: Path
    ) -> None:
        self._particles = particles
        self._tomograms_file = tomograms_file
        names = particles.texts(tomograms.NAME)
        _check_known(particles, names, series, tomograms_file)
        visible = _visible(particles, names, series)
        counts = [len(tilts) for tilts in visible]
        self.particle = np.repeat(np.arange(len(names)), counts)
        self.tilt = np.concatenate(visible)
        self._visible_count = np.array(counts)
        self._series = [series[name] for name in dict.fromkeys(names)]
        number = {each.name: place for place, each in enumerate(self._series)}
        self._series_number = np.array([number[name] for name in names])
        before = np.cumsum([0, *(len(each) for each in self._series)])
        # place among the tilts of all series, one after the other
        self._row_of_tilt = before[self._series_number][self.particle] + self.tilt
        self._is_old_export = self._counts_in_other_pixels()
        self._has_depth = not self._depth_is_unknown()
        mirrored = [self._is_mirrored(each) for each in self._series]
        self._sign_of_z = np.where(mirrored, -1.0, 1.0)[self._series_number][self.particle]

    def table(self, columns: StarColumns, *, ctf: bool) -> ParticleTable:
        """What is read of the images. Raises DataError."""
        left_out = () if self._has_depth or not ctf else (tomograms.HAND,)
        table = star.table_of(columns, ctf=ctf)
        assert isinstance(table.source, StarSource)
        no_pixels = np.ones(len(self._particles))
        series = StarSource(self._particles, no_pixels, None)
        return ParticleTable(
            **{
                **vars(table),
                "ignored": (*table.ignored, *left_out),
                "source": TiltSeriesSource(table.source, series, self.particle),
                "particle": torch.from_numpy(self.particle),
                "assumed": self._assumed(),
            }
        )

    def columns(self, datadir: Path | None) -> StarColumns:
        """The table of the images: a particle's values at each of its tilts, with the pose, the
        CTF and the image of that tilt. Raises DataError.
        """
        particles = self._particles.particles
        rows = particles.without(_OF_PARTICLES_ALONE).take(self.particle)
        rotation = self._mirrored(self._projection() @ self._poses())
        values = _degrees(rotation)
        origin = self._projected(self._origins())
        values |= {name: origin[:, axis] for axis, name in enumerate(_ORIGIN[:2])}
        values |= self._contrast_transfer()
        values |= self._pixel_sizes()
        texts = {name: Column.of(map(repr, column.tolist())) for name, column in values.items()}
        texts["rlnImageName"] = Column.of(self._image_names(datadir))
        tables = []
        for table in self._particles.tables:
            if table is particles:
                tables.append(rows.with_columns(texts))
            elif table.name != "general":  # which says that images are stacks
                tables.append(table)
        return StarColumns(self._particles.path, tables)

    def _mirrored(self, rotation: Numbers) -> Numbers:
        """Rotations "n 3 3" by which a particle that is mirrored in z is seen as it is seen without
        that by those given.
        """
        signs = np.ones((len(rotation), 3))
        signs[:, 2] = self._sign_of_z
        return signs[:, :, None] * rotation * signs[:, None, :]

    def _is_mirrored(self, series: TiltSeries) -> bool:
        """Whether the particles of a tilt series are mirrored in z."""
        if series.is_mirrored is not None:
            return series.is_mirrored
        return self._is_old_export

    def _assumed(self) -> str | None:
        """What is taken for granted of the hand, in words."""
        unsaid = [each.name for each in self._series if each.is_mirrored is None]
        if not self._is_old_export or not unsaid:
            return None
        return (
            f"'{self._tomograms_file}' does not say which way z points ({tomograms.HAND} is -1 in"
            " all exports of WarpTools up to 2025): mirrored; if the map has the wrong hand, add"
            f" {tomograms.MIRRORED} 0 to data_{tomograms.GLOBAL}"
        )

    def _poses(self) -> Numbers:
        """Rotations "n 3 3" from the particle to the tomogram."""
        pose = star.rotations_of(star.euler_angles(self._particles))
        before = self._subtomogram()
        whole: Numbers = before @ pose.numpy()
        return whole[self.particle]

    def _subtomogram(self) -> Numbers:
        """Rotations "p 3 3" that particles had before they were refined."""
        if _SUBTOMOGRAM_ANGLES[0] not in self._particles:
            return np.broadcast_to(np.eye(3), (len(self._particles), 3, 3))
        degrees = [self._particles.numbers(name) for name in _SUBTOMOGRAM_ANGLES]
        angles = torch.deg2rad(torch.tensor(np.stack(degrees, -1)))
        found: Numbers = star.rotations_of(angles).numpy()
        return found

    def _origins(self) -> Numbers:
        """Origins "p 3" in Å, in the tomogram's frame."""
        axes = [self._particles.numbers(name, default=0.0) for name in _ORIGIN]
        offsets: Numbers = self._subtomogram() @ np.stack(axes, -1)[:, :, None]
        return offsets[:, :, 0]

    def _projection(self) -> Numbers:
        """Projections "n 3 3" of the tilts."""
        all_tilts = np.concatenate([each.projection for each in self._series])
        return all_tilts[self._row_of_tilt]

    def _projected(self, points: Numbers) -> Numbers:
        """Points "p 3" of the tomograms as each image "n 3" has them."""
        projected: Numbers = self._projection() @ points[self.particle][:, :, None]
        return projected[:, :, 0]

    def _contrast_transfer(self) -> dict[str, Numbers]:
        """Columns "n" of the CTF."""
        values = {}
        for name in self._series[0].columns:
            missing = [each.name for each in self._series if name not in each.columns]
            if missing:
                raise DataError(
                    f"tilt series '{missing[0]}' of '{self._tomograms_file}' has no {name}, which"
                    " others have; add it"
                )
            values[name] = self._of_tilts([each.columns[name] for each in self._series])
        for name in ("rlnDefocusU", "rlnDefocusV"):
            if name in values and self._has_depth:
                values[name] = values[name] + self._defocus_of_depth()
        dose = self._of_tilts([each.dose for each in self._series])
        per_dose = self._of_series([each.b_factor_per_dose for each in self._series])
        if per_dose.any():
            values["rlnCtfBfactor"] = per_dose * dose
        else:
            values["rlnCtfBfactor"] = np.zeros(len(dose))
        of_proteins = np.where(per_dose > 0, 0.0, dose)
        if of_proteins.any():
            values[star.DOSE] = of_proteins
        return values

    def _defocus_of_depth(self) -> Numbers:
        """By how much more each image "n" is defocused than its tilt's centre is, in Å."""
        depth = self._projected(self._positions() - self._origins())[:, 2]
        slopes = [each.depth_slope or 0.0 for each in self._series]
        return self._of_series(slopes) * depth

    def _positions(self) -> Numbers:
        """Places "p 3" in Å, from the tomogram's centre."""
        if all(name in self._particles for name in _CENTRED):
            return np.stack([self._particles.numbers(name) for name in _CENTRED], -1)
        pixels = np.stack([self._particles.numbers(name) for name in _CORNERED], -1)
        pixel_size = np.array([each.pixel_size for each in self._series])
        centres = np.array([each.centre for each in self._series], float)
        own = self._series_number
        return pixels * pixel_size[own, None] - centres[own]

    def _depth_is_unknown(self) -> bool:
        """Whether the file does not say how deep a particle is."""
        if any(each.depth_slope is None for each in self._series):
            return True
        if all(name in self._particles for name in _CENTRED):
            return False
        if not all(name in self._particles for name in _CORNERED):
            return True
        if any(each.centre is None for each in self._series):
            return True
        return self._is_old_export

    def _counts_in_other_pixels(self) -> bool:
        """Whether this is an export of WarpTools up to 2025: places in pixels of the images, beside
        the pixel size of the raw data and projections without shifts.
        """
        if all(name in self._particles for name in _CENTRED):
            return False
        binning = self._particles.numbers(BINNING, default=1.0)
        shifted = any(each.is_shifted for each in self._series)
        return bool((binning != 1).any()) and not shifted

    def _of_tilts(self, values: Iterable[Numbers]) -> Numbers:
        """Values of each series' tilts for each image "n"."""
        chosen: Numbers = np.concatenate(list(values))[self._row_of_tilt]
        return chosen

    def _of_series(self, values: list[float]) -> Numbers:
        """Values of each series for each image "n"."""
        return np.array(values)[self._series_number][self.particle]

    def _pixel_sizes(self) -> dict[str, Numbers]:
        """The images' pixel size, where the file does not state it itself."""
        name = "rlnImagePixelSize"
        if name in self._particles:
            return {}
        of_series = self._of_series([each.pixel_size for each in self._series])
        binning = self._particles.numbers(BINNING, default=1.0)
        return {name: of_series * binning[self.particle]}

    def _image_names(self, datadir: Path | None) -> list[str]:
        """N@stack of each image "n"."""
        stacks = self._particles.texts(star.TERMS["image"])
        lengths = np.array([len(each) for each in self._series])[self._series_number]
        first = np.cumsum(self._visible_count) - self._visible_count
        place = np.arange(len(self.particle)) - first[self.particle]
        for row in np.flatnonzero(self._visible_count < lengths).tolist():
            if self._has_every_tilt(stacks[row], int(lengths[row]), datadir):
                of_row = slice(first[row], first[row] + self._visible_count[row])
                place[of_row] = self.tilt[of_row]
        return [
            f"{number + 1:06d}@{stacks[row]}"
            for number, row in zip(place.tolist(), self.particle.tolist(), strict=True)
        ]

    def _has_every_tilt(self, stack: str, tilts: int, datadir: Path | None) -> bool:
        """Whether a stack holds an image of each tilt, not only of those that are visible; not
        where it is absent.
        """
        try:
            Stacks([f"{tilts}@{stack}"], self._particles.path, datadir)
        except DataError:
            return False
        return True


class TiltSeriesSource(Source):
    """Particles of tilt series, written as they were read while whole particles are chosen; one
    row an image where something is said of single images.
    """

    suffix = ".star"

    def __init__(self, images: StarSource, particles: StarSource, particle: RowNumbers) -> None:
        """images: a row an image. particles: a row a particle. particle "n": of each image, in
        rising order.
        """
        self._images = images
        self._particles = particles
        self._particle = particle

    def take(self, rows: RowNumbers) -> Source:
        """Some images, in the order given."""
        images = self._images.take(rows)
        found = self._whole(rows)
        if found is None:
            return images
        counts = np.bincount(self._particle)[found]
        particle = np.repeat(np.arange(len(found)), counts)
        return TiltSeriesSource(images, self._particles.take(found), particle)

    def with_latents(self, latents: Tensor) -> Source:
        """Coordinates "n L" of all images; once a particle if its images share them."""
        images = self._images.with_latents(latents)
        _, first = np.unique(self._particle, return_index=True)
        own = latents[torch.from_numpy(first)]
        if not torch.equal(own[torch.from_numpy(self._particle)], latents):
            return images
        return TiltSeriesSource(images, self._particles.with_latents(own), self._particle)

    def with_poses(self, views: Views, changed: Mask) -> Source:
        """Poses of the images that are `changed` "n", as one row an image."""
        return self._images.with_poses(views, changed)

    def with_images(self, stack: str, rescaling: Rescaling) -> Source:
        """Images in one stack, as one row an image. Raises DataError."""
        return self._images.with_images(stack, rescaling)

    def write(self, path: Path) -> None:
        """Write every table of the particles' file. Raises OSError."""
        self._particles.write(path)

    def _whole(self, rows: RowNumbers) -> RowNumbers | None:
        """The particles whose images are `rows`, all of them and in order; None where some are
        missing.
        """
        chosen = self._particle[rows]
        begins = np.flatnonzero(np.diff(chosen, prepend=-1))
        found = chosen[begins]
        start = np.searchsorted(self._particle, found)
        end = np.searchsorted(self._particle, found, "right")
        whole = [np.arange(one, two) for one, two in zip(start, end, strict=True)]
        if not whole or not np.array_equal(np.concatenate(whole), rows):
            return None
        return found


def _files(path: Path) -> tuple[Path, Path]:
    """The particles' file and the tomograms' file. Raises DataError."""
    tables = star_file.read(path)
    named = _named_files(path, tables)
    if named is not None:
        return named
    if not any(VISIBLE in table.columns for table in tables):
        return path, path  # written with one row an image
    return path, _tomograms_beside(path)


def _named_files(path: Path, tables: list[Table]) -> tuple[Path, Path] | None:
    """The particles and tomograms that an optimisation set names; None if the file is none."""
    for table in tables:
        if PARTICLES_FILE not in table.columns:
            continue
        if TOMOGRAMS_FILE not in table.columns:
            raise DataError(
                f"optimisation set '{path}' has {PARTICLES_FILE} without {TOMOGRAMS_FILE}; add the"
                " tomograms file, which has the tilts"
            )
        files = []
        for label in (PARTICLES_FILE, TOMOGRAMS_FILE):
            [name, *_] = table.columns[label].texts()
            files.append(tomograms.found_from(path, name))
        return files[0], files[1]
    return None


def _tomograms_beside(path: Path) -> Path:
    """The tomograms file of a particles' file: by an optimisation set in its folder, or the one
    such file there. Raises DataError.
    """
    found = []
    for file in sorted(path.absolute().parent.glob("*.star")):
        head = _head(file)
        if PARTICLES_FILE.encode() in head:
            named = _named_files(file, star_file.read(file))
            if named is not None and named[0].samefile(path):
                return named[1]
        elif b"data_global" in head and b"_" + tomograms.NAME.encode() in head:
            found.append(file)
    if len(found) == 1:
        return found[0]
    words = "has no tomograms file beside it"
    if found:
        names = ", ".join(f"'{file.name}'" for file in found[:_MAX_NAMED])
        words = f"has {len(found)} tomograms files beside it ({names})"
    raise DataError(f"'{path}' lists one stack of tilts a row ({VISIBLE}) and {words}; {_FROM_SET}")


def _head(path: Path) -> bytes:
    """The first bytes of a file, unpacked; none if it can't be read."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(_HEAD)
    except (OSError, EOFError, zlib.error):
        return b""


def _check_2d(particles: StarColumns) -> None:
    name = "rlnImageDimensionality"
    if name in particles and (particles.numbers(name) == 3).any():
        raise DataError(
            f"'{particles.path}' lists 3-D subtomograms ({name} is 3); extract the particles as 2-D"
            " stacks"
        )


def _check_known(
    particles: StarColumns, names: list[str], series: dict[str, TiltSeries], file: Path
) -> None:
    for row, name in enumerate(names):
        if name not in series:
            raise DataError(
                f"{tomograms.NAME} of row {row + 1} of '{particles.path}' is '{name}', which"
                f" '{file}' lacks; give the tomograms file of these particles"
            )


def _visible(
    particles: StarColumns, names: list[str], series: dict[str, TiltSeries]
) -> list[RowNumbers]:
    """The visible tilts of each particle. Raises DataError."""
    visible = []
    for row, (name, text) in enumerate(zip(names, particles.texts(VISIBLE), strict=True)):
        flags = tomograms.vector(text)
        where = f"{VISIBLE} of row {row + 1} of '{particles.path}'"
        if len(flags) != len(series[name]):
            raise DataError(
                f"{where} has {len(flags)} values, but tilt series '{name}' has"
                f" {len(series[name])} tilts; give the tomograms file of these particles"
            )
        if not set(flags) <= {0.0, 1.0}:
            raise DataError(f"{where} is {text}; it must be 0 or 1 for each tilt")
        if not any(flags):
            raise DataError(f"{where} has no tilt that is visible; remove that row")
        visible.append(np.flatnonzero(flags))
    return visible


def _degrees(rotation: Numbers) -> dict[str, Numbers]:
    """Columns "n" of the angles of rotations."""
    angles = torch.rad2deg(rotations.to_euler(torch.from_numpy(rotation)))
    return {name: angles[:, place].numpy() for place, name in enumerate(_ANGLES)}
