"""RELION's external reconstruction: a map from the Fourier sums of relion_refine, which hands over
a STAR file and reads the map back.

The map is the least-squares one under RELION's Gaussian prior: each Fourier component is a sum over
images, divided by the sum of their weights and 1/tau². That is what relion_refine does itself where
gridding is skipped, the usual choice of RELION 3.1's windows and of later versions.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from instamap import mrc_format
from instamap.data.formats import star_file
from instamap.errors import DataError
from instamap.maps import mrc
from instamap.mrc_format import MrcError, OpenFile

GENERAL = "external_reconstruct_general"
SPECTRA = "external_reconstruct_tau2"
UNKNOWN_PIXEL_SIZE = 1.0  # Å: RELION 3.1 and 4.0 do not say it, and do not read it back
UNKNOWN_POWER = 0.001  # where tau² is 0, the prior is a thousand times stronger than the data
SMALLEST_WEIGHT = 0.001  # of the mean over a shell; rarer components are not blown up further
TINY = 1e-300  # by which nothing is divided in earnest
EDGE = 3.0  # pixels over which the sphere in the box fades

Columns = Mapping[str, star_file.Column]


@dataclass(frozen=True)
class FourierSums:
    """What relion_refine hands over, on a lattice of P = padding x box components an edge.

    data: "P P P//2+1" complex, sums of the images' transforms over their noise, the density's
    origin in the corner. weight: "P P P//2+1", sums of CTF² over the noise. tau2: of each shell of
    the box. tau2_factor: by which tau² is multiplied. box, current_box: pixels of the map, and of
    a map that would hold all that is known. pixel_size: in Å. result: where the map is expected.
    """

    data: Tensor
    weight: Tensor
    tau2: Tensor
    tau2_factor: float
    padding: float
    box: int
    current_box: int
    pixel_size: float
    result: Path

    @property
    def radius(self) -> int:
        """Components of the lattice within which something is known."""
        return _rounded(self.current_box // 2 * self.padding)


def reconstruct_file(path: Path) -> Path:
    """Makes the map that a STAR file of relion_refine asks for; says where it was written.

    Names in the file are relative to RELION's project, the working folder. Raises InstamapError.
    """
    sums = read(path)
    density = reconstruct(sums)
    mrc.write(sums.result, density, sums.pixel_size)
    return sums.result


def read(path: Path) -> FourierSums:
    """What a STAR file of relion_refine says and the files that it names. Raises DataError."""
    tables = {table.name: table for table in star_file.read(path)}
    for name in (GENERAL, SPECTRA):
        if name not in tables:
            raise DataError(
                f"'{path}' has no table {name}; give the file that relion_refine"
                " --external_reconstruct writes"
            )
    general = tables[GENERAL].columns
    dimensions = _whole(general, "rlnReferenceDimensionality", path)
    if dimensions != 3:
        raise DataError(
            f"'{path}' asks for a reference of {dimensions} dimensions; instamap makes maps of 3:"
            " leave --external_reconstruct out for classes in 2D"
        )
    padding = _positive(general, "rlnPaddingFactor", path)
    box = _whole(general, "rlnOriginalImageSize", path)
    shape = _lattice(padding, box)
    real = _read_lattice(general, "rlnExtReconsDataReal", path, shape)
    imaginary = _read_lattice(general, "rlnExtReconsDataImag", path, shape)
    weight = _read_lattice(general, "rlnExtReconsWeight", path, shape)
    tau2 = _spectrum(tables[SPECTRA].columns, path)
    tau2_factor = _positive(general, "rlnTau2FudgeFactor", path)
    current_box = _whole(general, "rlnCurrentImageSize", path)
    if not 2 <= current_box <= box:
        raise DataError(
            f"'{path}' has rlnCurrentImageSize {current_box}; it must be 2 to {box}, the box"
        )
    pixel_size = UNKNOWN_PIXEL_SIZE
    if "rlnPixelSize" in general:
        pixel_size = _positive(general, "rlnPixelSize", path)
    result = _text(general, "rlnExtReconsResult", path)
    return FourierSums(
        data=torch.complex(real, imaginary),
        weight=weight,
        tau2=tau2,
        tau2_factor=tau2_factor,
        padding=padding,
        box=box,
        current_box=current_box,
        pixel_size=pixel_size,
        result=Path(result),
    )


def reconstruct(sums: FourierSums) -> Tensor:
    """The map "D D D" of Fourier sums, in RELION's unit, its corners faded to the background."""
    radius = _radii(len(sums.data))
    regularised = _with_prior(sums, radius)
    shells = sums.current_box // 2
    weight = _bounded(regularised, radius / sums.padding, shells)
    inside = radius < sums.radius
    known = inside & (weight > 0)
    transform = torch.where(known, sums.data / weight.clamp(min=TINY), 0.0)
    padded = torch.fft.irfftn(transform, s=[len(radius)] * 3, norm="forward")
    middle = _middle(padded, sums.box)
    # RELION's transforms are those of images: of two dimensions, and divided by their pixels.
    density = middle / (sums.padding**3 * sums.box)
    faded = _fade_corners(density)
    return faded / _interpolation(sums.box, sums.padding)


