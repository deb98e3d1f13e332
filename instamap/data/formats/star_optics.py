"""Columns of a STAR file that describe aberrations beyond defocus and spherical aberration."""

import math

import torch
from torch import Tensor

from instamap.data.particle_table import Columns
from instamap.errors import DataError

BEAM_TILT = ("rlnBeamTiltX", "rlnBeamTiltY")
MAGNIFICATION = ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11")
ODD = "rlnOddZernike"
EVEN = "rlnEvenZernike"
IDENTITY = (1.0, 0.0, 0.0, 1.0)
NO_TILT = (0.0, 0.0)
# singular values of a magnification matrix: beyond them it is no distortion but a mistake
LEAST_MAGNIFICATION = 0.5
MOST_MAGNIFICATION = 1.5


def beam_tilt(columns: Columns) -> Tensor | None:
    """Beam tilt "n 2" in mrad; None if there is none. Raises DataError."""
    return _numbers(columns, BEAM_TILT, NO_TILT)


def magnification(columns: Columns) -> Tensor | None:
    """Magnification matrices "n 2 2"; None if nothing is distorted. Raises DataError."""
    values = _numbers(columns, MAGNIFICATION, IDENTITY)
    if values is None:
        return None
    matrices = values.view(-1, 2, 2)
    scales = torch.linalg.svdvals(matrices)
    wrong = (scales < LEAST_MAGNIFICATION) | (scales > MOST_MAGNIFICATION)
    if wrong.any():
        row = int(wrong.any(1).nonzero()[0, 0])
        entries = ", ".join(f"{value:g}" for value in values[row].tolist())
        raise DataError(
            f"rlnMagMat00 to rlnMagMat11 of row {row + 1} of '{columns.path}' are {entries}, which"
            f" is no distortion of an image: it scales by less than {LEAST_MAGNIFICATION:g} or more"
            f" than {MOST_MAGNIFICATION:g}; mend it, or write 1, 0, 0, 1"
        )
    return matrices


def odd_zernike(columns: Columns) -> Tensor | None:
    """Coefficients "n K" of odd Zernike terms in radians; None if all are 0, or unreadable."""
    return _vectors(columns, ODD)


def even_zernike(columns: Columns) -> Tensor | None:
    """Coefficients "n K" of even Zernike terms in radians; None if all are 0, or unreadable."""
    return _vectors(columns, EVEN)


def vector(text: object) -> list[float]:
    """Numbers of a bracketed, perhaps quoted, vector such as [0.1,0,-2]; a plain number is a vector
    of one. Raises ValueError.
    """
    bare = str(text).strip("\"'[] ")
    return [float(part) for part in bare.replace(",", " ").split()]


def distortions(columns: Columns) -> list[str]:
    """Names of columns that say that images are distorted."""
    names = []
    for name, neutral in zip(MAGNIFICATION, IDENTITY, strict=True):
        if name in columns and (columns.as_numbers(name) != neutral).any():
            names.append(name)
    return names


def _numbers(columns: Columns, names: tuple[str, ...], neutral: tuple[float, ...]) -> Tensor | None:
    """Values "n len(names)", those of a missing column being neutral; None if all are neutral."""
    if not any(name in columns for name in names):
        return None
    each = []
    for name, default in zip(names, neutral, strict=True):
        each.append(torch.tensor(columns.numbers(name, default=default)))
    values = torch.stack(each, -1)
    if (values == torch.tensor(neutral)).all():
        return None
    return values


def unreadable(columns: Columns) -> list[str]:
    """Names of columns of Zernike terms in which something is written that is no vector."""
    present = [name for name in (ODD, EVEN) if name in columns]
    return [name for name in present if _distinct_vectors(columns, name) is None]


def _vectors(columns: Columns, name: str) -> Tensor | None:
    """Vectors "n K", the shorter ones continued by 0; None if all are 0, or one is none."""
    if name not in columns:
        return None
    vectors = _distinct_vectors(columns, name)
    if vectors is None:
        return None
    longest = max(len(each) for each in vectors.values())
    padded = [each + [0.0] * (longest - len(each)) for each in vectors.values()]
    table = torch.tensor(padded, dtype=torch.float64)
    if not table.any():
        return None
    number = {text: place for place, text in enumerate(vectors)}
    return table[[number[text] for text in columns.texts(name)]]


def _distinct_vectors(columns: Columns, name: str) -> dict[str, list[float]] | None:
    """The vector of each text; None if one of them is none."""
    vectors = {}
    for text in dict.fromkeys(columns.texts(name)):
        try:
            values = vector(text)
        except ValueError:
            return None
        if not all(math.isfinite(value) for value in values):
            return None
        vectors[text] = values
    return vectors
