"""The demo's protein: a chain whose two domains are rigid, seen as its truth says."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instamap.geometry import rotations
from instamap.simulate import particle_set, random_poses, write_set
from instamap.simulate.exposure import Exposure
from instamap.simulate.hinged_protein import (
    CLOSED,
    HINGE_AXIS,
    HINGE_RESIDUES,
    OPEN,
    HingedProtein,
    opening_angles,
)

BOX = 20
PIXEL = 6.5
LARGE = 198  # residues
ANGLES = st.floats(math.radians(CLOSED), math.radians(OPEN))


def protein(*angle: float) -> HingedProtein:
    return HingedProtein(torch.tensor(angle, dtype=torch.float64), BOX, PIXEL)


@given(first=ANGLES, second=ANGLES)
def test_the_small_domain_turns_about_the_hinge_and_the_large_one_is_at_rest(first, second):
    """By the difference of the angles, about the hinge's axis: both in closed form."""
    one, other = protein(first, second).residues(torch.tensor([first, second]).double())
    assert torch.equal(one[:LARGE], other[:LARGE])
    before = one[LARGE + HINGE_RESIDUES :]
    after = other[LARGE + HINGE_RESIDUES :]
    assert torch.allclose(torch.cdist(before, before), torch.cdist(after, after), atol=1e-6)
    axis = torch.tensor(HINGE_AXIS, dtype=torch.float64)
    turn = rotations.from_rotvec((second - first) * axis / axis.norm())
    expected = (before - before.mean(0)) @ turn.mT
    assert torch.allclose(after - after.mean(0), expected, atol=1e-6)


@given(angle=ANGLES)
def test_it_is_one_chain_within_its_box(angle):
    [residues] = protein(angle).residues(torch.tensor([angle], dtype=torch.float64))
    steps = residues.diff(dim=0).norm(dim=1)
    assert float(steps.min()) > 1.0 and float(steps.max()) < 6.0
    assert float(residues.abs().max()) < 0.45 * BOX * PIXEL


def test_images_are_those_of_each_particle_by_its_row():
    """Chunks of one, in any order, show the same as all at once; sums are the residues' mass."""
    angles = [math.radians(value) for value in (CLOSED, 20.0, OPEN)]
    poses = random_poses.uniform(
        3, shift=1.0, defocus=(1e4, 1e4), generator=torch.Generator().manual_seed(0)
    )
    rotation = rotations.from_euler(*poses.angles.unbind(-1))
    specimen = protein(*angles)
    together = specimen.project_rows(torch.arange(3), rotation, poses.origin)
    for row in (2, 0, 1):
        [one] = specimen.project_rows(
            torch.tensor([row]), rotation[row : row + 1], poses.origin[row : row + 1]
        )
        assert torch.allclose(one, together[row])
    shown = together.sum((1, 2)) * PIXEL**2
    mass = float(protein(0.0).density().sum()) * PIXEL**3
    assert shown.tolist() == pytest.approx([mass] * 3, rel=1e-2)


def test_threads_give_each_image_its_own_particle(tmp_path, monkeypatch):
    """Several compute chunks at once, and end in any order."""
    count = 60
    monkeypatch.setattr(write_set, "MAX_PIXELS_AT_ONCE", BOX**2)
    before = torch.get_num_threads()
    stacks = []
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            specimen = HingedProtein(opening_angles(count, 1), BOX, PIXEL)
            folder = tmp_path / str(threads)
            plan = particle_set.Plan(count)
            particle_set.simulate(folder, specimen, plan, Exposure(1.0), seed=1)
            stacks.append((folder / write_set.STACK).read_bytes()[1024:])
    finally:
        torch.set_num_threads(before)
    assert stacks[0] == stacks[1]


def test_angles_fill_the_range_and_do_not_go_with_the_views():
    """Of the same seed, as the demo draws both; 4 / √n is beyond what chance does."""
    count = 4000
    angles = opening_angles(count, 0)
    assert math.radians(CLOSED) <= float(angles.min()) and float(angles.max()) <= math.radians(OPEN)
    assert float(angles.mean()) == pytest.approx(math.radians((CLOSED + OPEN) / 2), rel=0.03)
    poses = random_poses.uniform(
        count, shift=1.0, defocus=(8e3, 2e4), generator=torch.Generator().manual_seed(0)
    )
    for values in poses.angles.unbind(-1):
        both = torch.stack([values, angles])
        assert abs(float(torch.corrcoef(both)[0, 1])) < 4 / math.sqrt(count)
