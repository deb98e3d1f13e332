"""Weights of particles in motion: a particle of weight 2 counts as two, one of weight 0 not at all,
in every sum.
"""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.blobs import WINDOW, mean_map, pair, seeded
from torch import Tensor

from instamap.motion import linear_subspace, state_mixture
from instamap.motion.align_latents import align
from instamap.motion.kmeans import kmeans
from instamap.statistics.particle_images import effective_count
from instamap.statistics.particle_statistics import ParticleStatistics

seeds = st.integers(0, 2**32 - 1)


def repeated(particles: ParticleStatistics, times: Tensor) -> ParticleStatistics:
    """Each particle "m", of one image, so many times."""
    rows = torch.arange(len(times)).repeat_interleave(times)
    return replace(
        particles,
        data=particles.data[rows],
        power=particles.power[rows],
        frames=particles.frames[rows],
        particle=torch.arange(len(rows)),
    )


def sets(seed: int, count: int = 60) -> tuple[ParticleStatistics, ParticleStatistics]:
    """The same particles once with weights 0, 1 and 2, and once as often as these say."""
    g = seeded(seed)
    here = torch.randint(0, 2, (count,), generator=g).float()
    particles = pair(here, g, level=0.1)
    times = torch.randint(0, 3, (count,), generator=g)
    return particles.weighted(times.double()), repeated(particles, times)


def close(a: Tensor, b: Tensor) -> None:
    # sums of float32 in another order
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


@given(seed=seeds)
def test_statistics_and_means_count_particles_by_their_weights(seed):
    weighted, listed = sets(seed)
    one = weighted.statistics(weighted.unit_weights())
    two = listed.statistics(listed.unit_weights())
    close(one.b, two.b)
    close(one.kernel, two.kernel)
    assert one.weight == pytest.approx(two.weight)
    volume = mean_map(listed)
    log_prob = [state_mixture.log_prob(each, volume[None])[:, 0] for each in (weighted, listed)]
    assert weighted.mean(log_prob[0]) == pytest.approx(listed.mean(log_prob[1]), rel=1e-5)


def test_the_subspace_is_that_of_particles_listed_twice():
    """A new dimension, from the same noise on: rounds of EM over sums."""
    weighted, listed = sets(3)
    volume = mean_map(listed)
    each = [linear_subspace.grow(p, volume[None], WINDOW, seeded(1)) for p in (weighted, listed)]
    scale = float(each[1][1].abs().max())
    torch.testing.assert_close(each[0], each[1], rtol=0.0, atol=0.01 * scale)


def test_coordinates_are_shares_of_the_weight():
    """One particle of weight 3 in the first conformation, one of weight 1 in the second."""
    place = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    share = torch.eye(2, dtype=torch.float64)
    z = state_mixture.scaled(place, share, torch.tensor([3.0, 1.0]).double())
    assert z[:, 0].tolist() == [2 * 0.375 - 1, 2 * 0.875 - 1]


def test_centres_of_clusters_are_weighted_means():
    points = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    weight = torch.tensor([1.0, 3.0, 1.0, 0.0])
    found = {tuple(kmeans(points, 2, seeded(s), 20, weight).flatten().tolist()) for s in range(9)}
    assert found <= {(0.75, 10.0), (10.0, 0.75)}


def test_weights_are_worth_fewer_particles():
    """Kish: weights of 2 are no more certain than weights of 1; half of weight 0 is half."""
    assert effective_count(torch.full((7,), 2.0)) == pytest.approx(7)
    assert effective_count(torch.tensor([1.0, 0.0, 1.0, 0.0])) == pytest.approx(2)
    assert effective_count(torch.tensor([3.0, 1.0])) == pytest.approx(1.6)
    assert effective_count(torch.zeros(3)) == 0


def test_images_of_one_particle_count_beside_each_other():
    """Two images a particle, of weights 3 and 1: the particle's weight is 2, and its log p is that
    of the images, one and a half times and half.
    """
    g = seeded(4)
    images = pair(torch.ones(6), g)
    number = torch.arange(3).repeat_interleave(2)
    together = replace(images, particle=number)
    weights = torch.tensor([3.0, 1.0] * 3).double()
    weighted = together.weighted(weights)
    assert weighted.weight.tolist() == [2.0, 2.0, 2.0]
    volume = mean_map(images)[None]
    own = state_mixture.log_prob(images, volume)[:, 0].view(3, 2)
    found = state_mixture.log_prob(weighted, volume)[:, 0]
    torch.testing.assert_close(found, 1.5 * own[:, 0] + 0.5 * own[:, 1], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("size", [1, 2])
def test_halves_are_compared_by_weight(size):
    """Particles of weight 0 may be anywhere, one of weight 2 counts as two."""
    g = seeded(5)
    first = torch.randn(40, size, generator=g, dtype=torch.float64)
    second = -first + 0.1 * torch.randn(40, size, generator=g, dtype=torch.float64)
    weight = torch.ones(40, dtype=torch.float64)
    weight[:10] = 0.0
    weight[10:20] = 2.0
    listed = torch.arange(40).repeat_interleave(weight.long())
    wild = second.clone()
    wild[:10] = 100 * torch.randn(10, size, generator=g, dtype=torch.float64)
    found = align(first, wild, weight)
    wanted = align(first[listed], second[listed])
    assert found.agreement == pytest.approx(wanted.agreement, rel=1e-9)
    torch.testing.assert_close(found.turn, wanted.turn)
    assert math.isfinite(float(found.offset.sum()))
