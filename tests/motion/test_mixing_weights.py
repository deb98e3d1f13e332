"""Mixing weights: closed forms, optimality that can be checked, and energies that are smooth."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instamap.motion import mixing_weights
from instamap.motion.mixing_weights import Smoothing


def gaussian(share: float, count: int, noise: float, seed: int, places: torch.Tensor):
    """Likelihoods "m K" of places on a line for particles at -1 or, a share of them, at 1, that are
    seen with noise; and which are at 1.
    """
    generator = torch.Generator().manual_seed(seed)
    state = torch.rand(count, generator=generator, dtype=torch.float64) < share
    seen = 2.0 * state - 1 + noise * torch.randn(count, generator=generator, dtype=torch.float64)
    log_prob = -0.5 * ((seen[:, None] - places) / noise) ** 2
    return mixing_weights.relative_likelihood(log_prob), state


def mean_log(likelihood: torch.Tensor, weights: torch.Tensor) -> float:
    return float((likelihood @ weights).log().mean())


def test_particles_that_are_sure_are_counted():
    likelihood = torch.eye(3, dtype=torch.float64)[[0, 0, 1, 2, 0]]
    found = mixing_weights.maximise(likelihood)
    expected = torch.tensor([0.6, 0.2, 0.2], dtype=torch.float64)
    torch.testing.assert_close(found.weights, expected, atol=1e-5, rtol=0)


def test_two_overlapping_states_solve_the_score_equation():
    """d/dp Σ log(p a + (1-p) b) = 0 has one root, which bisection finds."""
    places = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    likelihood, _ = gaussian(0.2, 4000, 1.0, 0, places)
    first, second = likelihood.T
    low, high = 0.0, 1.0
    for _ in range(60):
        p = (low + high) / 2
        score = ((first - second) / (p * first + (1 - p) * second)).sum()
        low, high = (p, high) if score > 0 else (low, p)
    found = mixing_weights.maximise(likelihood)
    assert abs(float(found.weights[0]) - p) < 1e-5 and abs(p - 0.8) < 0.03


@given(st.integers(2, 12), st.integers(0, 2**31))
def test_nothing_is_left_to_gain(size, seed):
    """Half a thousand rounds of EM gain no more than the gap says."""
    places = torch.linspace(-2, 2, size, dtype=torch.float64)
    likelihood, _ = gaussian(0.3, 200, 0.7, seed, places)
    found = mixing_weights.maximise(likelihood)
    assert 0 <= found.gap <= mixing_weights.MAX_GAP
    assert bool((found.weights >= 0).all())
    assert math.isclose(float(found.weights.sum()), 1, abs_tol=1e-12)
    weights = torch.full((size,), 1 / size, dtype=torch.float64)
    for _ in range(500):
        weights = weights * (likelihood / (likelihood @ weights)[:, None]).mean(0)
    assert mean_log(likelihood, weights) <= mean_log(likelihood, found.weights) + found.gap + 1e-12


def test_counts_are_repetitions():
    places = torch.linspace(-2, 2, 7, dtype=torch.float64)
    likelihood, _ = gaussian(0.3, 100, 0.7, 0, places)
    counts = torch.arange(100) % 3
    repeated = likelihood.repeat_interleave(counts, 0)
    found = mixing_weights.maximise(likelihood, counts).weights
    again = mixing_weights.maximise(repeated).weights
    torch.testing.assert_close(found, again, atol=1e-8, rtol=0)
    smoothing = Smoothing(places, mixing_weights.cells(places), 0.1)
    energy = mixing_weights.smooth(likelihood, smoothing, counts.double())
    again = mixing_weights.smooth(repeated, smoothing)
    torch.testing.assert_close(energy, again, atol=1e-3, rtol=0)


def test_a_stiff_energy_is_even_and_a_loose_one_is_the_best():
    places = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)
    likelihood, _ = gaussian(0.3, 500, 0.7, 0, places)
    cell = mixing_weights.cells(places)
    assert float(cell.sum()) == pytest.approx(3.0)
    stiff = Smoothing(places, cell, 1e9)
    energy = mixing_weights.smooth(likelihood, stiff)
    torch.testing.assert_close(stiff.weights(energy), cell / 3, atol=1e-4, rtol=0)
    loose = Smoothing(places, cell, 1e-9)
    energy = mixing_weights.smooth(likelihood, loose)
    best = mixing_weights.maximise(likelihood)
    assert mean_log(likelihood, loose.weights(energy)) > mean_log(likelihood, best.weights) - 1e-3


def test_held_out_particles_tell_two_states_from_an_even_density():
    places = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)
    folds = torch.arange(600) % 5
    separate, _ = gaussian(0.3, 600, 0.3, 0, places)
    gain = mixing_weights.held_out_gain(separate, places, folds, (1e-3, 1e6))
    assert float(gain[0]) > float(gain[1]) + 10
    generator = torch.Generator().manual_seed(1)
    seen = 3 * torch.rand(600, generator=generator, dtype=torch.float64) - 1.5
    seen = seen + 0.3 * torch.randn(600, generator=generator, dtype=torch.float64)
    even = mixing_weights.relative_likelihood(-0.5 * ((seen[:, None] - places) / 0.3) ** 2)
    gain = mixing_weights.held_out_gain(even, places, folds, (1e-3, 1e2))
    assert float(gain[1]) > float(gain[0])
