"""The Gaussians obey the laws of representations, and are what their formula says."""

import math

import pytest
import torch
from instamap import Scene
from instamap.testing import RepresentationLaws

from instamap_gaussians.gaussians import Gaussians

SCENE = Scene(32, 3.0)


class TestGaussians(RepresentationLaws):
    name = "gaussians"
    options = {"count": 50}


def test_one_gaussian():
    """exp(-r²/2σ²) - e^-4.5, and nothing beyond 3σ; σ² is the learned part plus a quarter of a
    pixel squared.
    """
    part = Gaussians(Gaussians.Options(count=1), SCENE).double()
    with torch.no_grad():
        part.centres.zero_()
        part.amplitudes.fill_(2.0)
        part.log_widths.fill_(math.log(5.0))
    r = torch.linspace(0, 30, 100, dtype=torch.float64)
    variance = 25 + 0.75**2
    expected = 2 * (torch.exp(-(r**2) / (2 * variance)) - math.exp(-4.5)).clamp(min=0)
    along = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    torch.testing.assert_close(part(r[:, None] * along), expected)


def test_seed_decides_where_they_are_born():
    def born(seed):
        return Gaussians(Gaussians.Options(seed=seed), SCENE).centres

    assert torch.equal(born(1), born(1))
    assert not torch.equal(born(1), born(2))
    assert born(1).norm(dim=1).max() <= 0.6


@pytest.mark.parametrize("count", [1, 700])
def test_fits_a_blob(count):
    """A hundred steps of Adam take most of the error away, wherever the blob lies among the
    Gaussians.
    """
    part = Gaussians(Gaussians.Options(count=count), SCENE)

    def target(x):
        return torch.exp(-(x - 8).square().sum(-1) / (2 * 8.0**2))

    optimiser = torch.optim.Adam(part.parameters(), lr=part.options.learning_rate)
    g = torch.Generator().manual_seed(0)
    for _ in range(100):
        x = (torch.rand(2000, 3, generator=g) - 0.5) * 60
        loss = (part(x) - target(x)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.3 * target(x).square().mean()
