"""With which conformations a density begins that is then bent into all others."""

from dataclasses import replace

import pytest
import torch

from instamap.fitting.conformations import ConformationData
from instamap.geometry.cube import Cube
from instamap.motion import bend
from instamap.statistics.statistics import Statistics

EMPTY = Statistics.empty(Cube(4, 0, 4), 3.0)


def data(*held_out: float, latent: int = 1) -> ConformationData:
    """Conformations with these weights of held-out particles, and one of fitted ones each."""
    z = torch.arange(len(held_out) * latent, dtype=torch.float64).view(-1, latent)
    fitted = [replace(EMPTY, weight=1.0) for _ in held_out]
    return ConformationData(fitted, [replace(EMPTY, weight=one) for one in held_out], z)


@pytest.mark.parametrize(
    "held_out, latent, expected",
    [
        ((1.0, 1.0, 1.0, 1.0), 1, [2, 1]),
        ((0.0, 0.0, 0.5, 0.0), 1, [2, 1]),
        ((0.0, 0.7, 0.0, 0.0), 2, [2, 1, 3]),
        ((1.0, 0.0, 0.0, 0.0), 1, [2, 1, 3, 0]),
        ((0.0, 0.0, 0.0, 1.0), 1, [2, 1, 3]),
    ],
)
def test_held_out_particles_are_among_the_first_conformations(held_out, latent, expected):
    """Or the density could not be told when to stop: where particles are few, the densest
    conformations may have no held-out ones.
    """
    assert bend.beginning(data(*held_out, latent=latent), [2, 1, 3, 0]) == expected
