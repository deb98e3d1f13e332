"""Particle STAR files as RELION 3.0 to 5 writes them: poses and optics in Å and radians."""

import math
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from instamap.data.formats import mirror, star_optics
from instamap.data.formats.base import InputFormat
from instamap.data.formats.star_columns import StarColumns
from instamap.data.formats.star_source import StarSource
from instamap.data.particle_table import Columns, Mask, Numbers, ParticleTable
from instamap.errors import DataError
from instamap.geometry import rotations
from instamap.scene import Optics, Views

TERMS = {
    "image": "rlnImageName",
    "box": "rlnImageSize",
    "pixel size": "rlnImagePixelSize",
    "half": "rlnRandomSubset",
    "premultiplied": "rlnCtfDataAreCtfPremultiplied",
    "phase-flipped": "rlnCtfDataArePhaseFlipped",
    "mirrored": "rlnIsFlip",
}
# electrons/Å² that a tilt's specimen had before; RELION, which does not know the column, keeps it
DOSE = "instamapDose"
_REFINED = "take the STAR file that a 3-D refinement wrote (run_data.star)"
_CTF = "take the STAR file that has the CTF of all images, or estimate it first"
_PIXEL = (
    "add rlnImagePixelSize to the optics table, or rlnDetectorPixelSize and rlnMagnification to the"
    " particles"
)
_DEGREE = math.pi / 180
_ROWS_AT_ONCE = 1 << 16
_HEAD = 1 << 16  # bytes in which a STAR file has its first table
_TABLE = re.compile(rb"^\s*data_", re.MULTILINE)


class StarFormat(InputFormat):
    """STAR files of particles, also gzipped (.star.gz).

    Both generations are understood: one table with origins in pixels (up to 3.0), or particles and
    optics tables, in any order, joined by rlnOpticsGroup, with origins in Å. Where both tables have
    a column the particle table wins; where both kinds of origin are there, those in Å win. Missing
    rlnPhaseShift, rlnCtfBfactor, origins mean 0, a missing rlnCtfScalefactor 1. Of an image that is
    mirrored (rlnIsFlip) the pose is that with which it is seen as it is.
    """

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """By its suffix, or a data_ line near its beginning."""
        if not path.is_file():
            return False
        if path.name.endswith((".star", ".star.gz")):
            return True
        with path.open("rb") as file:
            head = file.read(_HEAD)
        return b"\0" not in head and _TABLE.search(head) is not None

    def read(self, path: Path, *, ctf: bool = True) -> ParticleTable:
        """The particles of a STAR file; with ctf=False the columns of the CTF are left alone and
        `optics` is None. Raises DataError.
        """
        columns = StarColumns.read(path)
        if "rlnTomoVisibleFrames" in columns:
            raise DataError(
                f"'{columns.path}' lists one stack of tilts a row (rlnTomoVisibleFrames); "
                "write one row an image, with the pose, defocus and N@stack of each visible tilt"
            )
        return table_of(columns, ctf=ctf)


def table_of(columns: StarColumns, *, ctf: bool = True) -> ParticleTable:
    """What the columns of images, one row each, say of them. Raises DataError."""
    image_names = columns.texts(
        TERMS["image"], "take a STAR file of particles, not of micrographs or models"
    )
    _check_origins(columns)
    rotation = rotations_of(euler_angles(columns))
    pixel_size = _pixel_size(columns)
    views = Views.of(rotation, _origins(columns, pixel_size), _optics(columns) if ctf else None)
    mirrored = _mirrored(columns)
    if mirrored is not None:
        views = mirror.mirrored(views, mirrored)
    premultiplied = _premultiplied(columns, views.optics)
    return ParticleTable(
        path=columns.path,
        image_names=image_names,
        rotation=views.rotation,
        origin=views.origin,
        optics=views.optics,
        group=torch.tensor(columns.group),
        group_names=_group_names(columns),
        pixel_size=torch.tensor(pixel_size),
        box=_box(columns),
        premultiplied=premultiplied,
        phase_flipped=_phase_flipped(columns, views.optics, premultiplied),
        sign=None,
        half=_half(columns),
        ignored=tuple(unmodelled(columns, ctf=ctf)),
        columns=columns,
        terms=TERMS,
        source=StarSource(columns, pixel_size, mirrored),
    )


