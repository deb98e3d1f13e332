"""Sets of a molecule that is rigid, or one lobe of which swings, by an angle for each particle."""

import math
from pathlib import Path

import torch
from torch import Tensor

from instamap.simulate import particle_set
from instamap.simulate.beads import Beads, molecule
from instamap.simulate.exposure import Exposure
from instamap.simulate.write_set import VariedSpecimen

BOX = 24
PIXEL = 5.0
SMALL = slice(100, 140)  # beads of the small lobe


class SwingingLobe(VariedSpecimen):
    """A specimen (see `instamap.simulate.write_set`), in the particles' order, in which the
    small lobe of the demo's molecule, twice as heavy, is turned about the x axis through the
    molecule's centre by angle "n" (radians).
    """

    box = BOX
    pixel_size = PIXEL

    def __init__(self, angle: Tensor):
        self.angle = angle

    def beads(self, angle: Tensor) -> Beads:
        """Of particles with angles "B"."""
        place, mass = molecule()
        c = angle.cos()
        s = angle.sin()
        one = torch.ones_like(angle)
        nought = torch.zeros_like(angle)
        turn = torch.stack([one, nought, nought, nought, c, -s, nought, s, c], -1).view(-1, 3, 3)
        moved = place.expand(len(angle), -1, -1).clone()
        moved[:, SMALL] = moved[:, SMALL] @ turn.mT
        mass[SMALL] *= 2
        return Beads(moved * BOX * PIXEL, mass, BOX, PIXEL)

    def project_rows(self, rows: Tensor, rotation: Tensor, origin: Tensor) -> Tensor:
        return self.beads(self.angle[rows]).project(rotation, origin)

    def density(self, angle: float = 0.0) -> Tensor:
        one = self.beads(torch.tensor([angle], dtype=torch.float64))
        return Beads(one.position[0], one.mass, BOX, PIXEL).density()


def write(folder: Path, count: int, degrees: float, snr: float, seed: int = 3) -> Tensor:
    """Write particles.star, particles.mrcs and truth.mrc (of the middle state) to `folder`; the
    particles' angles "n" (radians).
    """
    drawn = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    angle = (2 * drawn - 1) * math.radians(degrees)
    particle_set.simulate(
        folder, SwingingLobe(angle), particle_set.Plan(count), Exposure(snr), seed=seed
    )
    return angle
