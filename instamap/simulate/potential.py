"""An atomic model as a specimen: electron scattering factors are sums of Gaussians, projected in
closed form.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from instamap.errors import DataError
from instamap.fourier.projector import FRAME_EDGE
from instamap.geometry import grids
from instamap.simulate.atomic_model import Atoms

VOLTS = 47.877645
"""h²/(2π m e) in V Å²: what turns a scattering factor (Å) into the integral of the potential (V
Å³).
"""

WATER = 3.5
"""The σ (Å) by which the water that an atom displaces is smeared out more than the atom itself."""

MAX_ATOMS_AT_ONCE = 2048  # whose waves are in memory


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
    ) -> None:
        self.atoms = atoms
        self.box = box
        self.pixel_size = pixel_size
        self.solvent = solvent
        self.point_mass = point_mass
        weighted = atoms.mass[:, None] * atoms.position
        self.centre = weighted.sum(0) / atoms.mass.sum()
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

        Atoms leave the frame at its edges.
        """
        frame = 2 * round(self.box * FRAME_EDGE / 2) + self.box % 2
        lattice = _Lattice(frame, self.pixel_size)
        factors = self._factors(lattice.plane)
        spectra = torch.zeros(
            len(rotation),
            *lattice.plane.shape,
            dtype=torch.complex64,
        )
        for kind, rows in self._rows_by_kind():
            damping = lattice.damping(self.atoms.b_factor[rows])
            position = self.position[rows]
            weighted = damping * self.atoms.occupancy[rows].float()
            for spectrum, turn, shift in zip(spectra, rotation, origin, strict=True):
                x, y = (position @ turn[:2].T - shift).T
                waves_y = lattice.waves(y, damping)
                waves_x = lattice.waves(x, weighted)
                spectrum += factors[kind] * lattice.sum(waves_y, waves_x)
        images = lattice.real(spectra, 2)
        return grids.crop(images, self.box)

    def density(self) -> Tensor:
        """The map "D D D" [z, y, x] (V, float32)."""
        lattice = _Lattice(self.box, self.pixel_size)
        frequency = torch.fft.fftfreq(
            self.box,
            self.pixel_size,
            dtype=torch.float64,
        )
        square = lattice.plane + frequency.square()[:, None, None]
        factors = self._factors(square)
        spectrum = torch.zeros(
            self.box,
            *lattice.plane.shape,
            dtype=torch.complex64,
        )
        for kind, rows in self._rows_by_kind():
            self._add_waves(
                spectrum,
                factors[kind],
                rows,
                lattice,
            )
        return lattice.real(spectrum, 3)

    def _add_waves(
        self,
        spectrum: Tensor,
        factor: Tensor,
        rows: Tensor,
        lattice: "_Lattice",
    ) -> None:
        """Add the atoms in `rows`, of one kind with F(s) `factor`, to the spectrum of the map."""
        damping = lattice.damping(self.atoms.b_factor[rows])
        weighted = damping * self.atoms.occupancy[rows].float()
        x, y, z = self.position[rows].T
        waves_x = lattice.waves(x, weighted)
        waves_y = lattice.waves(y, damping)
        waves_z = lattice.waves(z, damping)
        for k in range(lattice.count):
            cosine = lattice.sum(waves_y * waves_z[k], waves_x)
            sine = lattice.sum(waves_y * waves_z[k + lattice.count], waves_x)
            wave = torch.complex(cosine.real - sine.imag, cosine.imag + sine.real)
            spectrum[k] += factor[k] * wave
            if k:
                opposite = torch.complex(cosine.real + sine.imag, cosine.imag - sine.real)
                spectrum[-k] += factor[-k] * opposite

    def _rows_by_kind(self) -> Iterator[tuple[int, Tensor]]:
        """Rows of atoms of one kind, some at a time."""
        for kind in range(len(self.atoms.elements)):
            rows = (self.atoms.kind == kind).nonzero()[:, 0]
            for part in rows.split(MAX_ATOMS_AT_ONCE):
                yield kind, part

    def _factors(self, square: Tensor) -> Tensor:
        """F(s) less its phase, B-factor and occupancy, "K *n" (float32), of each kind of atom at s²
        "*n".
        """
        ones = [1] * square.ndim
        a = self.atoms.weights.view(*self.atoms.weights.shape, *ones)
        b = self.atoms.widths.view(*self.atoms.widths.shape, *ones)
        gaussians = a * torch.exp(-b * square / 4)
        atom = gaussians.sum(1) + self.point_mass * a.sum(1)
        blur = torch.exp(-2 * (math.pi * WATER) ** 2 * square)
        water = 1 - self.solvent * blur
        return (VOLTS * atom * water).float()


class _Lattice:
    """Plane waves of the frequencies k/(D p) below Nyquist, k = 0 .. count - 1, of a lattice of D
    pixels of p Å.

    plane "D D//2+1": s² (1/Å²) of the components of torch.fft.rfft2.
    """

    def __init__(self, size: int, pixel_size: float) -> None:
        self.size = size
        self.pixel_size = pixel_size
        self.count = (size + 1) // 2
        frequencies = grids.frequencies(
            size,
            pixel_size,
            dtype=torch.float64,
        )
        self.plane = frequencies.square().sum(-1)
        number = torch.arange(self.count, dtype=torch.float64)
        self.axis = number[:, None] / (size * pixel_size)

    def damping(self, b_factor: Tensor) -> Tensor:
        """exp(-B s²/4) "S P" along one axis of atoms "P"."""
        exponent = -0.25 * b_factor * self.axis.square()
        return torch.exp(exponent).float()

    def waves(self, position: Tensor, damping: Tensor) -> Tensor:
        """e^{-2πi s x} times the damping "2S P": real parts, then imaginary parts.

        position: x of atoms, "P" (Å).
        """
        angle = (-2 * math.pi * self.axis).float() * position.float()
        cosine = angle.cos().mul_(damping)
        sine = angle.sin().mul_(damping)
        return torch.cat([cosine, sine])

    def sum(self, y: Tensor, x: Tensor) -> Tensor:
        """Σ over atoms of the product of their waves along y and x: "D D//2+1", zero at Nyquist."""
        n = self.count
        pairs = y @ x.T
        real_real = pairs[:n, :n]
        imaginary_imaginary = pairs[n:, n:]
        imaginary_real = pairs[n:, :n]
        real_imaginary = pairs[:n, n:]
        spectrum = torch.zeros(self.plane.shape, dtype=torch.complex64)
        spectrum[:n, :n] = torch.complex(
            real_real - imaginary_imaginary,
            real_imaginary + imaginary_real,
        )
        # the conjugate wave along y
        conjugate = torch.complex(
            real_real + imaginary_imaginary,
            real_imaginary - imaginary_real,
        )
        spectrum[self.size - n + 1 :, :n] = conjugate[1:].flip(0)
        return spectrum

    def real(self, spectrum: Tensor, dimensions: int) -> Tensor:
        """The lattice "* D .. D" [.., y, x] whose Fourier integral about pixel D // 2 is
        `spectrum`.
        """
        axes = tuple(range(-dimensions, 0))
        size = (self.size,) * dimensions
        lattice = torch.fft.irfftn(
            spectrum,
            s=size,
            dim=axes,
        )
        centred = torch.fft.fftshift(lattice, dim=axes)
        return centred / self.pixel_size**dimensions
