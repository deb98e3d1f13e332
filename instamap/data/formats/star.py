"""Particle STAR files as RELION 3.0 to 5 writes them, read into poses and optics in Å and radians."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from instamap.data.formats.star_tables import Columns, load
from instamap.errors import DataError
from instamap.scene import Optics

_REFINED = "take the STAR file that a 3-D refinement wrote (run_data.star)"
_CTF = "estimate the CTF first, or read the particles as images without contrast transfer"
_PIXEL = (
    "add rlnImagePixelSize to the optics table, or rlnDetectorPixelSize and rlnMagnification to the"
    " particles"
)


@dataclass(frozen=True)
class StarTable:
    """Particles of a STAR file: what it says, with lengths in Å and angles in radians.

    image_names: "N" as written (N@stack). angles "N 3": rot, tilt, psi. origin "N 2": Å. pixel_size
    "N": Å. group "N": optics group from 0. optics: None means no contrast transfer. columns: the
    tables themselves.
    """

    columns: Columns
    image_names: list[str]
    angles: Tensor
    origin: Tensor
    pixel_size: Tensor
    group: Tensor
    optics: Optics | None

    @property
    def path(self) -> Path:
        return self.columns.path

    def __len__(self) -> int:
        return len(self.image_names)


def read(path: str | Path, *, ctf: bool = True) -> StarTable:
    """Read particles from `path` (also gzipped: .star.gz).

    Both generations are understood: one table with origins in pixels (up to 3.0), or particles and
    optics tables, in any order, joined by rlnOpticsGroup, with origins in Å. Where both tables have
    a column the particle table wins; where both kinds of origin are there, those in Å win. Missing
    rlnPhaseShift, rlnCtfBfactor, origins mean 0, a missing rlnCtfScalefactor 1. With ctf=False the
    columns of the CTF are left alone and `optics` is None. Raises DataError.
    """
    columns = load(Path(path))
    if "rlnTomoVisibleFrames" in columns:
        raise DataError(
            f"'{columns.path}' lists one stack of tilts a row (rlnTomoVisibleFrames); "
            "write one row an image, with the pose, defocus and N@stack of each visible tilt"
        )
    names = columns.column(
        "rlnImageName", "take a STAR file of particles, not of micrographs or models"
    )
    angles = [
        columns.numbers(f"rlnAngle{name}", remedy=_REFINED) for name in ("Rot", "Tilt", "Psi")
    ]
    pixel_size = _pixel_size(columns)
    return StarTable(
        columns=columns,
        image_names=[str(name) for name in names],
        angles=torch.deg2rad(torch.tensor(np.stack(angles, -1))),
        origin=torch.tensor(np.stack([_origin(columns, axis, pixel_size) for axis in "XY"], -1)),
        pixel_size=torch.tensor(pixel_size),
        group=torch.tensor(columns.group),
        optics=_optics(columns) if ctf else None,
    )


def vector(text: object) -> list[float]:
    """Numbers of a bracketed, perhaps quoted, vector such as [0.1,0,-2]; a plain number is a vector
    of one. Raises ValueError.
    """
    parts = str(text).strip("\"'[] ").replace(",", " ").split()
    return [float(part) for part in parts]


def unmodelled(columns: Columns) -> list[str]:
    """Names of columns that say something which the image model leaves out: magnification matrix,
    beam tilt, Zernike terms.
    """
    neutral = {
        "rlnMagMat00": 1.0,
        "rlnMagMat01": 0.0,
        "rlnMagMat10": 0.0,
        "rlnMagMat11": 1.0,
        "rlnBeamTiltX": 0.0,
        "rlnBeamTiltY": 0.0,
        "rlnOddZernike": 0.0,
        "rlnEvenZernike": 0.0,
    }
    return [
        name
        for name, nothing in neutral.items()
        if name in columns and not _all_equal(columns, name, nothing)
    ]


def _all_equal(columns: Columns, name: str, value: float) -> bool:
    try:
        return all(
            number == value
            for text in pd.unique(columns.column(name, ""))
            for number in vector(text)
        )
    except ValueError:  # something is written there that can't be read: it is not nothing
        return False


def _positive(values: np.ndarray) -> np.ndarray:
    return values > 0


def _pixel_size(columns: Columns) -> np.ndarray:
    for name in ("rlnImagePixelSize", "rlnPixelSize"):
        if name in columns:
            return columns.numbers(name, allowed=_positive, words="a length in Å above 0")
    if "rlnDetectorPixelSize" not in columns or "rlnMagnification" not in columns:
        raise DataError(f"'{columns.path}' does not say the pixel size; {_PIXEL}")
    detector = columns.numbers(
        "rlnDetectorPixelSize", allowed=_positive, words="a length in µm above 0"
    )
    return (
        detector
        * 1e4
        / columns.numbers("rlnMagnification", allowed=_positive, words="a number above 0")
    )


def _origin(columns: Columns, axis: str, pixel_size: np.ndarray) -> np.ndarray:
    if f"rlnOrigin{axis}Angst" in columns:
        return columns.numbers(f"rlnOrigin{axis}Angst")
    return columns.numbers(f"rlnOrigin{axis}", default=0.0) * pixel_size


def _optics(columns: Columns) -> Optics:
    def fraction(values):
        return (values >= 0) & (values <= 1)

    radians = math.pi / 180
    values = {
        "voltage": columns.numbers(
            "rlnVoltage", remedy=_CTF, allowed=_positive, words="a voltage in kV above 0"
        ),
        "spherical_aberration": columns.numbers("rlnSphericalAberration", remedy=_CTF),
        "amplitude_contrast": columns.numbers(
            "rlnAmplitudeContrast", remedy=_CTF, allowed=fraction, words="from 0 to 1"
        ),
        "defocus_u": columns.numbers("rlnDefocusU", remedy=_CTF),
        "defocus_v": columns.numbers("rlnDefocusV", remedy=_CTF),
        "defocus_angle": columns.numbers("rlnDefocusAngle", remedy=_CTF) * radians,
        "phase_shift": columns.numbers("rlnPhaseShift", default=0.0) * radians,
        "b_factor": columns.numbers("rlnCtfBfactor", default=0.0),
        "scale": columns.numbers("rlnCtfScalefactor", default=1.0),
    }
    return Optics(**{name: torch.tensor(value) for name, value in values.items()})
