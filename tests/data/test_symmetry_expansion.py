"""Particles expanded by a point group: poses against closed forms, and which rows stay together."""

import pytest
import torch
from support.swinging import write

from instamap.data import splits
from instamap.data.particles import Particles
from instamap.data.symmetry_expansion import Expansion
from instamap.data.writers import table_of_run, write_latents
from instamap.geometry.symmetry import point_group

COUNT = 30


@pytest.fixture(scope="module")
def particles(tmp_path_factory) -> Particles:
    folder = tmp_path_factory.mktemp("set")
    write(folder, COUNT, 20.0, snr=1.0)
    return Particles.open(folder / "particles.star")


@pytest.mark.parametrize("name", ["C4", "D2", "T"])
def test_a_symmetric_density_looks_the_same_in_all_copies(particles, name):
    """Points g p, for all g, land on the same places of the image in each copy's pose."""
    group = point_group(name)
    expanded = particles.expanded(Expansion(group))
    assert expanded.count == len(group) * COUNT
    points = group @ torch.tensor([11.0, -3.0, 7.0]).double()
    landed = (expanded.views.rotation @ points.mT)[:, :2].mT - expanded.views.origin[:, None]
    landed = landed.view(COUNT, len(group), len(group), 2)
    for copy in range(len(group)):
        apart = torch.cdist(landed[:, 0], landed[:, copy])
        assert float(apart.amin(2).max()) < 1e-6, "each point of one is one of the other"


def test_a_copy_sees_another_subunit_in_the_place_of_the_first(particles):
    """What is at g_s p in the particle is at p in the frame of copy s."""
    group = point_group("C4")
    expanded = particles.expanded(Expansion(group))
    p = torch.tensor([20.0, 0.0, 5.0]).double()
    for row in (0, 7):
        for copy, g in enumerate(group):
            own = particles.views.rotation[row] @ (g @ p)
            torch.testing.assert_close(expanded.views.rotation[4 * row + copy] @ p, own)


def test_copies_stay_together_and_are_drawn_as_before(particles):
    expansion = Expansion(point_group("C3"))
    expanded = particles.expanded(expansion)
    group = expanded.exclusive_groups()
    assert torch.equal(group, torch.arange(COUNT).repeat_interleave(3))
    assert torch.equal(expanded.particle_numbers(), torch.arange(3 * COUNT)), "each may move"
    for half in (None, particles.split(3)):
        twice = None if half is None else expanded.split(3)
        own = splits.draw_sets(particles.exclusive_groups(), half, held_out=0.2, seed=3)
        of_copies = splits.draw_sets(group, twice, held_out=0.2, seed=3)
        assert torch.equal(expansion.rows(own[1]), of_copies[1])
        for name, rows in own[0].items():
            assert torch.equal(expansion.rows(rows), of_copies[0][name])


def test_images_of_one_particle_are_one_copy_by_copy(particles):
    """Where a column groups images, copy s of all of them is a particle."""
    expanded = particles.expanded(Expansion(point_group("C2")))
    column = "rlnRandomSubset"
    number = expanded.particle_numbers(column)
    own = particles.groups(column)
    assert torch.equal(number, (2 * own[:, None] + torch.arange(2)).flatten())


def test_images_are_those_of_the_file(particles):
    expanded = particles.expanded(Expansion(point_group("C3")))
    rows = torch.tensor([0, 4, 8, 3 * COUNT - 1])
    assert torch.equal(expanded.images(rows), particles.images(rows // 3))


def test_the_written_file_says_pose_and_copy(particles, tmp_path):
    """A run in C4 has rows for all copies; what is written of it is read as it was."""
    settings = {"particles": str(particles.path), "symmetry": "C4"}
    table = table_of_run(settings, None, 4 * COUNT)
    latents = torch.arange(4.0 * COUNT)[:, None]
    file = particles.path.parent / "expanded.star"
    write_latents(table, latents, file)
    found = Particles.open(file)
    expanded = particles.expanded(Expansion(point_group("C4")))
    torch.testing.assert_close(found.views.rotation, expanded.views.rotation, rtol=0.0, atol=1e-6)
    torch.testing.assert_close(found.views.origin, expanded.views.origin, rtol=0.0, atol=1e-5)
    copies = found.table.columns.numbers("instamapSymmetryCopy")
    assert copies.tolist() == [0.0, 1.0, 2.0, 3.0] * COUNT
    assert torch.equal(found.images(torch.arange(8)), expanded.images(torch.arange(8)))
    without = table_of_run(settings, None, COUNT)
    assert len(without) == COUNT, "a run that expanded nothing has the rows of the file"
