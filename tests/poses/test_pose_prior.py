"""The prior of corrections: its marginal likelihood is an integral, its widths are estimated."""

import pytest
import torch
from support.posed_blobs import normal

from instamap.poses.expansion import Expansion
from instamap.poses.pose_prior import MIN_WIDTH, PosePrior


def quadratic(mean: torch.Tensor, stiffness: float) -> Expansion:
    """log p(z) = -½ stiffness |z - mean|², expanded elsewhere."""
    z = normal(*mean.shape, seed=11)
    off = z - mean
    value = -0.5 * stiffness * off.square().sum(1)
    curvature = stiffness * torch.eye(5).double().expand(len(z), 5, 5)
    return Expansion(z, value, -stiffness * off, curvature)


def test_the_marginal_likelihood_is_the_integral():
    mean = normal(7, 5)
    prior = PosePrior(0.5, 2.0)
    stiffness = 3.0
    wide = stiffness * torch.tensor([0.25] * 3 + [4.0] * 2, dtype=torch.float64) + 1
    expected = -0.5 * (wide.log() + stiffness * mean.square() / wide).sum(1)
    assert torch.allclose(prior.log_marginal(quadratic(mean, stiffness)), expected)


def test_widths_are_estimated_and_nothing_is_taken_for_nothing():
    stiffness = 1.0
    width = torch.tensor([1.5] * 3 + [3.0] * 2, dtype=torch.float64)
    # what was there, and errors of variance 1 / stiffness
    seen = normal(4000, 5) * width + normal(4000, 5, seed=1)
    found = PosePrior(1.0, 1.0).estimate(quadratic(seen, stiffness))
    assert found.angle == pytest.approx(1.5, rel=0.05)
    assert found.shift == pytest.approx(3.0, rel=0.05)
    nothing = PosePrior(1.0, 1.0).estimate(quadratic(normal(4000, 5, seed=2), stiffness))
    assert nothing.angle < 0.25 and nothing.shift < 0.25


def test_the_estimate_is_where_images_are_likeliest():
    seen = normal(500, 5) * 2 + normal(500, 5, seed=1)
    images = quadratic(seen, 1.0)
    best = PosePrior(1.0, 1.0).estimate(images)
    highest = float(best.log_marginal(images).sum())
    for factor in (0.9, 1.1):
        for other in (
            PosePrior(factor * best.angle, best.shift),
            PosePrior(best.angle, factor * best.shift),
        ):
            assert float(other.log_marginal(images).sum()) < highest


def test_widths_of_zero_are_finite():
    assert PosePrior(0.0, 0.0).precision.tolist() == pytest.approx([MIN_WIDTH**-2] * 5)
