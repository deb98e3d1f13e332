"""Images of an atomic model by slices of one transform: against the sums that define them, and the
same whatever the number of threads.
"""

import math

import pytest
import torch

from instamap.fourier.projector import Projector
from instamap.geometry import grids, rotations
from instamap.scene import Views
from instamap.simulate import particle_set
from instamap.simulate.atomic_model import Atoms
from instamap.simulate.exposure import Exposure
from instamap.simulate.potential import Potential
from instamap.simulate.sliced_potential import SlicedPotential

PIXEL = 2.0  # Å


@pytest.fixture(scope="module")
def atoms(tmp_path_factory):
    """200 atoms of two kinds within 25 Å, B-factors from 0 to 120, some of them half occupied."""
    generator = torch.Generator().manual_seed(3)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    position = 28 * (uniform(200, 3) - 0.5)
    return Atoms(
        path=tmp_path_factory.mktemp("none"),
        position=position,
        b_factor=120 * uniform(200),
        occupancy=torch.where(uniform(200) < 0.2, 0.5, 1.0).double(),
        kind=(uniform(200) < 0.3).long(),
        elements=["C", "S"],
        weights=torch.tensor([[0.1, 0.4, 0.7, 1.1, 0.3], [0.3, 0.7, 1.7, 2.3, 0.9]]).double(),
        widths=torch.tensor([[0.2, 1.5, 6.0, 22.0, 50.0], [0.2, 1.4, 6.5, 24.0, 60.0]]).double(),
    )


def components(source, rotation, plane):
    """Σ F(s) e^{-2πi s·x} "B P" at components "P 2" (1/Å), in double precision."""
    square = plane.square().sum(-1)
    factors = source._factors(square).double()[source.atoms.kind]
    damping = torch.exp(-0.25 * source.atoms.b_factor[:, None] * square)
    height = factors * damping * source.atoms.occupancy[:, None]
    landed = source.position @ rotation[:, :2].mT
    angle = -2 * math.pi * landed @ plane.T
    return torch.polar(height.expand_as(angle), angle).sum(1)


@pytest.mark.parametrize("box", [32, 33])
@pytest.mark.parametrize("more", [{}, {"solvent": 0.6, "point_mass": 1e-2}])
def test_images_hold_the_atoms_sums(atoms, box, more):
    """In the circle of the frame's components and nothing beyond, for a shifted particle; of random
    atoms looking slices up costs 3e-4 of the whole.
    """
    source = SlicedPotential(atoms, box, PIXEL, **more)
    rotation = rotations.random(3)
    origin = torch.tensor([[1.3, -2.1], [0.0, 0.0], [4.0, 1.0]]).double()
    projector = Projector(box, PIXEL)
    plane = projector.plane / (projector.frame * PIXEL)
    sums = components(source, rotation, plane) / PIXEL**3
    views = Views.of(rotation, origin)
    exact = projector.double().images(sums, views)
    found = source.project(rotation, origin).double()
    assert (found - exact).norm() < 3e-4 * exact.norm()
    assert (found - exact).abs().max() < 1e-3 * exact.abs().max()


@pytest.mark.parametrize("box", [32, 33])
def test_images_are_those_in_closed_form_where_pixels_hold_the_atoms(atoms, box):
    """Atoms so blurred that nothing is left at Nyquist, where the two differ."""
    blurred = Atoms(**{**vars(atoms), "b_factor": atoms.b_factor + 900})
    rotation = rotations.random(2)
    origin = torch.tensor([[1.3, -2.1], [0.0, 3.0]]).double()
    exact = Potential(blurred, box, PIXEL, solvent=0.5).project(rotation, origin)
    found = SlicedPotential(blurred, box, PIXEL, solvent=0.5).project(rotation, origin)
    assert (found - exact).norm() < 3e-4 * exact.norm()


@pytest.mark.parametrize("box", [29, 32])
@pytest.mark.parametrize("more", [{}, {"solvent": 0.6, "point_mass": 1e-2}])
def test_the_map_is_that_in_closed_form(atoms, box, more):
    """Also where atoms reach over the edges of the box: they come in at the opposite ones."""
    exact = Potential(atoms, box, PIXEL, **more).density()
    found = SlicedPotential(atoms, box, PIXEL, **more).density()
    assert (found - exact).norm() < 3e-5 * exact.norm()


def test_a_lattice_finer_than_its_atoms_are_far_apart(atoms):
    """Each atom is drawn whole, wherever it lies: nothing is lost of their mass."""
    source = SlicedPotential(atoms, 32, PIXEL)
    drawn = source.drawn.double().sum() * source.fine_pixel**3
    mass = Potential(atoms, 32, PIXEL).density().double().sum() * PIXEL**3
    assert float(drawn) == pytest.approx(float(mass), rel=1e-4)
    edge = len(source.drawn)
    shell = torch.ones(edge, edge, edge, dtype=torch.bool)
    shell[1:-1, 1:-1, 1:-1] = False
    assert source.drawn[shell].abs().max() < 1e-5 * source.drawn.max()


def test_the_number_of_threads_changes_no_bit(atoms, tmp_path):
    """Of images, their noise, and the map."""
    threads = torch.get_num_threads()
    written = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            source = SlicedPotential(atoms, 32, PIXEL, solvent=0.6)
            folder = tmp_path / str(number)
            exposure = Exposure(noise="coloured")
            particle_set.simulate(folder, source, particle_set.Plan(70), exposure, seed=5)
            files = [
                (folder / name).read_bytes()[1024:] for name in ("particles.mrcs", "truth.mrc")
            ]
            written.append(files)
    finally:
        torch.set_num_threads(threads)
    assert written[0] == written[1] == written[2]


def test_frequencies_are_those_of_the_lattice(atoms):
    """The lattice holds what pixels hold at Nyquist, and a box is a whole number of its voxels."""
    source = SlicedPotential(atoms, 30, PIXEL)
    assert source.fine_box * source.fine_pixel == pytest.approx(30 * PIXEL)
    assert source.fine_box == grids.fast_edge(source.fine_box) >= 1.75 * 30
