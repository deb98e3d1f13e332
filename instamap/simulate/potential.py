"""An atomic model as a source of images: electron scattering factors are sums of Gaussians,
projected in closed form.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from instamap.errors import DataError
from instamap.fourier.projector import FRAME
from instamap.geometry import grids
from instamap.simulate.atomic_model import Atoms

# h²/(2π m e) in V Å²: what turns a scattering factor (Å) into the integral of the potential (V Å³)
VOLTS = 47.877645
# Å: the σ by which the water that an atom displaces is smeared out more than the atom itself
WATER = 3.5
_ATOMS = 2048  # whose waves are in memory at once


class Potential:
    """The electrostatic potential ρ(x) of `atoms` (V) on a lattice of `box` pixels of `pixel_size`
    Å, held up at their centre of mass.

    An atom with factors a, b, B-factor B and occupancy o scatters, at spatial frequency s (1/Å),

        F(s) = 47.88 o exp(-B s²/4) [Σᵢ aᵢ exp(-bᵢ s²/4) + q Σᵢ aᵢ] [1 - w exp(-2π² 3.5² s²)]

    q (`point_mass`): what a point at its centre adds, as a share of its mass, for the neighbourhood
    of the nucleus, which five Gaussians leave out. w (`solvent`): the share of it that displaced
    water takes away, smeared out by 3.5 Å (Babinet's principle). Images and map hold Σ F(s) e^{-2πi
    s·x} over the atoms, which is exact, at every frequency below Nyquist and nothing beyond: the
    limit, in closed form, of integrating each Gaussian over ever finer pixels and then cropping the
    Fourier transform. Sources: Peng et al., Acta Cryst. A52, 257 (1996); Moews & Kretsinger, J.
    Mol. Biol. 91, 201 (1975). Raises DataError for atoms that do not fit the box.
    """

    def __init__(
        self,
        atoms: Atoms,
        box: int,
        pixel_size: float,
        *,
        solvent: float = 0.0,
        point_mass: float = 0.0,
    ):
        self.atoms = atoms
        self.box = box
        self.pixel_size = pixel_size
        self.solvent = solvent
        self.point_mass = point_mass
        self.centre = (atoms.mass[:, None] * atoms.position).sum(0) / atoms.mass.sum()
        self.position = atoms.position - self.centre
        reach = float(self.position.norm(dim=1).max())
        edge = box * pixel_size / 2
        if reach > edge:
            raise DataError(
                f"model '{atoms.path}' reaches {reach:.0f} Å from its centre, but a box of {box}"
                f" pixels of {pixel_size:g} Å only {edge:.0f} Å; give a --box of at least"
                f" {2 * math.ceil(reach / pixel_size)} or larger pixels"
            )

    def project(self, rotation: Tensor, origin: Tensor) -> Tensor:
        """Projections "B D D" [y, x] (V Å, float32) at poses: rotation "B 3 3", origin "B 2" in Å.
        They leave the frame at its edges.
        """
        lattice = _Lattice(2 * round(self.box * FRAME / 2) + self.box % 2, self.pixel_size)
        shape = self._factors(lattice.plane)
        spectra = torch.zeros(len(rotation), *lattice.plane.shape, dtype=torch.complex64)
        for kind, rows in self._groups():
            damping = lattice.damping(self.atoms.b_factor[rows])
            position = self.position[rows]
            weighted = damping * self.atoms.occupancy[rows].float()
            for spectrum, turn, shift in zip(spectra, rotation, origin, strict=True):
                x, y = (position @ turn[:2].T - shift).T
                spectrum += shape[kind] * lattice.sum(
                    lattice.waves(y, damping), lattice.waves(x, weighted)
                )
        return grids.crop(lattice.real(spectra, 2), self.box)

    def density(self) -> Tensor:
        """The map "D D D" [z, y, x] (V, float32)."""
        lattice = _Lattice(self.box, self.pixel_size)
        depth = torch.fft.fftfreq(self.box, self.pixel_size, dtype=torch.float64).square()
        shape = self._factors(lattice.plane + depth[:, None, None])
        spectrum = torch.zeros(self.box, *lattice.plane.shape, dtype=torch.complex64)
        for kind, rows in self._groups():
            damping = lattice.damping(self.atoms.b_factor[rows])
            position = self.position[rows]
            y, z = (lattice.waves(position[:, axis], damping) for axis in (1, 2))
            x = lattice.waves(position[:, 0], damping * self.atoms.occupancy[rows].float())
            for k in range(lattice.count):
                real, imaginary = (
                    lattice.sum(y * part, x) for part in (z[k], z[k + lattice.count])
                )
                spectrum[k] += shape[kind, k] * torch.complex(
                    real.real - imaginary.imag, real.imag + imaginary.real
                )
                if k:
                    spectrum[-k] += shape[kind, -k] * torch.complex(
                        real.real + imaginary.imag, real.imag - imaginary.real
                    )
        return lattice.real(spectrum, 3)

    def _groups(self) -> Iterator[tuple[int, Tensor]]:
        """Rows of atoms of one kind, some at a time."""
        for kind in range(len(self.atoms.elements)):
            yield from (
                (kind, rows) for rows in (self.atoms.kind == kind).nonzero()[:, 0].split(_ATOMS)
            )

    def _factors(self, square: Tensor) -> Tensor:
        """F(s) less its phase, B-factor and occupancy, "K *n" (float32), of each kind of atom at s²
        "*n".
        """
        a, b = (
            t.view(*t.shape, *[1] * square.ndim) for t in (self.atoms.weights, self.atoms.widths)
        )
        shape = (a * torch.exp(-b * square / 4)).sum(1) + self.point_mass * a.sum(1)
        water = 1 - self.solvent * torch.exp(-2 * (math.pi * WATER) ** 2 * square)
        return (VOLTS * shape * water).float()


class _Lattice:
    """Plane waves of the frequencies k/(D p) below Nyquist, k = 0 .. count - 1, of a lattice of D
    pixels of p Å.

    plane "D D//2+1": s² (1/Å²) of the components of torch.fft.rfft2.
    """

    def __init__(self, size: int, pixel_size: float):
        self.size = size
        self.pixel_size = pixel_size
        self.count = (size + 1) // 2
        self.plane = grids.frequencies(size, pixel_size, dtype=torch.float64).square().sum(-1)
        self.axis = torch.arange(self.count, dtype=torch.float64)[:, None] / (size * pixel_size)

    def damping(self, b_factor: Tensor) -> Tensor:
        """exp(-B s²/4) "S P" along one axis of atoms "P"."""
        return torch.exp(-0.25 * b_factor * self.axis.square()).float()

    def waves(self, where: Tensor, damping: Tensor) -> Tensor:
        """Real parts, then imaginary parts, of e^{-2πi s x} "2S P" times the damping, of atoms at x
        = `where` "P" (Å).
        """
        angle = (-2 * math.pi * self.axis).float() * where.float()
        return torch.cat([angle.cos().mul_(damping), angle.sin().mul_(damping)])

    def sum(self, y: Tensor, x: Tensor) -> Tensor:
        """Σ over atoms of the product of their waves along y and x: "D D//2+1", zero at Nyquist."""
        n = self.count
        pairs = y @ x.T
        real = pairs[:n, :n]
        twisted = pairs[n:, n:]  # of both real parts, and both imaginary ones
        down = pairs[n:, :n]
        across = pairs[:n, n:]
        spectrum = torch.zeros(self.plane.shape, dtype=torch.complex64)
        spectrum[:n, :n] = torch.complex(real - twisted, across + down)
        spectrum[self.size - n + 1 :, :n] = torch.complex(real + twisted, across - down)[1:].flip(
            0
        )  # the conjugate wave along y
        return spectrum

    def real(self, spectrum: Tensor, dimensions: int) -> Tensor:
        """The lattice "* D .. D" [.., y, x] whose Fourier integral about pixel D // 2 is
        `spectrum`.
        """
        axes = tuple(range(-dimensions, 0))
        lattice = torch.fft.irfftn(spectrum, s=(self.size,) * dimensions, dim=axes)
        return torch.fft.fftshift(lattice, dim=axes) / self.pixel_size**dimensions
