"""The demo's molecule: beads that are Gaussians, each integrated over each pixel."""

import math

import torch
from torch import Tensor

from instamap.geometry import grids

BEAD_SIGMA = 0.75  # pixels
WATER_BLUR_SIGMA = 0.6  # pixels: the displaced water is smeared out by this

DISPLACED_WATER = 0.6
"""Share of a bead's mass that the water it displaces takes away: ice has about 0.6 of protein's
potential.
"""

LARGE_LOBE_BEADS = 64
HELIX_BEADS = 36
SMALL_LOBE_BEADS = 40
GOLDEN_FRACTION = 0.6180339887


class Beads:
    """Beads at `position` "P 3" (Å) of `mass` "P" on a lattice of `box` pixels of `pixel_size` Å.

    A bead is a Gaussian of σ = 0.75 pixels less 0.6 of a wider one, for the water that it
    displaces. Other than those of `Potential`, images have no Fourier transform behind them: what
    they show of poses and pixels depends on no convention of it.
    """

    def __init__(
        self,
        position: Tensor,
        mass: Tensor,
        box: int,
        pixel_size: float,
    ) -> None:
        self.position = position
        self.mass = mass
        self.box = box
        self.pixel_size = pixel_size

    def project(self, rotation: Tensor, origin: Tensor) -> Tensor:
        """Projections "B D D" [y, x] at poses: each pixel's mean of the line integral.

        A bead at x lands at (A x)[:2] - origin.
        """
        turned = self.position @ rotation.mT
        landed = turned[..., :2] - origin[:, None]
        images = torch.zeros((), dtype=torch.float64)
        for sigma, factor in self._gaussians():
            x = self._pixel_integrals(landed[..., 0], sigma)
            y = self._pixel_integrals(landed[..., 1], sigma)
            weighted = y * self.mass[:, None]
            images = images + factor * torch.einsum(
                "bpy,bpx->byx",
                weighted,
                x,
            )
        return images / self.pixel_size**2

    def density(self) -> Tensor:
        """The map "D D D" [z, y, x]: each voxel's mean density."""
        total = torch.zeros((), dtype=torch.float64)
        for sigma, factor in self._gaussians():
            x = self._pixel_integrals(self.position[:, 0], sigma)
            y = self._pixel_integrals(self.position[:, 1], sigma)
            z = self._pixel_integrals(self.position[:, 2], sigma)
            weighted = z * self.mass[:, None]
            total = total + factor * torch.einsum(
                "pz,py,px->zyx",
                weighted,
                y,
                x,
            )
        return total / self.pixel_size**3

    def _gaussians(self) -> list[tuple[float, float]]:
        """Width in Å and factor of the Gaussians of one bead."""
        bead = BEAD_SIGMA * self.pixel_size
        water = math.hypot(BEAD_SIGMA, WATER_BLUR_SIGMA) * self.pixel_size
        return [(bead, 1.0), (water, -DISPLACED_WATER)]

    def _pixel_integrals(self, centre: Tensor, sigma: float) -> Tensor:
        """Integrals "*n D" over each pixel of an axis of unit Gaussians at `centre` "*n" (Å)."""
        axis = grids.axis(
            self.box,
            self.pixel_size,
            dtype=torch.float64,
        )
        half_pixel = self.pixel_size / 2
        edges = torch.cat([axis - half_pixel, axis[-1:] + half_pixel])
        distance = (edges - centre[..., None]) / (sigma * math.sqrt(2))
        return 0.5 * torch.erf(distance).diff(dim=-1)


def molecule() -> tuple[Tensor, Tensor]:
    """Centres "P 3" of beads and their masses "P", about their centre of mass.

    Centres are x, y, z as fractions of the box's edge. Two unequal lobes joined by a right-handed
    helix that bends; no symmetry, so that a mirror image shows.
    """
    turn = torch.linspace(
        0,
        1,
        HELIX_BEADS,
        dtype=torch.float64,
    )
    phase = 4 * math.pi * turn
    bend = -0.1 * torch.sin(math.pi * turn)
    helix_x = 0.08 * torch.cos(phase) + bend
    helix_y = 0.08 * torch.sin(phase)
    helix_z = 0.3 * turn - 0.15
    helix = torch.stack([helix_x, helix_y, helix_z], -1)
    large = _ellipsoid(
        LARGE_LOBE_BEADS,
        radii=(0.16, 0.10, 0.08),
        centre=(0.09, 0.01, -0.20),
    )
    small = _ellipsoid(
        SMALL_LOBE_BEADS,
        radii=(0.07, 0.14, 0.06),
        centre=(0.05, 0.08, 0.20),
    )
    beads = torch.cat([large, helix, small])
    mass_of_part = torch.tensor([1.0, 1.5, 1.2], dtype=torch.float64)
    count = torch.tensor([LARGE_LOBE_BEADS, HELIX_BEADS, SMALL_LOBE_BEADS])
    mass = mass_of_part.repeat_interleave(count)
    weighted = mass[:, None] * beads
    centre_of_mass = weighted.sum(0) / mass.sum()
    return beads - centre_of_mass, mass


def _ellipsoid(
    count: int,
    radii: tuple[float, float, float],
    centre: tuple[float, float, float],
) -> Tensor:
    scale = torch.tensor(radii, dtype=torch.float64)
    offset = torch.tensor(centre, dtype=torch.float64)
    return _ball(count) * scale + offset


def _ball(count: int) -> Tensor:
    """Points "P 3" that fill the unit ball evenly.

    They are a spiral over the sphere, pulled inwards in turn.
    """
    i = torch.arange(count, dtype=torch.float64)
    height = 1 - (2 * i + 1) / count
    angle = i * math.pi * (3 - math.sqrt(5))
    around = torch.sqrt(1 - height**2)
    x = around * torch.cos(angle)
    y = around * torch.sin(angle)
    radius = ((i * GOLDEN_FRACTION) % 1) ** (1 / 3)
    return radius[:, None] * torch.stack([x, y, height], -1)
