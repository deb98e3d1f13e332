"""A correction of a pose: what it does to views, that two make one, and its name as a `rigid`."""

import dataclasses
import math

import pytest
import torch
from support.posed_blobs import BOX, CENTRES, MASSES, PIXEL, WIDTH, normal, poses, wrong

from instamap.geometry import rotations
from instamap.model import compose, default_parts
from instamap.plugin.choice import choose
from instamap.poses import correction
from instamap.scene import Optics, Scene, Views
from instamap.testing.scenes import Gaussians


def test_a_correction_turns_back_and_moves():
    views = Views.of(torch.eye(3, dtype=torch.float64)[None], torch.tensor([[1.0, 2.0]]).double())
    quarter = torch.tensor([[0.0, 0.0, math.pi / 2, 3.0, -4.0]], dtype=torch.float64)
    found = correction.corrected(views, quarter)
    x = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    # By exp(ω)ᵀ, the x axis goes to -y.
    assert torch.allclose(found.rotation[0] @ x, torch.tensor([0.0, -1.0, 0.0]).double())
    assert found.origin.tolist() == [[4.0, -2.0]]


def test_no_correction_changes_nothing():
    views = poses(4)
    found = correction.corrected(views, torch.zeros(4, 5, dtype=torch.float64))
    assert torch.equal(found.rotation, views.rotation)
    assert torch.equal(found.origin, views.origin)


def test_a_correction_after_another_is_one():
    views = poses(6)
    first = wrong(6, 20.0, 5.0)
    second = wrong(6, 20.0, 5.0, seed=6)
    both = correction.corrected(views, correction.followed_by(first, second))
    one_by_one = correction.corrected(correction.corrected(views, first), second)
    assert torch.allclose(both.rotation, one_by_one.rotation)
    assert torch.allclose(both.origin, one_by_one.origin)


def test_the_deformation_rigid_calls_it_back():
    views = poses(6)
    z = wrong(6, 20.0, 5.0)
    assert torch.allclose(correction.from_rigid(views, correction.as_rigid(views, z)), z)


def test_a_translation_along_the_beam_does_not_show():
    views = poses(6)
    beam = views.rotation[:, 2]
    along = torch.cat([torch.zeros(6, 3), 7 * beam], 1)
    assert float(correction.from_rigid(views, along).abs().max()) < 1e-12


def test_a_body_turns_about_its_centre():
    """x = exp(ω)ᵀ (y - c - t) + c: the point that is seen at y = c + t is the centre."""
    views = poses(5)
    rigid = torch.cat([wrong(5, 20.0, 1.0)[:, :3], normal(5, 3, seed=3)], 1)
    centre = torch.tensor([10.0, -20.0, 5.0], dtype=torch.float64)
    found = correction.corrected(views, correction.from_rigid(views, rigid, centre))
    seen = (found.rotation @ centre)[:, :2] - found.origin
    before = (views.rotation @ centre)[:, :2] - views.origin
    translation = (found.rotation @ rigid[:, 3:, None])[:, :2, 0]
    assert torch.allclose(seen, before - translation)


def test_root_mean_squares():
    z = torch.tensor([[0.3, 0.0, 0.4, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    angle, shift = correction.root_mean_square(z)
    assert angle == pytest.approx(math.degrees(0.5) / math.sqrt(2))
    assert shift == pytest.approx(5 / math.sqrt(2))


@pytest.mark.parametrize("is_distorted", [False, True])
def test_a_correction_is_what_rigid_calls_one(is_distorted):
    """Images of the deformation's model are those of the corrected poses."""
    count = 4
    views = poses(count)
    if is_distorted:
        views = distorted(views)
    z = wrong(count, 5.0, 6.0)
    variance = torch.ones(1, BOX // 2 + 1)
    scene = Scene(box=BOX, pixel_size=PIXEL, count=count, noise_variance=variance)
    rigid = choose("deformation", "rigid", ["angle=3", "shift=2"])
    model = compose({**default_parts("rigid"), "deformation": rigid}, scene).double().eval()
    # nothing near the sphere beyond which rays see nothing
    blobs = Gaussians(0.5 * CENTRES, MASSES, WIDTH)

    def field(z=None):
        if z is None:
            return blobs
        return lambda x: blobs(model.deformation(x, z))

    model.field = field
    with torch.no_grad():
        still, _ = model.project(correction.corrected(views, z))
        model.deformation.table.copy_(correction.as_rigid(views, z) / model.deformation.unit)
        moved, _ = model.project(views)
        model.deformation.table.zero_()
        plain, _ = model.project(views)
    size = float(still.abs().max())
    assert float((moved - still).abs().max()) < 1e-4 * size  # of the blobs' tails beyond the sphere
    assert float((plain - still).abs().max()) > 0.3 * size


def distorted(views):
    """The views with contrast transfer and a magnification that is not even."""
    ones = torch.ones(len(views), dtype=torch.float64)
    matrix = torch.tensor([[1.05, 0.03], [-0.02, 0.96]], dtype=torch.float64)
    optics = Optics(
        300 * ones,
        2.7 * ones,
        0.1 * ones,
        5000 * ones,
        5000 * ones,
        0 * ones,
        0 * ones,
        0 * ones,
        ones,
        magnification=matrix.expand(len(views), 2, 2),
    )
    return dataclasses.replace(views, optics=optics)


def test_corrections_of_distorted_views_come_back():
    views = distorted(poses(4))
    z = wrong(4, 5.0, 6.0)
    back = correction.from_rigid(views, correction.as_rigid(views, z))
    assert torch.allclose(back, z)


def test_rotations_of_corrected_views_are_rotations():
    found = correction.corrected(poses(20), wrong(20, 90.0, 1.0)).rotation
    assert torch.allclose(found @ found.mT, torch.eye(3, dtype=torch.float64).expand(20, 3, 3))
    assert torch.allclose(torch.linalg.det(found), torch.ones(20).double())
    assert float(rotations.to_rotvec(found).norm(dim=1).max()) <= math.pi + 1e-9
