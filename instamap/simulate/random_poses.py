"""Poses and optics of particles that are to be simulated: drawn, or those of a STAR file."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from instamap.data import formats
from instamap.data.formats import star
from instamap.data.formats.star_columns import StarColumns
from instamap.data.particle_table import ParticleTable
from instamap.errors import DataError, OptionError
from instamap.geometry import rotations
from instamap.scene import Optics

VOLTAGE = 300.0  # kV
SPHERICAL_ABERRATION = 2.7  # mm
AMPLITUDE_CONTRAST = 0.1
MAX_ASTIGMATISM = 500  # Å


@dataclass(frozen=True)
class Poses:
    """The poses of particles, and how each was imaged.

    angles "n 3": rot, tilt, psi in radians. origin "n 2": Å. optics of each. group "n": optics
    group from 0.
    """

    angles: Tensor
    origin: Tensor
    optics: Optics
    group: Tensor

    def __len__(self) -> int:
        return len(self.angles)


def uniform(
    count: int,
    *,
    shift: float,
    defocus: tuple[float, float],
    generator: torch.Generator,
) -> Poses:
    """Angles uniform over rotations, origins of standard deviation `shift` Å along each axis.

    The defocus is between the two of `defocus` (Å), at 300 kV, Cs 2.7 mm and amplitude contrast
    0.1, in one optics group, with up to 500 Å of astigmatism.
    """
    rot = _between(-math.pi, math.pi, count, generator)
    tilt = torch.acos(_between(-1, 1, count, generator))
    psi = _between(-math.pi, math.pi, count, generator)
    origin = shift * torch.randn(count, 2, generator=generator, dtype=torch.float64)
    low, high = defocus
    defocus_u = _between(low, high, count, generator)
    astigmatism = _between(0, MAX_ASTIGMATISM, count, generator)
    optics = Optics(
        voltage=_constant(VOLTAGE, count),
        spherical_aberration=_constant(SPHERICAL_ABERRATION, count),
        amplitude_contrast=_constant(AMPLITUDE_CONTRAST, count),
        defocus_u=defocus_u,
        defocus_v=defocus_u - astigmatism,
        defocus_angle=_between(0, math.pi, count, generator),
        phase_shift=_constant(0.0, count),
        b_factor=_constant(0.0, count),
        scale=_constant(1.0, count),
    )
    angles = torch.stack([rot, tilt, psi], -1)
    return Poses(angles, origin, optics, torch.zeros(count, dtype=torch.long))


def _between(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    """Uniform values "n" (float64) from `low` to `high`."""
    return low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)


def _constant(value: float, count: int) -> Tensor:
    return torch.full((count,), value, dtype=torch.float64)


def from_star(path: Path, count: int | None, generator: torch.Generator) -> Poses:
    """Poses and optics of a STAR file: all of them, or `count` rows drawn at random, in its order.

    Its images are not looked at, so that they may be absent. Particles of tilt series have the pose
    and the dose of each tilt. A distortion of the images (anisotropic magnification) is left out.
    Raises DataError, or OptionError if it has fewer rows.
    """
    table = formats.read(path)
    if count is not None and count > len(table):
        raise OptionError(
            f"count is {count}, but '{path}' has {len(table)} rows; give at most as many"
        )
    if table.optics is None:
        raise DataError(
            f"'{path}' has no defocus values, so it says nothing of how particles were imaged;"
            " give a file with CTF parameters, or --poses uniform"
        )
    rows = torch.arange(len(table))
    if count is not None and count < len(table):
        drawn = torch.randperm(len(table), generator=generator)[:count]
        rows = drawn.sort().values
    optics = replace(table.optics[rows], magnification=None)
    _, group = _microscope(table.group[rows], optics).unique(dim=0, return_inverse=True)
    return Poses(_angles(table)[rows], table.origin[rows], optics, group)


def _microscope(group: Tensor, optics: Optics) -> Tensor:
    """What is said once of an optics group, "n K": old files may hold several in one group."""
    alone = [
        group.double(),
        optics.voltage,
        optics.spherical_aberration,
        optics.amplitude_contrast,
    ]
    columns = [torch.stack(alone, -1)]
    for aberration in (optics.beam_tilt, optics.odd, optics.even):
        if aberration is not None:
            columns.append(aberration)
    return torch.cat(columns, -1)


def _angles(table: ParticleTable) -> Tensor:
    """Angles "n 3" in radians: as a STAR file writes them, or of the rotations."""
    if isinstance(table.columns, StarColumns):
        return star.euler_angles(table.columns)
    return rotations.to_euler(table.rotation)
