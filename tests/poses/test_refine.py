"""Gauss-Newton steps bring poses back that were wrong by known amounts."""

import torch
from support.posed_blobs import density, pose_images, poses, rms_error, wrong

from instamap.poses import correction
from instamap.poses.expansion import ReferenceMap
from instamap.poses.pose_prior import PosePrior
from instamap.poses.refine import refine


def zero(count: int) -> torch.Tensor:
    return torch.zeros(count, 5, dtype=torch.float64)


def test_gauss_newton_finds_poses_that_were_known():
    truth = poses(40)
    given = correction.corrected(truth, wrong(40, 3.0, 4.0))
    seen = pose_images(truth, given, 0.05)
    found = refine(seen, ReferenceMap(density()), zero(40), PosePrior(1.0, 100.0), 6)
    before = rms_error(given, truth)
    after = rms_error(correction.corrected(given, found.z), truth)
    assert before[0] > 4 and before[1] > 4
    assert after[0] < before[0] / 8 and after[1] < before[1] / 20, (before, after)


def test_a_tight_prior_leaves_poses_alone():
    truth = poses(6)
    given = correction.corrected(truth, wrong(6, 3.0, 4.0))
    seen = pose_images(truth, given, 1.0)
    found = refine(seen, ReferenceMap(density()), zero(6), PosePrior(1e-6, 1e-6), 3)
    assert float(found.z.abs().max()) < 1e-3


def test_no_step_leads_down():
    truth = poses(30)
    reference = ReferenceMap(density())
    given = correction.corrected(truth, wrong(30, 40.0, 20.0))  # too far for a parabola
    prior = PosePrior(10.0, 1000.0)
    seen = pose_images(truth, given, 0.3)
    heights = [refine(seen, reference, zero(30), prior, steps).value for steps in (0, 1, 2, 4)]
    for low, high in zip(heights[:-1], heights[1:], strict=True):
        assert (high >= low - 1e-2).all()


def test_no_steps_change_nothing():
    truth = poses(3)
    given = wrong(3, 1.0, 1.0)
    found = refine(
        pose_images(truth, truth, 0.3), ReferenceMap(density()), given, PosePrior(1.0, 1.0), 0
    )
    assert torch.equal(found.z, given)
