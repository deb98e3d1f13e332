"""Factors of contrast: prior and posterior in closed form, and what statistics make of them."""

from dataclasses import replace

import pytest
import torch
from support.half_maps import seeded
from torch import Tensor

from instamap.data.particles import Particles
from instamap.scene import ContrastFactors
from instamap.simulate import particle_set
from instamap.statistics.accumulator import Accumulator
from instamap.statistics.contrast_factors import (
    FactorPrior,
    ImageContrasts,
    fit_prior,
    mean_of_spread,
    same_factor,
)
from instamap.statistics.particle_statistics import ParticleStatistics, fewer_pixels

PIXEL = 5.0
BOX = 10
COUNT = 6
TOLERANCE = 1e-5  # of float32 sums


def images(factors: Tensor, seed: int = 0) -> ImageContrasts:
    """What images with these factors say, by a map that is without fault."""
    curvature = 20 + 60 * torch.rand(len(factors), generator=seeded(seed), dtype=torch.float64)
    noise = torch.randn(len(factors), generator=seeded(seed + 1), dtype=torch.float64)
    return ImageContrasts(factors * curvature + curvature.sqrt() * noise, curvature)


def normal(count: int, spread: float, seed: int = 7) -> Tensor:
    return 1 + spread * torch.randn(count, generator=seeded(seed), dtype=torch.float64)


@pytest.mark.parametrize(("mean", "spread"), [(1.0, 0.2), (0.8, 0.3), (1.1, 0.1)])
def test_the_prior_is_found(mean, spread):
    """Of 20,000 factors known to 1/sqrt(50) each s is known to 2 %, the mean to 2e-3."""
    found = fit_prior(images(mean * normal(20000, spread)))
    assert found.mean == pytest.approx(mean, rel=0.01)
    assert found.spread == pytest.approx(spread, rel=0.06)


def test_the_prior_is_the_likeliest():
    some = images(normal(500, 0.2))
    best = fit_prior(some)
    highest = float(best.log_marginal(some).sum())
    for mean in (0.98, 1.0, 1.02):
        for variance in (0.9, 1.0, 1.1):
            if mean == variance == 1:
                continue
            other = FactorPrior(best.mean * mean, best.variance * variance)
            assert float(other.log_marginal(some).sum()) < highest


def test_equal_factors_have_no_spread_that_witnesses_favour():
    fitted = fit_prior(images(torch.ones(2000, dtype=torch.float64)))
    assert fitted.spread < 0.06  # the fourth root of 2/2000, over that of 50
    others = images(torch.ones(2000, dtype=torch.float64), seed=5)
    same = FactorPrior(fitted.mean, 0.0)
    gain = fitted.log_marginal(others) - same.log_marginal(others)
    assert float(gain.sum()) < 4


def test_the_marginal_is_the_integral():
    """Over a of exp(a h - ½ a² G), the prior being known, beyond that of one factor."""
    prior = FactorPrior(0.9, 0.05)
    one = ImageContrasts(torch.tensor([31.0]).double(), torch.tensor([40.0]).double())
    a = torch.linspace(-1.5, 3.5, 20001, dtype=torch.float64)
    weight = torch.exp(-0.5 * (a - prior.mean) ** 2 / prior.variance)
    weight = weight / weight.sum()
    log_p = a * one.slope - 0.5 * a**2 * one.curvature
    integral = (weight * log_p.exp()).sum().log()
    at_mean = prior.mean * one.slope - 0.5 * prior.mean**2 * one.curvature
    gain = prior.log_marginal(one) - FactorPrior(prior.mean, 0.0).log_marginal(one)
    torch.testing.assert_close(gain, (integral - at_mean), rtol=1e-6, atol=1e-6)


def test_factors_are_the_posterior_mean_and_mean_square():
    prior = FactorPrior(0.9, 0.05)
    one = ImageContrasts(torch.tensor([31.0]).double(), torch.tensor([40.0]).double())
    a = torch.linspace(-1.5, 3.5, 20001, dtype=torch.float64)
    log_p = a * one.slope - 0.5 * a**2 * one.curvature
    log_p = log_p - 0.5 * (a - prior.mean) ** 2 / prior.variance
    weight = torch.softmax(log_p, 0)
    relative = a / prior.mean
    found = prior.factors(one)
    assert float(found.mean) == pytest.approx(float((weight * relative).sum()), rel=1e-6)
    assert float(found.square) == pytest.approx(float((weight * relative**2).sum()), rel=1e-6)


def test_shrunken_factors_err_least():
    """Posterior means err by less than each image's own estimate, and than no factor at all."""
    true = normal(4000, 0.2)
    some = images(true)
    found = fit_prior(some).factors(some).mean

    def error(factors: Tensor) -> float:
        return float((factors - true).square().mean())

    assert error(found) < 0.85 * error(some.slope / some.curvature)
    assert error(found) < 0.6 * error(torch.ones_like(true))


