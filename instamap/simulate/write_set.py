"""A simulated set on disk: images of a specimen at given poses, their STAR file, and the specimen's
map as the truth.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from instamap.data.formats import star, star_file, star_optics
from instamap.data.formats.star_file import Column, Table
from instamap.data.stacks import ImageStackWriter, new_stack
from instamap.errors import DataError, OutputError
from instamap.files import replacing, reported
from instamap.fourier import aberrations
from instamap.fourier.ctf import ctf
from instamap.geometry import rotations
from instamap.maps import mrc
from instamap.progress import SILENT, Progress
from instamap.scene import Optics
from instamap.simulate.exposure import Exposure, draw_white
from instamap.simulate.random_poses import Poses
from instamap.threads import in_order

STAR = "particles.star"
STACK = "particles.mrcs"
TRUTH = "truth.mrc"
FILES = (STAR, STACK, TRUTH)

MAX_PIXELS_AT_ONCE = 1 << 18


class Specimen(Protocol):
    """What is imaged, the same in all images, on a lattice of `box` pixels of `pixel_size` Å."""

    box: int
    pixel_size: float

    def project(self, rotation: Tensor, origin: Tensor) -> Tensor:
        """Images "B D D" [y, x] without contrast transfer, in the density's unit times Å.

        rotation "B 3 3", origin "B 2" in Å.
        """

    def density(self) -> Tensor:
        """The map "D D D" [z, y, x] whose images they are."""


class VariedSpecimen(ABC):
    """What is imaged where it differs from image to image, on such a lattice.

    Images are asked for by their rows, in any order, by several threads at once.
    """

    box: int
    pixel_size: float

    @abstractmethod
    def project_rows(self, rows: Tensor, rotation: Tensor, origin: Tensor) -> Tensor:
        """Images "B D D" of what the `rows` "B" of the set show (see `Specimen.project`)."""

    @abstractmethod
    def density(self) -> Tensor:
        """The map "D D D" [z, y, x] that is taken for the truth."""


@dataclass(frozen=True)
class Written:
    """A set that was written.

    star: the file. gain: what one of the specimen's units is in images and truth. contrast,
    background "n": a and b of each image (see `Exposure`).
    """

    star: Path
    gain: float
    contrast: Tensor
    background: Tensor

    def record(self) -> dict[str, Any]:
        """The set as plain values; contrast and background only where images differ in them."""
        values: dict[str, Any] = {"count": len(self.contrast), "gain": self.gain}
        if (self.contrast != 1.0).any():
            values["contrast"] = [round(value, 6) for value in self.contrast.tolist()]
        if (self.background != 0.0).any():
            values["background"] = [round(value, 6) for value in self.background.tolist()]
        return values


def write_set(
    out: Path,
    specimen: Specimen | VariedSpecimen,
    poses: Poses,
    exposure: Exposure,
    *,
    generator: torch.Generator,
    progress: Progress = SILENT,
) -> Written:
    """Write particles.star (RELION 3.1), particles.mrcs and truth.mrc to the folder `out`.

    Images are those after contrast transfer. Noise, contrasts, backgrounds and halves
    (rlnRandomSubset) are drawn. truth.mrc is in the unit of the images per Å, of one with contrast
    1. Raises OutputError if one of the files is there, DataError for a specimen of which nothing
    shows.
    """
    _check_absent(out)
    with reported(out):
        out.mkdir(parents=True, exist_ok=True)
    count = len(poses)
    half = torch.randperm(count, generator=generator) % 2 + 1
    contrast, background = exposure.contrast(count, generator)
    with new_stack(out / STACK, count, specimen.box, specimen.pixel_size) as stack:
        deviation = _write_signal(stack, specimen, poses, progress)
        if not (deviation > 0 and math.isfinite(deviation)):
            raise DataError(
                "what is to be imaged does not show in any image: they are flat; give a model or a"
                " map with a molecule in it"
            )
        gain = math.sqrt(exposure.snr) / deviation
        scale = contrast * gain
        _add_noise(stack, specimen.box, scale, background, exposure, generator)
    truth = (specimen.density() * gain).float()
    label = "truth, of which the particles are images"
    mrc.write(out / TRUTH, truth, specimen.pixel_size, label=label)
    tables = [_optics_table(poses, specimen), _particle_table(poses, half)]
    with replacing(out / STAR) as sibling:
        star_file.write(tables, sibling)
    return Written(out / STAR, gain, contrast, background)


def _check_absent(out: Path) -> None:
    for name in FILES:
        if (out / name).exists():
            raise OutputError(
                f"'{out / name}' is already there; choose another folder or remove it"
            )


def _write_signal(
    stack: ImageStackWriter,
    specimen: Specimen | VariedSpecimen,
    poses: Poses,
    progress: Progress,
) -> float:
    """Fill a stack "n D D" with the specimen's images after contrast transfer.

    Returns the standard deviation of their pixels.
    """
    total = 0.0
    square = 0.0
    rotation = rotations.from_euler(*poses.angles.unbind(-1))

    def imaged(rows: Tensor) -> tuple[slice, np.ndarray]:
        pose = (rotation[rows], poses.origin[rows])
        if isinstance(specimen, VariedSpecimen):
            projections = specimen.project_rows(rows, *pose)
        else:
            projections = specimen.project(*pose)
        images = _transferred(projections.float(), poses.optics[rows], specimen.pixel_size)
        return _span(rows), images.numpy()

    for span, images in in_order(imaged, _chunks(len(poses), specimen.box)):
        stack.write(span.start, images)
        # by numpy, whose order of summation does not depend on the number of threads
        total = total + float(images.sum(dtype=np.float64))
        square = square + float(np.square(images).sum(dtype=np.float64))
        progress.counted("simulated images", span.stop, len(poses))
    pixels = len(poses) * specimen.box**2
    mean = total / pixels
    variance = square / pixels - mean**2
    return math.sqrt(max(variance, 0.0))


def _transferred(projections: Tensor, optics: Optics, pixel_size: float) -> Tensor:
    """Projections "B D D" after contrast transfer and odd aberrations."""
    box = projections.shape[-1]
    transfer = ctf(optics, box, pixel_size).float()
    transform = torch.fft.rfft2(projections) * transfer
    phases = aberrations.modulation(optics, box, pixel_size)
    if phases is not None:
        transform = transform * phases.to(transform)
    return torch.fft.irfft2(transform, s=(box, box))


def _add_noise(
    stack: ImageStackWriter,
    box: int,
    scale: Tensor,
    background: Tensor,
    exposure: Exposure,
    generator: torch.Generator,
) -> None:
    """Turn signals x "n D D" of a stack into scale x + background + noise, with "n" of both."""
    count = len(scale)
    factor = scale[:, None, None].float()
    offset = background[:, None, None].float()

    def drawn() -> Iterator[tuple[Tensor, Tensor]]:
        for rows in _chunks(count, box):
            yield rows, draw_white(len(rows), box, generator)

    def exposed(noise: tuple[Tensor, Tensor]) -> tuple[slice, Tensor]:
        rows, white = noise
        span = _span(rows)
        signal = torch.from_numpy(stack.read(span.start, span.stop))
        return span, signal * factor[rows] + offset[rows] + exposure.filtered(white)

    for span, images in in_order(exposed, drawn()):
        stack.write(span.start, images.numpy())


def _chunks(count: int, box: int) -> tuple[Tensor, ...]:
    images = max(1, MAX_PIXELS_AT_ONCE // box**2)
    return torch.arange(count).split(images)


def _span(rows: Tensor) -> slice:
    """Consecutive rows as a slice."""
    return slice(int(rows[0]), int(rows[-1]) + 1)


def _optics_table(poses: Poses, specimen: Specimen | VariedSpecimen) -> Table:
    groups = poses.group.unique()
    firsts = [int((poses.group == group).nonzero()[0]) for group in groups]
    optics = poses.optics[torch.tensor(firsts)]
    count = len(groups)
    names = [f"opticsGroup{number}" for number in (groups + 1).tolist()]
    columns = {
        "rlnOpticsGroupName": Column.of(names),
        "rlnOpticsGroup": _integers(groups + 1),
        "rlnVoltage": _decimals(optics.voltage),
        "rlnSphericalAberration": _decimals(optics.spherical_aberration),
        "rlnAmplitudeContrast": _decimals(optics.amplitude_contrast),
        "rlnImagePixelSize": _decimals(
            torch.full((count,), specimen.pixel_size, dtype=torch.float64)
        ),
        "rlnImageSize": _integers(torch.full((count,), specimen.box)),
        "rlnImageDimensionality": _integers(torch.full((count,), 2)),
    }
    return Table("optics", columns | _aberrations(optics))


def _aberrations(optics: Optics) -> dict[str, Column]:
    """Columns of what optics groups have beyond spherical aberration."""
    columns = {}
    if optics.beam_tilt is not None:
        for name, values in zip(star_optics.BEAM_TILT, optics.beam_tilt.unbind(1), strict=True):
            columns[name] = _decimals(values)
    for name, terms in ((star_optics.ODD, optics.odd), (star_optics.EVEN, optics.even)):
        if terms is not None:
            columns[name] = Column.of(map(_vector, terms.tolist()))
    return columns


def _particle_table(poses: Poses, half: Tensor) -> Table:
    optics = poses.optics
    rot, tilt, psi = torch.rad2deg(poses.angles).unbind(1)
    x, y = poses.origin.unbind(1)
    names = [f"{number:06d}@{STACK}" for number in range(1, len(poses) + 1)]
    columns = {
        "rlnImageName": Column.of(names),
        "rlnOpticsGroup": _integers(poses.group + 1),
        "rlnAngleRot": _decimals(rot),
        "rlnAngleTilt": _decimals(tilt),
        "rlnAnglePsi": _decimals(psi),
        "rlnOriginXAngst": _decimals(x),
        "rlnOriginYAngst": _decimals(y),
        "rlnDefocusU": _decimals(optics.defocus_u),
        "rlnDefocusV": _decimals(optics.defocus_v),
        "rlnDefocusAngle": _decimals(torch.rad2deg(optics.defocus_angle)),
        "rlnPhaseShift": _decimals(torch.rad2deg(optics.phase_shift)),
        "rlnRandomSubset": _integers(half),
    }
    if (optics.b_factor != 0.0).any():
        columns["rlnCtfBfactor"] = _decimals(optics.b_factor)
    if (optics.scale != 1.0).any():
        columns["rlnCtfScalefactor"] = _decimals(optics.scale)
    if optics.dose is not None:
        columns[star.DOSE] = _decimals(optics.dose)
    return Table("particles", columns)


def _integers(values: Tensor) -> Column:
    return Column.of(str(value) for value in values.tolist())


def _vector(values: list[float]) -> str:
    """As RELION writes coefficients; these are of very different sizes."""
    return "[" + ",".join(map(repr, values)) + "]"


def _decimals(values: Tensor) -> Column:
    """With as many digits as RELION writes."""
    return Column.of(f"{value:.6f}" for value in values.tolist())
