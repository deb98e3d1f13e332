"""What particles have and have not, against sums over all that they may have."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.blobs import seeded

from instamap.motion import linear_subspace, presence
from instamap.motion.presence import PresenceModel, SubspaceEquations

seeds = st.integers(0, 2**32 - 1)


def random_equations(count: int, size: int, generator: torch.Generator):
    root = torch.randn(count, 2 * size + 1, size + 1, generator=generator, dtype=torch.float64)
    h = 2 * torch.randn(count, size + 1, generator=generator, dtype=torch.float64)
    return SubspaceEquations(root.mT @ root, h)


def equations_of(z: torch.Tensor, precision: float, generator: torch.Generator):
    """Of particles at z "m q" that are seen in noise of so much precision."""
    gram = torch.zeros(len(z), z.shape[1] + 1, z.shape[1] + 1, dtype=torch.float64)
    gram[:, 1:, 1:] = precision * torch.eye(z.shape[1], dtype=torch.float64)
    noise = torch.randn(z.shape, generator=generator, dtype=torch.float64)
    h = torch.zeros(len(z), z.shape[1] + 1, dtype=torch.float64)
    h[:, 1:] = precision * z + math.sqrt(precision) * noise
    return SubspaceEquations(gram, h)


def test_patterns_are_all_there_are():
    assert presence.patterns(2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert presence.patterns(0).shape == (1, 0)


@given(seed=seeds, regions=st.integers(0, 2))
def test_log_p_is_the_sum_over_patterns_of_integrals_over_coordinates(seed, regions):
    g = seeded(seed)
    particles = random_equations(1, 1, g)
    gram = particles.gram
    h = particles.h
    model = PresenceModel(
        torch.randn(1, generator=g, dtype=torch.float64),
        torch.randn(regions, 1, generator=g, dtype=torch.float64),
        0.1 + torch.rand(1, 1, generator=g, dtype=torch.float64),
        0.1 + 0.8 * torch.rand(regions, generator=g, dtype=torch.float64),
    )
    z = torch.linspace(-15, 15, 6001, dtype=torch.float64)
    c = torch.stack([torch.ones_like(z), z], 1)
    of_images = c @ h[0] - 0.5 * torch.einsum("nj,jk,nk->n", c, gram[0], c)
    mean_only = h[0, 0] - 0.5 * gram[0, 0, 0]
    each = []
    for pattern in presence.patterns(regions):
        mean = model.offset + pattern @ model.factors
        variance = model.covariance[0, 0]
        prior = -0.5 * (z - mean).square() / variance - 0.5 * (2 * math.pi * variance).log()
        chance = torch.where(pattern > 0.5, model.share, 1 - model.share).log().sum()
        density = torch.logsumexp(of_images - mean_only + prior, 0) + math.log(float(z[1] - z[0]))
        each.append(density + chance)
    wanted = torch.stack(each)
    found = presence.infer(model, particles)
    torch.testing.assert_close(found.log_prob[0], torch.logsumexp(wanted, 0))
    torch.testing.assert_close(found.chance[0], torch.softmax(wanted, 0))
    present = torch.softmax(wanted, 0) @ presence.patterns(regions)
    torch.testing.assert_close(found.present[0], present)


@given(seed=seeds)
def test_without_factors_z_is_normal(seed):
    g = seeded(seed)
    particles = random_equations(4, 2, g)
    gram = particles.gram
    h = particles.h
    unit = torch.eye(2, dtype=torch.float64)
    nothing = torch.zeros(0, 2, dtype=torch.float64)
    model = PresenceModel(nothing.sum(0), nothing, unit, nothing.sum(1))
    wanted = linear_subspace.gaussian_posterior(gram, h).log_prob
    mean_only = h[:, 0] - 0.5 * gram[:, 0, 0]
    torch.testing.assert_close(presence.infer(model, particles).log_prob, wanted - mean_only)


def test_a_part_told_by_its_absence_is_the_same_part():
    g = seeded(1)
    particles = random_equations(5, 2, g)
    model = PresenceModel(
        torch.randn(2, generator=g, dtype=torch.float64),
        torch.randn(2, 2, generator=g, dtype=torch.float64),
        torch.eye(2, dtype=torch.float64),
        torch.tensor([0.3, 0.6], dtype=torch.float64),
    )
    before = presence.infer(model, particles)
    after = presence.infer(model.mirrored(0), particles)
    torch.testing.assert_close(after.log_prob, before.log_prob)
    torch.testing.assert_close(after.present[:, 0], 1 - before.present[:, 0])
    torch.testing.assert_close(after.present[:, 1], before.present[:, 1])
    order = presence.infer(model.select([1, 0]), particles)
    torch.testing.assert_close(order.present, before.present.flip(1))


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_parts_are_found_beside_what_varies(share):
    """Two regions by themselves, in a space in which particles also differ continuously."""
    g = seeded(3)
    present = (torch.rand(2000, 2, generator=g) < share).double()
    factors = torch.tensor([[3.0, 1.0, 0.0], [-1.0, 2.5, 0.5]], dtype=torch.float64)
    spread = torch.tensor([0.3, 0.3, 2.0], dtype=torch.float64)
    noise = torch.randn(2000, 3, generator=g, dtype=torch.float64)
    z = present @ factors + spread * noise
    particles = equations_of(z - z.mean(0), 4.0, g)
    starts = torch.eye(3, dtype=torch.float64)
    model = presence.without_factors(particles)
    normal = float(presence.infer(model, particles).log_prob.mean())
    for _ in range(2):
        model = presence.with_one_more(model, particles, starts, 500)
    found = presence.infer(model, particles)
    assert float(found.log_prob.mean()) > normal + 0.1
    both = torch.corrcoef(torch.cat([found.present, present], 1).T)[:2, 2:].abs()
    assert sorted(both.argmax(1).tolist()) == [0, 1] and float(both.amax(1).min()) > 0.95
    more = presence.with_one_more(model, particles, starts, 500)
    gain = presence.infer(more, particles).log_prob - found.log_prob
    assert float(gain.mean()) < 0.01, "a third region is not there"


def test_a_particle_that_counts_twice_is_there_twice():
    g = seeded(4)
    present = (torch.rand(300, 1, generator=g) < 0.5).double()
    z = present * torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    z = z + 0.3 * torch.randn(300, 2, generator=g, dtype=torch.float64)
    particles = equations_of(z, 4.0, g)
    twice = torch.arange(300) < 100
    order = torch.cat([torch.arange(300), twice.nonzero()[:, 0]])
    repeated = SubspaceEquations(particles.gram[order], particles.h[order])
    weighted = SubspaceEquations(particles.gram, particles.h, 1.0 + twice.double())
    starts = torch.eye(2, dtype=torch.float64)
    models = []
    for one in (repeated, weighted):
        normal = presence.without_factors(one)
        models.append(presence.with_one_more(normal, one, starts, 1000))
    torch.testing.assert_close(models[0].factors, models[1].factors)
    torch.testing.assert_close(models[0].covariance, models[1].covariance)
    torch.testing.assert_close(models[0].share, models[1].share)