def _with_prior(sums: FourierSums, radius: Tensor) -> Tensor:
    """The weights and 1/tau² of each component's shell."""
    shell = (radius / sums.padding + 0.5).long()
    tau2 = sums.tau2[shell.clamp(max=len(sums.tau2) - 1)]
    # A component of the padded lattice is one of padding³ that share the shell's power.
    factor = sums.padding**3 * sums.tau2_factor
    known = tau2 > 0
    one = torch.ones_like(tau2)
    power = torch.where(known, tau2, one)
    usual = 1.0 / (factor * power)
    measured = sums.weight > 0
    weight = torch.where(measured, sums.weight, one)
    strong = 1.0 / (UNKNOWN_POWER * weight)
    prior = torch.where(known, usual, strong * measured)
    return sums.weight + prior


def _bounded(weight: Tensor, radius: Tensor, shells: int) -> Tensor:
    """Weights, none of them below a thousandth of its shell's mean.

    radius: of each component, in components of the box. shells: within which something is known.
    """
    inside = radius < shells
    shell = radius[inside].long()
    count = torch.bincount(shell, minlength=shells)
    total = torch.bincount(shell, weight[inside], minlength=shells)
    smallest = SMALLEST_WEIGHT * total / count.clamp(min=1)
    nearest = radius.long().clamp(max=shells - 1)
    return torch.maximum(weight, smallest[nearest])


def _middle(padded: Tensor, box: int) -> Tensor:
    """The middle "D D D" of a map whose origin is in the corner."""
    edge = len(padded)
    start = edge // 2 - box // 2
    window = slice(start, start + box)
    centred = torch.fft.fftshift(padded)
    return centred[window, window, window]


def _fade_corners(density: Tensor) -> Tensor:
    """The density with what is outside the largest sphere faded to its mean there."""
    radius = _distances(len(density))
    outside = ((radius - len(density) / 2) / EDGE).clamp(0, 1)
    share = 0.5 - 0.5 * torch.cos(math.pi * outside)
    background = (share * density).sum() / share.sum()
    return density + share * (background - density)


def _interpolation(box: int, padding: float) -> Tensor:
    """What spreading to neighbouring components linearly has multiplied the map "D D D" by."""
    position = _distances(box) / (box * padding)
    return torch.sinc(position).square()


def _distances(box: int) -> Tensor:
    """Distance "D D D" of each voxel from the origin, in pixels."""
    along = (torch.arange(box, dtype=torch.float64) - box // 2).square()
    square = along[:, None, None] + along[:, None] + along
    return square.sqrt()


def _radii(edge: int) -> Tensor:
    """Distance "P P P//2+1" of each component of a half transform from the origin."""
    whole = torch.fft.fftfreq(edge, 1 / edge, dtype=torch.float64).square()
    half = torch.arange(edge // 2 + 1, dtype=torch.float64).square()
    square = whole[:, None, None] + whole[:, None] + half
    return square.sqrt()


def _rounded(value: float) -> int:
    return math.floor(value + 0.5)


def _lattice(padding: float, box: int) -> tuple[int, int, int]:
    """Sections, rows and columns of a half transform of the padded map."""
    edge = _rounded(padding * box)
    return edge, edge, edge // 2 + 1


def _read_lattice(
    columns: Columns, label: str, request: Path, shape: tuple[int, int, int]
) -> Tensor:
    """The values of the half transform that a label names, in float64. Raises DataError."""
    path = Path(_text(columns, label, request))
    try:
        stored = _stored(path, shape)
    except FileNotFoundError:
        raise DataError(
            f"'{path}' does not exist; run in the folder of RELION's project, to which its names"
            " are relative"
        ) from None
    except MrcError as error:
        remedy = error.remedy or "run relion_refine again"
        raise DataError(f"'{path}' cannot be read as MRC: {error.reason}; {remedy}") from error
    values = np.array(stored, dtype=np.float64)
    if not np.isfinite(values).all():
        raise DataError(f"'{path}' has values that are not finite; run relion_refine again")
    return torch.from_numpy(values)


def _stored(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """The values of an MRC file as they are there. Raises DataError for another shape."""
    file = OpenFile(path)
    head = file.read(mrc_format.HEADER_BYTES)
    layout = mrc_format.parse(head, file.size)
    if layout.shape != shape:
        raise DataError(
            f"'{path}' has shape {layout.shape}, not {shape} as its STAR file says; run"
            " relion_refine again"
        )
    raw = np.empty(layout.data_bytes, np.uint8)
    file.read_into([raw], layout.offset, raw.nbytes)
    return layout.decode(raw)


def _text(columns: Columns, label: str, path: Path) -> str:
    """The value of a label. Raises DataError where it is missing."""
    if label not in columns or not len(columns[label]):
        raise DataError(f"'{path}' has no {label}; give a whole file of relion_refine")
    return columns[label].texts()[0]


def _positive(columns: Columns, label: str, path: Path) -> float:
    text = _text(columns, label, path)
    value = float(columns[label].numbers()[0])
    if not (value > 0 and math.isfinite(value)):
        raise DataError(f"'{path}' has {label} {text}; it must be a number above 0")
    return value


def _whole(columns: Columns, label: str, path: Path) -> int:
    value = _positive(columns, label, path)
    if value != int(value):
        raise DataError(f"'{path}' has {label} {value:g}; it must be a whole number")
    return int(value)


def _spectrum(columns: Columns, path: Path) -> Tensor:
    """tau² of each shell, in the order of the shells. Raises DataError."""
    label = "rlnReferenceTau2"
    _text(columns, label, path)
    values = columns[label].numbers()
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise DataError(f"'{path}' has values of {label} that are no numbers of 0 or more")
    return torch.from_numpy(values)
