"""Particles that move: 800 images of a made-up molecule of which one lobe swings. Some seconds.

    python examples/moving_particles.py [FOLDER]

It writes FOLDER/particles.star with its images, and prints:

    800 particles of which a lobe swings, in out/particles.star

The lobe turns by an angle of its own, up to 60 degrees to either side, in each particle. What finds
it is `instamap reconstruct FOLDER/particles.star --deform bending-field`, or motion.py.
"""

import math
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from instamap.simulate import particle_set
from instamap.simulate.beads import Beads, molecule
from instamap.simulate.exposure import Exposure

COUNT = 800
LARGEST_ANGLE = math.radians(60)
SMALL_LOBE = slice(100, 140)  # beads of the molecule


class SwingingLobe:
    """Particles of which one lobe is turned about the x axis by `angle` "n", in their order."""

    box = 24
    pixel_size = 5.0

    def __init__(self, angle: Tensor) -> None:
        self.upcoming = iter(angle)

    def project(self, rotation: Tensor, origin: Tensor) -> Tensor:
        angle = torch.stack([next(self.upcoming) for _ in rotation])
        return self._beads(angle).project(rotation, origin)

    def density(self) -> Tensor:
        return self._beads(torch.tensor(0.0, dtype=torch.float64)).density()

    def _beads(self, angle: Tensor) -> Beads:
        place, mass = molecule()
        x, y, z = place[SMALL_LOBE].T
        cos = angle.cos()[..., None]
        sin = angle.sin()[..., None]
        turned = [x.expand_as(cos * y), cos * y - sin * z, sin * y + cos * z]
        moved = place.expand(*angle.shape, -1, -1).clone()
        moved[..., SMALL_LOBE, :] = torch.stack(turned, -1)
        mass[SMALL_LOBE] *= 2
        return Beads(moved * self.box * self.pixel_size, mass, self.box, self.pixel_size)


def simulate(folder: Path) -> tuple[Path, Tensor]:
    """Writes the particles; their STAR file, and the angle "n" of each in radians."""
    generator = torch.Generator().manual_seed(3)
    angle = LARGEST_ANGLE * (2 * torch.rand(COUNT, generator=generator).double() - 1)
    plan = particle_set.Plan(COUNT)
    written = particle_set.simulate(folder, SwingingLobe(angle), plan, Exposure(0.5))
    return written.star, angle


if __name__ == "__main__":
    star, _ = simulate(Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp()))
    print(f"{COUNT} particles of which a lobe swings, in {star}")
