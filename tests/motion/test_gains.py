"""What a description of conformations gains is told over the best of all single maps, in images of
Gaussian blobs whose transforms are known.
"""

import math

import pytest
import torch
from support.blobs import blob, images, seeded

from instamap.motion import gains, state_mixture
from instamap.motion.gains import Conformations

LEVEL = 0.3
TRUE = blob(0.0, 0.0, 0.0)
# nearly still: a wobble of a thousandth of a voxel about what is true
STILL = torch.stack([blob(k, 0.0, 0.0) for k in (-0.003, 0.0, 0.003)])
PLACES = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)


def blobs(place: torch.Tensor, height: torch.Tensor | None = None):
    """Particles with a blob at `place` "m" along x, of a height "m"."""
    centre = torch.stack([place, torch.zeros_like(place), torch.zeros_like(place)], -1)
    height = torch.ones(len(place)) if height is None else height
    return images(centre[:, None], height[:, None], LEVEL, seeded(3))


def gain(told: Conformations, place, height, rivals):
    half = len(place) // 2
    validation = blobs(place[:half], None if height is None else height[:half])
    test = blobs(place[half:], None if height is None else height[half:])
    over = gains.log_prob_of_one_map(validation, test, [*rivals, told.one_map])
    return told.log_prob(test) - over


def test_a_better_map_of_what_is_still_is_no_motion():
    """The rigid rivals are worse than each conformation by itself: that alone is no gain."""
    told = Conformations(STILL, PLACES)
    still = torch.zeros(80)
    test = blobs(still[40:])
    blurred = 0.5 * TRUE
    worse = state_mixture.log_prob(test, blurred[None])[:, 0]
    assert told.log_prob(test) - test.mean(worse) > 1, "which it would be over the blurred map"
    assert gain(told, still, None, [blurred[None]]) == pytest.approx(0, abs=1e-3)


def test_what_moves_gains_over_all_single_maps():
    """Two places, each as often: the gain is that of their mixture over the best of its maps."""
    place = torch.tensor([-4.0, 4.0]).repeat(40)
    maps = torch.stack([blob(-4.0, 0.0, 0.0), blob(4.0, 0.0, 0.0)])
    told = Conformations(maps, PLACES[[0, 2]])
    test = blobs(place[40:])
    each = state_mixture.log_prob(test, told.one_map)
    want = test.mean(torch.logsumexp(each[:, :2], 1) - math.log(2))
    best = max(test.mean(one) for one in each.T)
    assert gain(told, place, None, [TRUE[None]]) == pytest.approx(want - best, rel=0.05)
    assert want - best > 1


def test_the_mean_of_conformations_is_a_rival():
    told = Conformations(STILL, PLACES)
    assert torch.equal(told.one_map[:-1], STILL)
    torch.testing.assert_close(told.one_map[-1], STILL.mean(0))


def test_contrast_that_differs_is_no_motion():
    """Maps of half and one and a half of a contrast tell images apart that have no one contrast."""
    height = 1 + 0.4 * torch.randn(200, generator=seeded(8))
    told = Conformations(torch.stack([0.6 * TRUE, TRUE, 1.4 * TRUE]), PLACES)
    still = torch.zeros(200)
    test = blobs(still[100:], height[100:])
    same = max(test.mean(one) for one in state_mixture.log_prob(test, told.one_map).T)
    assert told.log_prob(test) - same > 0.1
    assert gain(told, still, height, [TRUE[None]]) < 0
