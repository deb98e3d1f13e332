"""Poses and optics of particles that are to be simulated: drawn, or those of a STAR file."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from instamap.data.formats import star
from instamap.errors import OptionError
from instamap.scene import Optics


@dataclass(frozen=True)
class Poses:
    """angles "n 3": rot, tilt, psi in radians. origin "n 2": Å. optics of each. group "n": optics
    group from 0.
    """

    angles: Tensor
    origin: Tensor
    optics: Optics
    group: Tensor

    def __len__(self) -> int:
        return len(self.angles)


def uniform(
    count: int, *, shift: float, defocus: tuple[float, float], generator: torch.Generator
) -> Poses:
    """Angles uniform over rotations, origins of standard deviation `shift` Å along each axis, a
    defocus between the two of `defocus` (Å).

    At 300 kV, Cs 2.7 mm and amplitude contrast 0.1, in one optics group, with up to 500 Å of
    astigmatism.
    """

    def between(low, high):
        return low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)

    angles = torch.stack(
        [between(-math.pi, math.pi), torch.acos(between(-1, 1)), between(-math.pi, math.pi)], -1
    )
    origin = shift * torch.randn(count, 2, generator=generator, dtype=torch.float64)

    def same(value):
        return torch.full((count,), value, dtype=torch.float64)

    defocus_u = between(*defocus)
    optics = Optics(
        voltage=same(300.0),
        spherical_aberration=same(2.7),
        amplitude_contrast=same(0.1),
        defocus_u=defocus_u,
        defocus_v=defocus_u - between(0, 500),
        defocus_angle=between(0, math.pi),
        phase_shift=same(0.0),
        b_factor=same(0.0),
        scale=same(1.0),
    )
    return Poses(angles, origin, optics, torch.zeros(count, dtype=torch.long))


def from_star(path: Path, count: int | None, generator: torch.Generator) -> Poses:
    """Those of a STAR file: all of them, or `count` rows drawn at random, in the file's order. Its
    images are not looked at.

    Beam tilt and other aberrations are left out. Raises DataError, or OptionError if it has fewer
    rows.
    """
    table = star.read(path)
    if count is not None and count > len(table):
        raise OptionError(
            f"count is {count}, but '{path}' has {len(table)} rows; give at most as many"
        )
    rows = torch.arange(len(table))
    if count is not None and count < len(table):
        rows = torch.randperm(len(table), generator=generator)[:count].sort().values
    optics = table.optics[rows]
    constant = torch.stack(
        [
            table.group[rows].double(),
            optics.voltage,
            optics.spherical_aberration,
            optics.amplitude_contrast,
        ],
        -1,
    )
    _, group = constant.unique(
        dim=0, return_inverse=True
    )  # old files may hold several microscopes in one group
    return Poses(table.angles[rows], table.origin[rows], optics, group)