def test_no_factor_is_negative():
    prior = FactorPrior(1.0, 1.0)
    junk = ImageContrasts(torch.tensor([-80.0]).double(), torch.tensor([40.0]).double())
    found = prior.factors(junk)
    assert float(found.mean) == 0 and float(found.square) > 0


def test_without_spread_all_factors_are_one():
    some = images(normal(10, 0.2))
    found = same_factor(some).factors(some)
    assert bool((found.mean == 1).all()) and bool((found.square == 1).all())


def test_a_map_that_explains_nothing_has_no_spread():
    some = images(torch.full((50,), -0.5, dtype=torch.float64))
    assert fit_prior(some).variance == 0
    assert fit_prior(some).spread == 0


def test_the_mean_where_the_spread_is_known():
    some = images(0.7 * normal(20000, 0.2))
    found = mean_of_spread(some, 0.2)
    assert found.mean == pytest.approx(0.7, rel=0.01)
    assert found.spread == pytest.approx(0.2, rel=1e-3)


@pytest.fixture(scope="module")
def particles(tmp_path_factory) -> Particles:
    star = particle_set.demo(
        tmp_path_factory.mktemp("data"), count=COUNT, box=BOX, pixel_size=PIXEL, snr=0.5
    )
    return Particles.open(star)


FACTORS = ContrastFactors(
    torch.tensor([1.0, 0.5, 2.0, 0.0, 1.5, 1.0], dtype=torch.float64),
    torch.tensor([1.0, 0.3, 4.0, 0.1, 2.5, 1.2], dtype=torch.float64),
)


def gathered(particles: Particles, rows: Tensor):
    batch = particles.batch(rows)
    accumulator = Accumulator(BOX, PIXEL, premultiplied=particles.premultiplied)
    accumulator.add(batch.images, batch.views, noise_variance=torch.ones(BOX // 2 + 1))
    return accumulator.finish()


def test_statistics_weigh_data_by_the_mean_and_power_by_the_mean_square(particles):
    changed = particles.with_contrast(FACTORS)
    found = gathered(changed, torch.arange(COUNT))
    b = torch.zeros_like(found.b)
    kernel = torch.zeros_like(found.kernel)
    energy = 0.0
    for row in range(COUNT):
        single = gathered(particles, torch.tensor([row]))
        b += FACTORS.mean[row].float() * single.b
        kernel += FACTORS.square[row].float() * single.kernel
        energy += single.energy
    torch.testing.assert_close(found.b, b, rtol=0, atol=TOLERANCE * float(b.abs().max()))
    atol = TOLERANCE * float(kernel.abs().max())
    torch.testing.assert_close(found.kernel, kernel, rtol=0, atol=atol)
    assert found.energy == pytest.approx(energy, rel=1e-6)


def test_single_particles_are_weighed_alike(particles):
    rows = torch.arange(COUNT)
    variance = torch.ones(1, BOX // 2 + 1)
    before = ParticleStatistics.read(particles, rows, variance, rows)
    after = ParticleStatistics.read(particles.with_contrast(FACTORS), rows, variance, rows)
    mean = FACTORS.mean.float()[:, None]
    square = FACTORS.square.float()[:, None]
    torch.testing.assert_close(after.data, before.data * mean)
    torch.testing.assert_close(after.power, before.power * square)


def test_images_of_contrast_one_are_what_they_were_to_the_last_bit(particles):
    ones = torch.ones(COUNT, dtype=torch.float64)
    changed = particles.with_contrast(ContrastFactors(ones, ones))
    rows = torch.arange(COUNT)
    assert torch.equal(gathered(changed, rows).b, gathered(particles, rows).b)


def test_factors_stay_with_smaller_images_and_other_views(particles):
    changed = particles.with_contrast(FACTORS)
    for other in (changed.with_box(8), fewer_pixels(changed, 2 * PIXEL)):
        assert other.contrast is not None
        assert torch.equal(other.contrast.mean, FACTORS.mean)
    assert particles.contrast is None
    rows = torch.tensor([2, 4])
    chosen = changed.views[rows].to(torch.float32)
    assert chosen.contrast is not None
    assert chosen.contrast.mean.tolist() == [2.0, 1.5]
    moved = replace(changed.views, origin=changed.views.origin + 1)
    assert moved.contrast is FACTORS


def test_predicted_images_have_the_contrast(particles):
    predicted = torch.ones(COUNT, 2, 2)
    views = particles.with_contrast(FACTORS).views.to(torch.float32)
    assert views.with_contrast(predicted)[:, 0, 0].tolist() == FACTORS.mean.tolist()
    assert particles.views.with_contrast(predicted) is predicted