def read(path: str | Path, *, ctf: bool = True) -> ParticleTable:
    """The particles of a STAR file. Raises DataError."""
    return StarFormat().read(Path(path), ctf=ctf)


def euler_angles(columns: Columns) -> Tensor:
    """Rot, tilt and psi "n 3" in radians."""
    names = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
    degrees = [columns.numbers(name, remedy=_REFINED) for name in names]
    return torch.deg2rad(torch.tensor(np.stack(degrees, -1)))


def rotations_of(angles: Tensor) -> Tensor:
    """Rotations "n 3 3" of angles "n 3" in radians, some at a time: factors take memory."""
    chunks = angles.split(_ROWS_AT_ONCE)
    return torch.cat([rotations.from_euler(*chunk.unbind(-1)) for chunk in chunks])


def unmodelled(columns: Columns, *, ctf: bool = True) -> list[str]:
    """Names of columns that say something which the image model leaves out: Zernike terms that
    cannot be read, and, where nothing is read of the optics, a magnification matrix.
    """
    return star_optics.unreadable(columns) if ctf else star_optics.distortions(columns)


def _positive(values: Numbers) -> Mask:
    return values > 0


def _not_negative(values: Numbers) -> Mask:
    return values >= 0


def _fraction(values: Numbers) -> Mask:
    return (values >= 0) & (values <= 1)


def _flag(values: Numbers) -> Mask:
    return (values == 0) | (values == 1)


def _subset(values: Numbers) -> Mask:
    return (values == 1) | (values == 2)


def _pixel_size(columns: StarColumns) -> Numbers:
    for name in ("rlnImagePixelSize", "rlnPixelSize"):
        if name in columns:
            return columns.numbers(name, allowed=_positive, words="a length in Å above 0")
    if "rlnDetectorPixelSize" not in columns or "rlnMagnification" not in columns:
        raise DataError(f"'{columns.path}' does not say the pixel size; {_PIXEL}")
    detector = columns.numbers(
        "rlnDetectorPixelSize", allowed=_positive, words="a length in µm above 0"
    )
    magnification = columns.numbers("rlnMagnification", allowed=_positive, words="a number above 0")
    return detector * 1e4 / magnification


def _check_origins(columns: StarColumns) -> None:
    """Refuse half a pair of origins, and origins that are there as priors alone: what is missing
    would be taken for 0.
    """
    for unit in ("Angst", ""):
        for axis, other in ("XY", "YX"):
            name = f"rlnOrigin{axis}{unit}"
            missing = f"rlnOrigin{other}{unit}"
            if name in columns and missing not in columns:
                raise DataError(
                    f"'{columns.path}' has {name} without {missing}; add that column, or remove"
                    f" {name} if the images are centred"
                )
    names = ("rlnOriginXAngst", "rlnOriginX")
    priors = ("rlnOriginXPriorAngst", "rlnOriginYPriorAngst", "rlnOriginXPrior", "rlnOriginYPrior")
    for prior in priors:
        if prior in columns and not any(name in columns for name in names):
            origin = prior.replace("Prior", "")
            raise DataError(
                f"'{columns.path}' has {prior} without {origin}; copy the prior to that column, or"
                f" add it as 0 if the images are centred"
            )


def _mirrored(columns: StarColumns) -> Tensor | None:
    """Which images "n" are mirrored; None if none is."""
    flags = columns.numbers(TERMS["mirrored"], default=0.0, allowed=_flag, words="0 or 1")
    return torch.from_numpy(flags == 1) if flags.any() else None


def _phase_flipped(
    columns: StarColumns, optics: Optics | None, premultiplied: bool
) -> Tensor | None:
    """Which images "n" are phase-flipped; None if none is."""
    name = TERMS["phase-flipped"]
    flags = columns.numbers(name, default=0.0, allowed=_flag, words="0 or 1")
    if not flags.any():
        return None
    if premultiplied:
        raise DataError(
            f"{name} and {TERMS['premultiplied']} of '{columns.path}' are both 1, but images are"
            " one or the other; set the one to 0 that is not true"
        )
    if optics is None:
        raise DataError(
            f"{name} of '{columns.path}' is 1, which makes the CTF part of the images; read them"
            " with their CTF"
        )
    return torch.from_numpy(flags == 1)


