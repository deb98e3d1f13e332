"""An atomic model as a specimen whose images are slices of one transform: what an image costs does
not depend on the number of atoms.
"""

import math

import torch
from torch import Tensor

from instamap.fourier.central_slices import Spectrum
from instamap.fourier.projector import Projector
from instamap.geometry import grids
from instamap.scene import Views
from instamap.simulate.atomic_model import Atoms
from instamap.simulate.potential import VOLTS, WATER, Potential
from instamap.threads import single_thread

FINER = 1.75  # pixels of the images over those of the lattice on which atoms are drawn, at least
SHARE_FOLDED = 1e-4  # of a component at Nyquist: what the lattice folds onto it
SHARE_CUT = 1e-6  # of an atom's height: where it ends
MAX_VALUES_AT_ONCE = 1 << 22  # of atoms drawn on blocks of the lattice


class SlicedPotential(Potential):
    """The potential of `Potential`, to a relative error of 3e-4, at a price that suits many images.

    Atoms are drawn once on a lattice that is at least 1.75 times as fine as the pixels, each a sum
    of Gaussians widened by a B-factor B', so that the lattice holds them: a component at Nyquist of
    the pixels, N/2, meets those folded onto it from (1.75 - 1/2) N and beyond, which are damped to
    1e-4 of it where B' (1.25² - 0.5²) / 4p² = ln 1e4. Slices of the lattice's transform (see
    `central_slices`) are multiplied by exp(B' s²/4), which takes the widening back, and by what is
    the same for all atoms, the displaced water. Images hold the components in the inscribed circle
    of their Fourier plane, |s| < 1/2p; those of `Potential` have its corners too. The map has all
    components below Nyquist.
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
        super().__init__(
            atoms,
            box,
            pixel_size,
            solvent=solvent,
            point_mass=point_mass,
        )
        self.projector = Projector(box, pixel_size)
        self.fine_box = grids.fast_edge(box * FINER)  # voxels of the box on the finer lattice
        self.fine_pixel = box * pixel_size / self.fine_box  # Å
        folded = self.fine_box / box - 0.5
        between = (folded**2 - 0.25) / pixel_size**2
        self._widening = 4 * math.log(1 / SHARE_FOLDED) / between  # B' in Å²
        with single_thread():
            self._prepare()

    def _prepare(self) -> None:
        """Draw the atoms and transform them."""
        self.drawn = draw(
            self.atoms,
            self.position,
            self.point_mass,
            self._widening,
            self.fine_pixel,
        )
        lattice_edge = len(self.drawn) * self.fine_pixel
        self._spectrum = Spectrum(self.drawn, 0.5 * lattice_edge / self.pixel_size)
        frame_edge = self.projector.frame * self.pixel_size
        # the projector's components, in cycles per edge of the atoms' lattice
        self._plane = (self.projector.plane * (lattice_edge / frame_edge)).float()
        square = (self.projector.plane / frame_edge).square().sum(-1)
        self._factor = self._common_factor(square) * self._voxels_in_pixel_cube

    def project(self, rotation: Tensor, origin: Tensor) -> Tensor:
        """Projections "B D D" [y, x] (V Å, float32) at poses: rotation "B 3 3", origin "B 2" in Å.

        Atoms leave the frame at its edges.
        """
        views = Views.of(rotation.float(), origin.float())
        slices = self._spectrum.slices(views.frames, self._plane)
        return self.projector.images(slices * self._factor, views)

    def density(self) -> Tensor:
        """The map "D D D" [z, y, x] (V, float32)."""
        with single_thread():
            return self._density()

    def _density(self) -> Tensor:
        drawn = _folded(self.drawn, self.fine_box)
        transform = torch.fft.rfftn(torch.fft.ifftshift(drawn))
        number = torch.fft.fftfreq(self.box, 1 / self.box, dtype=torch.float64)
        count = (self.box + 1) // 2  # components of half an axis, from 0 to below Nyquist
        rows = (number.abs() < count).nonzero()[:, 0]
        square = (number / (self.box * self.pixel_size)).square()
        in_plane = square[rows, None] + square[:count]
        fine_rows = number[rows].long() % self.fine_box
        spectrum = torch.zeros(self.box, self.box, self.box // 2 + 1, dtype=transform.dtype)
        for row, fine_row in zip(rows.tolist(), fine_rows.tolist(), strict=True):
            kept = transform[fine_row, fine_rows, :count]
            factor = self._common_factor(in_plane + square[row])
            spectrum[row, rows, :count] = kept * factor
        lattice = torch.fft.irfftn(spectrum, s=(self.box,) * 3)
        centred = torch.fft.fftshift(lattice)
        return centred * self._voxels_in_pixel_cube

    @property
    def _voxels_in_pixel_cube(self) -> float:
        """The volume of the finer lattice's voxel, in cubes of the pixels' edge."""
        return (self.fine_pixel / self.pixel_size) ** 3

    def _common_factor(self, square: Tensor) -> Tensor:
        """exp(B' s²/4) [1 - w exp(-2π² 3.5² s²)] (float32) at s²."""
        blur = torch.exp(-2 * (math.pi * WATER) ** 2 * square)
        water = 1 - self.solvent * blur
        return (water * torch.exp(0.25 * self._widening * square)).float()


def draw(
    atoms: Atoms, position: Tensor, point_mass: float, widening: float, pixel_size: float
) -> Tensor:
    """The potential "M M M" [z, y, x] (V) of atoms at `position` "P 3" (Å) on the smallest lattice
    of voxels of `pixel_size` Å about the origin that holds them whole.

    An atom of B-factor B and occupancy o is Σᵢ 47.88 o aᵢ (4π/βᵢ)^{3/2} exp(-4π² r²/βᵢ) with βᵢ =
    bᵢ + B + widening, of which one has the weight point_mass · Σᵢ aᵢ and b = 0.
    """
    point = point_mass * atoms.weights.sum(1, keepdim=True)
    weights = torch.cat([atoms.weights, point], 1)
    widths = torch.cat([atoms.widths, torch.zeros_like(point)], 1)
    width = widths[atoms.kind] + atoms.b_factor[:, None] + widening
    height = VOLTS * atoms.occupancy[:, None] * weights[atoms.kind]
    height = height * (4 * math.pi / width) ** 1.5
    reach = torch.sqrt(width.amax(1) * math.log(1 / SHARE_CUT)) / (2 * math.pi)
    voxels = torch.ceil(reach / pixel_size).long()  # of each atom, to either side
    nearest = torch.round(position / pixel_size).long()
    farthest = int(nearest.abs().max() + voxels.max())
    lattice = torch.zeros((2 * farthest + 2,) * 3)
    origin = len(lattice) // 2
    order = torch.argsort(voxels, stable=True)
    start = 0
    while start < len(order):
        # neighbours in the order have blocks of like size; the largest of them is last
        edge = 2 * int(voxels[order[start]]) + 1
        at_once = max(1, MAX_VALUES_AT_ONCE // edge**3)
        rows = order[start : start + at_once]
        start += at_once
        half = int(voxels[rows[-1]])
        offset = torch.arange(-half, half + 1)
        cells = nearest[rows, :, None] + offset
        distance = cells * pixel_size - position[rows, :, None]
        exponent = distance[:, :, None].square() / width[rows, None, :, None]
        fall = torch.exp(-4 * math.pi**2 * exponent)
        x, y, z = fall.unbind(1)
        weighted = (z * height[rows, :, None]).float()
        across = torch.einsum("pgz,pgy->pzyg", weighted, y.float())
        blocks = across.flatten(1, 2) @ x.float()
        blocks = blocks.view(len(rows), *(len(offset),) * 3)
        first = (nearest[rows] - half + origin).tolist()
        for (i, j, k), block in zip(first, blocks, strict=True):
            end = len(offset)
            lattice[k : k + end, j : j + end, i : i + end] += block
    return lattice


def _folded(lattice: Tensor, edge: int) -> Tensor:
    """A lattice "M M M" on "E E E" voxels, origin on origin: what is outside comes in again at the
    opposite side.
    """
    place = torch.arange(len(lattice)) - len(lattice) // 2 + edge // 2
    for axis in range(3):
        shape = list(lattice.shape)
        shape[axis] = edge
        folded = torch.zeros(shape)
        lattice = folded.index_add(axis, place % edge, lattice)
    return lattice
