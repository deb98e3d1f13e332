"""The demo's molecule: beads that are Gaussians, each integrated over each pixel."""

import math

import torch
from torch import Tensor

from instamap.geometry import grids

_BEAD = 0.75  # width (σ) of a bead in pixels
# share of a bead's mass that the water it displaces takes away: ice has about 0.6 of protein's
# potential
_SOLVENT = 0.6
_BLUR = 0.6  # pixels: the displaced water is smeared out by this σ


class Beads:
    """Beads at `position` "P 3" (Å) of `mass` "P" on a lattice of `box` pixels of `pixel_size` Å.

    A bead is a Gaussian of σ = 0.75 pixels less 0.6 of a wider one, for the water that it
    displaces. Other than those of `Potential`, images have no Fourier transform behind them: what
    they show of poses and pixels depends on no convention of it.
    """

    def __init__(self, position: Tensor, mass: Tensor, box: int, pixel_size: float):
        self.position = position
        self.mass = mass
        self.box = box
        self.pixel_size = pixel_size

    def project(self, rotation: Tensor, origin: Tensor) -> Tensor:
        """Projections "B D D" [y, x] at poses: each pixel's mean of the line integral. A bead at x
        lands at (A x)[:2] - origin.
        """
        where = (self.position @ rotation.mT)[..., :2] - origin[:, None]
        images = 0.0
        for sigma, factor in self._kernels():
            x, y = (self._integrals(where[..., axis], sigma) for axis in (0, 1))
            images = images + factor * torch.einsum("bpy,bpx->byx", y * self.mass[:, None], x)
        return images / self.pixel_size**2

    def density(self) -> Tensor:
        """The map "D D D" [z, y, x]: each voxel's mean density."""
        total = 0.0
        for sigma, factor in self._kernels():
            x, y, z = (self._integrals(self.position[:, axis], sigma) for axis in range(3))
            total = total + factor * torch.einsum("pz,py,px->zyx", z * self.mass[:, None], y, x)
        return total / self.pixel_size**3

    def _kernels(self) -> list[tuple[float, float]]:
        """Width in Å and factor of the Gaussians of one bead."""
        return [
            (_BEAD * self.pixel_size, 1.0),
            (math.hypot(_BEAD, _BLUR) * self.pixel_size, -_SOLVENT),
        ]

    def _integrals(self, centre: Tensor, sigma: float) -> Tensor:
        """Integrals "*n D" over each pixel of an axis of unit Gaussians at `centre` "*n" (Å)."""
        axis = grids.axis(self.box, self.pixel_size, dtype=torch.float64)
        edges = torch.cat([axis - self.pixel_size / 2, axis[-1:] + self.pixel_size / 2])
        return 0.5 * torch.erf((edges - centre[..., None]) / (sigma * math.sqrt(2))).diff(dim=-1)


def molecule() -> tuple[Tensor, Tensor]:
    """Centres "P 3" of beads (x, y, z as fractions of the box's edge) and their masses "P", about
    their centre of mass.

    Two unequal lobes joined by a right-handed helix that bends; no symmetry, so that a mirror image
    shows.
    """

    def double(*values):
        return torch.tensor(values, dtype=torch.float64)

    turn = torch.linspace(0, 1, 36, dtype=torch.float64)
    phase = 4 * math.pi * turn
    bend = -0.1 * torch.sin(math.pi * turn)
    helix = torch.stack(
        [0.08 * torch.cos(phase) + bend, 0.08 * torch.sin(phase), 0.3 * turn - 0.15], -1
    )
    large = _ball(64) * double(0.16, 0.10, 0.08) + double(0.09, 0.01, -0.20)
    small = _ball(40) * double(0.07, 0.14, 0.06) + double(0.05, 0.08, 0.20)
    beads = torch.cat([large, helix, small])
    mass = double(1.0, 1.5, 1.2).repeat_interleave(torch.tensor([64, 36, 40]))
    return beads - (mass[:, None] * beads).sum(0) / mass.sum(), mass


def _ball(count: int) -> Tensor:
    """Points "P 3" that fill the unit ball evenly: a spiral over the sphere, pulled inwards in
    turn.
    """
    i = torch.arange(count, dtype=torch.float64)
    height = 1 - (2 * i + 1) / count
    angle = i * math.pi * (3 - math.sqrt(5))
    around = torch.sqrt(1 - height**2)
    radius = ((i * 0.6180339887) % 1) ** (1 / 3)
    return radius[:, None] * torch.stack(
        [around * torch.cos(angle), around * torch.sin(angle), height], -1
    )