def _origins(columns: StarColumns, pixel_size: Numbers) -> Tensor:
    """Origins "n 2" in Å."""
    axes = [_origin(columns, axis, pixel_size) for axis in "XY"]
    return torch.tensor(np.stack(axes, -1))


def _origin(columns: StarColumns, axis: str, pixel_size: Numbers) -> Numbers:
    if f"rlnOrigin{axis}Angst" in columns:
        return columns.numbers(f"rlnOrigin{axis}Angst")
    return columns.numbers(f"rlnOrigin{axis}", default=0.0) * pixel_size


def _optics(columns: StarColumns) -> Optics:
    def number(name: str) -> Numbers:
        return columns.numbers(name, remedy=_CTF)

    voltage = columns.numbers(
        "rlnVoltage", remedy=_CTF, allowed=_positive, words="a voltage in kV above 0"
    )
    aberration = number("rlnSphericalAberration")
    contrast = columns.numbers(
        "rlnAmplitudeContrast", remedy=_CTF, allowed=_fraction, words="from 0 to 1"
    )
    defocus_u = number("rlnDefocusU")
    defocus_v = number("rlnDefocusV")
    defocus_angle = number("rlnDefocusAngle") * _DEGREE
    phase_shift = columns.numbers("rlnPhaseShift", default=0.0) * _DEGREE
    b_factor = columns.numbers("rlnCtfBfactor", default=0.0)
    scale = columns.numbers("rlnCtfScalefactor", default=1.0)
    return Optics(
        voltage=torch.tensor(voltage),
        spherical_aberration=torch.tensor(aberration),
        amplitude_contrast=torch.tensor(contrast),
        defocus_u=torch.tensor(defocus_u),
        defocus_v=torch.tensor(defocus_v),
        defocus_angle=torch.tensor(defocus_angle),
        phase_shift=torch.tensor(phase_shift),
        b_factor=torch.tensor(b_factor),
        scale=torch.tensor(scale),
        dose=_dose(columns),
        beam_tilt=star_optics.beam_tilt(columns),
        odd=star_optics.odd_zernike(columns),
        even=star_optics.even_zernike(columns),
        magnification=star_optics.magnification(columns),
    )


def _dose(columns: StarColumns) -> Tensor | None:
    """Electrons/Å² before each image "n"; None where the file does not say it."""
    if DOSE not in columns:
        return None
    words = "electrons/Å² of at least 0"
    return torch.tensor(columns.numbers(DOSE, allowed=_not_negative, words=words))


def _premultiplied(columns: StarColumns, optics: Optics | None) -> bool:
    name = TERMS["premultiplied"]
    flags = columns.numbers(name, default=0.0, allowed=_flag, words="0 or 1")
    if flags.min() != flags.max():
        raise DataError(
            f"{name} of '{columns.path}' is 0 for some images and 1 for others; select the optics"
            " groups that share one"
        )
    if flags.any() and optics is None:
        raise DataError(
            f"{name} of '{columns.path}' is 1, which makes the CTF part of the images; read them"
            " with their CTF"
        )
    return bool(flags.any())


def _half(columns: StarColumns) -> Tensor | None:
    name = TERMS["half"]
    if name not in columns:
        return None
    subset = columns.numbers(name, allowed=_subset, words="1 or 2")
    return torch.from_numpy(subset.astype(np.int64)) - 1


def _box(columns: StarColumns) -> Tensor | None:
    name = TERMS["box"]
    return torch.tensor(columns.numbers(name)) if name in columns else None


def _group_names(columns: StarColumns) -> tuple[str, ...]:
    """Names of the optics groups, or their numbers from 1 where the file has no names."""
    optics = columns.optics
    if optics is not None and "rlnOpticsGroupName" in optics.columns:
        return tuple(optics.columns["rlnOpticsGroupName"].texts())
    count = int(columns.group.max()) + 1 if optics is None else len(optics)
    return tuple(str(number) for number in range(1, count + 1))
