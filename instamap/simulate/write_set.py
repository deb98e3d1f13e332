"""A simulated set on disk: images of a source at given poses, their STAR file, and the source's map
as the truth.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import mrcfile
import pandas as pd
import starfile
import torch
from torch import Tensor

from instamap.data.noise import Transfer
from instamap.errors import DataError, OutputError
from instamap.geometry import rotations
from instamap.simulate.exposure import Exposure
from instamap.simulate.random_poses import Poses

STAR, STACK, TRUTH = FILES = ("particles.star", "particles.mrcs", "truth.mrc")
_CHUNK = 1 << 18  # pixels of images in memory at once
Watch = Callable[[int, int], None]


class Source(Protocol):
    """What is imaged, on a lattice of `box` pixels of `pixel_size` Å."""

    box: int
    pixel_size: float

    def project(self, rotation: Tensor, origin: Tensor) -> Tensor:
        """Images "B D D" [y, x] without contrast transfer, in the density's unit times Å; rotation
        "B 3 3", origin "B 2" in Å.
        """

    def density(self) -> Tensor:
        """The map "D D D" [z, y, x] whose images they are."""


@dataclass(frozen=True)
class Written:
    """What was written. star: the file. gain: what one of the source's units is in images and
    truth. contrast, background "n": a and b of each image (see `Exposure`).
    """

    star: Path
    gain: float
    contrast: Tensor
    background: Tensor

    def record(self) -> dict:
        """As plain values; contrast and background only where they differ between images."""
        drawn = {"contrast": (self.contrast, 1.0), "background": (self.background, 0.0)}
        lists = {
            name: [round(v, 6) for v in values.tolist()]
            for name, (values, same) in drawn.items()
            if (values != same).any()
        }
        return {"count": len(self.contrast), "gain": self.gain} | lists


def write_set(
    out: Path,
    source: Source,
    poses: Poses,
    exposure: Exposure,
    *,
    transfer: Transfer,
    generator: torch.Generator,
    watch: Watch = lambda done, total: None,
) -> Written:
    """Write particles.star (RELION 3.1), particles.mrcs and truth.mrc to the folder `out`, images
    after contrast transfer by `transfer`.

    Noise, contrasts, backgrounds and halves (rlnRandomSubset) are drawn. truth.mrc is in the unit
    of the images per Å, of one with contrast 1. watch(done, total) is told of images. Raises
    OutputError if one of the files is there, DataError for a source in which nothing shows.
    """
    for name in FILES:
        if (out / name).exists():
            raise OutputError(
                f"'{out / name}' is already there; choose another folder or remove it"
            )
    out.mkdir(parents=True, exist_ok=True)
    count = len(poses)
    box = source.box
    half = torch.randperm(count, generator=generator) % 2 + 1
    contrast, background = exposure.contrast(count, generator)
    with mrcfile.new_mmap(out / STACK, (count, box, box), mrc_mode=2) as stack:
        deviation = _signal(stack.data, source, poses, transfer, watch)
        if not (deviation > 0 and math.isfinite(deviation)):
            raise DataError(
                "what is to be imaged does not show in any image: they are flat; give a model or a"
                " map with a molecule in it"
            )
        gain = math.sqrt(exposure.snr) / deviation
        for rows in _chunks(count, box):
            each = slice(int(rows[0]), int(rows[-1]) + 1)
            a, b = (t[rows, None, None].float() for t in (contrast * gain, background))
            stack.data[each] = (
                torch.from_numpy(stack.data[each]) * a
                + b
                + exposure.draw(len(rows), box, generator)
            ).numpy()
        stack.set_image_stack()
        stack.voxel_size = source.pixel_size
    with mrcfile.new(out / TRUTH) as file:
        file.set_data((source.density() * gain).float().numpy())
        file.voxel_size = source.pixel_size
    starfile.write(
        {"optics": _optics_table(poses, source), "particles": _particle_table(poses, half)},
        out / STAR,
    )
    return Written(out / STAR, gain, contrast, background)


def _signal(images, source: Source, poses: Poses, transfer: Transfer, watch: Watch) -> float:
    """Fill `images` "n D D" with the source's, after contrast transfer; the standard deviation of
    their pixels.
    """
    total = square = 0.0
    rotation = rotations.from_euler(*poses.angles.unbind(-1))
    for rows in _chunks(len(poses), source.box):
        flat = source.project(rotation[rows], poses.origin[rows]).double()
        seen = torch.fft.rfft2(flat) * transfer(poses.optics[rows], source.box, source.pixel_size)
        some = torch.fft.irfft2(seen, s=flat.shape[1:])
        images[int(rows[0]) : int(rows[-1]) + 1] = some.float().numpy()
        total = total + float(some.sum())
        square = square + float(some.square().sum())
        watch(int(rows[-1]) + 1, len(poses))
    return math.sqrt(max(square / images.size - (total / images.size) ** 2, 0.0))


def _chunks(count: int, box: int) -> tuple[Tensor, ...]:
    return torch.arange(count).split(max(1, _CHUNK // box**2))


def _optics_table(poses: Poses, source: Source) -> pd.DataFrame:
    rows = []
    for group in poses.group.unique().tolist():
        optics = poses.optics[(poses.group == group).nonzero()[0]]
        rows.append(
            {
                "rlnOpticsGroupName": f"opticsGroup{group + 1}",
                "rlnOpticsGroup": group + 1,
                "rlnVoltage": float(optics.voltage),
                "rlnSphericalAberration": float(optics.spherical_aberration),
                "rlnAmplitudeContrast": float(optics.amplitude_contrast),
                "rlnImagePixelSize": source.pixel_size,
                "rlnImageSize": source.box,
                "rlnImageDimensionality": 2,
            }
        )
    return pd.DataFrame(rows)


def _particle_table(poses: Poses, half: Tensor) -> pd.DataFrame:
    def degrees(t):
        return torch.rad2deg(t).numpy()

    optics = poses.optics
    columns = {
        "rlnImageName": [f"{i + 1:06d}@{STACK}" for i in range(len(poses))],
        "rlnOpticsGroup": poses.group.numpy() + 1,
        **{
            f"rlnAngle{name}": degrees(poses.angles[:, i])
            for i, name in enumerate(("Rot", "Tilt", "Psi"))
        },
        "rlnOriginXAngst": poses.origin[:, 0].numpy(),
        "rlnOriginYAngst": poses.origin[:, 1].numpy(),
        "rlnDefocusU": optics.defocus_u.numpy(),
        "rlnDefocusV": optics.defocus_v.numpy(),
        "rlnDefocusAngle": degrees(optics.defocus_angle),
        "rlnPhaseShift": degrees(optics.phase_shift),
        "rlnRandomSubset": half.numpy(),
    }
    neutral = {"rlnCtfBfactor": (optics.b_factor, 0.0), "rlnCtfScalefactor": (optics.scale, 1.0)}
    columns |= {
        name: values.numpy()
        for name, (values, nothing) in neutral.items()
        if (values != nothing).any()
    }
    return pd.DataFrame(columns)
