"""Sets of a molecule of four subunits around the axis z, each of which swings by an angle of its
own.
"""

import math
from pathlib import Path

import torch
from torch import Tensor

from instamap.geometry import grids
from instamap.geometry.symmetry import point_group
from instamap.simulate import particle_set
from instamap.simulate.beads import Beads
from instamap.simulate.exposure import Exposure
from instamap.simulate.write_set import VariedSpecimen

BOX = 24
PIXEL = 5.0
HINGE = torch.tensor([14.0, 0.0, 0.0], dtype=torch.float64)  # Å, of the first subunit
SUBUNITS = 4


def _core() -> Tensor:
    """Beads "n 3" (Å) along the axis, which look the same after a quarter of a turn."""
    generator = torch.Generator().manual_seed(7)
    some = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    some = some * torch.tensor([5.0, 5.0, 12.0]) + torch.tensor([4.0, 2.0, -6.0])
    return (some @ point_group("C4").mT).reshape(-1, 3)


def _subunit() -> Tensor:
    """Beads "n 3" (Å) of the first subunit, along x."""
    generator = torch.Generator().manual_seed(8)
    some = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    return some * torch.tensor([7.0, 4.0, 4.0]) + torch.tensor([32.0, 0.0, 6.0])


class Fourfold(VariedSpecimen):
    """A specimen (see `instamap.simulate.write_set`): subunit s of particle i is turned about an
    axis through its hinge, along the tangent, by angle[i, s] "n 4" (radians).
    """

    box = BOX
    pixel_size = PIXEL

    def __init__(self, angle: Tensor):
        self.angle = angle

    def beads(self, angle: Tensor) -> Beads:
        """Of particles with angles "B 4"."""
        core = _core().expand(len(angle), -1, -1)
        parts = [core]
        for number, g in enumerate(point_group("C4")):
            c = angle[:, number].cos()
            s = angle[:, number].sin()
            one = torch.ones_like(c)
            nought = torch.zeros_like(c)
            turn = torch.stack([c, nought, s, nought, one, nought, -s, nought, c], -1)
            moved = (_subunit() - HINGE) @ turn.view(-1, 3, 3).mT + HINGE
            parts.append(moved @ g.mT)
        place = torch.cat(parts, 1)
        mass = torch.ones(place.shape[1], dtype=torch.float64)
        return Beads(place, mass, BOX, PIXEL)

    def project_rows(self, rows: Tensor, rotation: Tensor, origin: Tensor) -> Tensor:
        return self.beads(self.angle[rows]).project(rotation, origin)

    def density(self) -> Tensor:
        one = self.beads(torch.zeros(1, SUBUNITS, dtype=torch.float64))
        return Beads(one.position[0], one.mass, BOX, PIXEL).density()


def write(folder: Path, count: int, degrees: float, snr: float, seed: int = 3) -> Tensor:
    """Write particles.star, particles.mrcs and truth.mrc (at rest) to `folder`; the angles "n 4"
    (radians) of the particles' subunits.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(count, SUBUNITS, generator=generator, dtype=torch.float64)
    angle = (2 * drawn - 1) * math.radians(degrees)
    particle_set.simulate(
        folder, Fourfold(angle), particle_set.Plan(count), Exposure(snr), seed=seed
    )
    return angle


def around(place: tuple[float, float, float], radius: float) -> Tensor:
    """A soft mask "D D D" around a place (Å)."""
    x = grids.voxel_centres(BOX, PIXEL)
    distance = (x - torch.tensor(place)).norm(dim=-1)
    return ((radius - distance) / (2 * PIXEL)).clamp(0, 1)
