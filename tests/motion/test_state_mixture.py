"""Conformations as a mixture: their order, their coordinates and what neighbours share."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr
from support.blobs import BOX, WINDOW, blob, images, mean_map, seeded
from torch import Tensor

from instamap.motion import linear_subspace, posterior, state_mixture

seeds = st.integers(0, 2**32 - 1)


def arc(count: int) -> Tensor:
    """Places "K 3" along three quarters of a circle, so that the ends are nearer to each other than
    to the middle.
    """
    angle = torch.linspace(0, 1.5 * math.pi, count)
    return torch.stack([4 * angle.cos(), 4 * angle.sin(), torch.zeros(count)], -1)


@given(seed=seeds)
def test_states_are_put_in_order_along_their_path(seed):
    g = seeded(seed)
    order = torch.randperm(12, generator=g)
    maps = torch.stack([blob(*place) for place in arc(12)[order].tolist()]) + 0.01 * torch.randn(
        12, BOX, BOX, BOX, generator=g
    )
    place = state_mixture.embed(maps, WINDOW, 1)
    assert sorted(place[:, 0].tolist()) == list(range(12))
    assert place[:, 0].tolist() in (order.double().tolist(), (11 - order).double().tolist())


@given(seed=seeds)
def test_states_of_two_coordinates_are_spread_as_they_lie(seed):
    g = seeded(seed)
    where = torch.cartesian_prod(torch.linspace(-3, 3, 5), torch.linspace(-2, 2, 4))[
        torch.randperm(20, generator=g)
    ]
    maps = torch.stack([blob(x, y, 0.0) for x, y in where.tolist()]) + 0.01 * torch.randn(
        20, BOX, BOX, BOX, generator=g
    )
    place = state_mixture.embed(maps, WINDOW, 2)
    known = torch.cat([place, torch.ones(20, 1, dtype=place.dtype)], 1)
    rest = where.double() - known @ torch.linalg.lstsq(known, where.double()).solution
    assert (rest.square().mean(0) < 0.05 * where.double().var(0)).all()


@given(seed=seeds, count=st.integers(3, 8))
def test_one_coordinate_is_the_share_of_particles_below(seed, count):
    g = seeded(seed)
    place = torch.randperm(count, generator=g)[:, None].double()
    node = torch.randint(0, count, (50,), generator=g)
    z = state_mixture.scaled(place, torch.nn.functional.one_hot(node, count).double())
    ranks = rankdata(place[node, 0].numpy())  # of equal ones the mean, counted from 1
    np.testing.assert_allclose(z[node, 0].numpy(), 2 * (ranks - 0.5) / 50 - 1, atol=1e-12)


@given(seed=seeds)
def test_several_coordinates_have_unit_rms(seed):
    g = seeded(seed)
    place = torch.randn(7, 3, generator=g, dtype=torch.float64)
    share = torch.rand(60, 7, generator=g, dtype=torch.float64)
    share = share / share.sum(1, keepdim=True)
    each = share @ state_mixture.scaled(place, share)
    torch.testing.assert_close(
        each.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(
        share.mean(0) @ state_mixture.scaled(place, share).square(),
        torch.ones(3, dtype=torch.float64),
    )


def test_what_neighbours_share_is_a_partition():
    place = torch.tensor([[0.0], [1], [2], [3]], dtype=torch.float64)
    shared = state_mixture.neighbours(place, 0.5)
    torch.testing.assert_close(shared.sum(1), torch.ones(4, dtype=torch.float64))
    assert float(shared[1, 0] / shared[1, 1]) == pytest.approx(math.exp(-2)), "one step is two σ"


def test_a_blob_on_a_curve_is_ordered():
    """From images alone: a subspace, states, their order; the path is three quarters of a circle,
    so no principal axis orders it.
    """
    g = seeded(5)
    share = torch.rand(900, generator=g)
    angle = 1.5 * math.pi * share
    moving = torch.stack([4 * angle.cos(), 4 * angle.sin(), torch.zeros(900)], -1)
    still = torch.tensor([0.0, 0, 3]).expand(900, 3)
    seen = images(torch.stack([still, moving], 1), torch.ones(900, 2), 0.02, g)
    fitted = seen.select(torch.arange(750))
    validation = seen.select(torch.arange(750, 900))
    linear = linear_subspace.fit(fitted, validation, mean_map(fitted), WINDOW, 3, g)
    found = state_mixture.fit_mixture(fitted, validation, linear.maps, WINDOW, 7, 1, g)
    z = posterior.infer(fitted, found.maps, found.z).z[:, 0]
    assert abs(spearmanr(z.numpy(), share[:750].numpy()).statistic) > 0.95
    assert (found.z[:, 0].diff() > 0).all() and found.held_out > 1
    # Mid-ranks: uniform over the particles, whatever their distribution.
    assert float(z.mean()) == pytest.approx(0, abs=0.1) and float(z.std()) == pytest.approx(
        1 / math.sqrt(3), rel=0.15
    )
