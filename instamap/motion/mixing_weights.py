"""Mixing weights: what share of the particles each conformation has, by maximum likelihood."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_GAP = 1e-6  # nats per particle that better weights could gain
MAX_STEPS = 100  # of Newton's method
CENTRING = 0.1  # of the barrier, by which it falls with each step
STEP_TO_BOUNDARY = 0.99
FOLDS = 5  # of particles, each of which is held out once
STIFFNESS = tuple(10.0 ** (number / 2) for number in range(-8, 5))
SMOOTHING_STEPS = 60
SMOOTHING_TOLERANCE = 1e-7


@dataclass(frozen=True)
class MixingWeights:
    """Weights "K" of conformations, which sum to 1.

    gap: no other weights make the mean particle likelier by more than so many nats.
    """

    weights: Tensor
    gap: float


def relative_likelihood(log_prob: Tensor) -> Tensor:
    """The likelihoods "m K" of conformations, relative to the particle's largest."""
    largest = log_prob.amax(1, keepdim=True)
    return torch.exp(log_prob - largest).double()


def maximise(likelihood: Tensor, counts: Tensor | None = None) -> MixingWeights:
    """The weights p that maximise Σ_i n_i log Σ_k p_k L_ik over all p (the non-parametric maximum
    likelihood estimate of a mixing distribution: Kiefer & Wolfowitz 1956; Koenker & Mizera 2014).

    likelihood "m K": L. counts "m": how often each particle counts, by default once. The problem is
    convex: a primal-dual interior point method solves min -Σ_i n_i log (Lx)_i + Σ_k x_k, x >= 0,
    whose solution sums to 1, and max_k Σ_i n_i L_ik / (Lp)_i - 1 bounds what is left to gain.
    """
    share = _shares(likelihood, counts)
    size = likelihood.shape[1]
    x = torch.full((size,), 1 / size, dtype=torch.float64)
    slack = torch.ones_like(x)
    gap = math.inf
    for _ in range(MAX_STEPS):
        ratio = likelihood / (likelihood @ x)[:, None]
        slope = share @ ratio
        gap = float(slope.max() * x.sum()) - 1
        if gap <= MAX_GAP:
            break
        barrier = CENTRING * (x * slack).mean()
        curvature = (share[:, None] * ratio).mT @ ratio
        system = curvature + torch.diag(slack / x)
        step = torch.linalg.solve(system, slope - 1 + barrier / x)
        slack_step = (barrier - slack * step) / x - slack
        x = x + _length(x, step) * step
        slack = slack + _length(slack, slack_step) * slack_step
    return MixingWeights(x / x.sum(), max(gap, 0.0))


def _shares(likelihood: Tensor, counts: Tensor | None) -> Tensor:
    """How much each particle counts, of all."""
    if counts is None:
        count = len(likelihood)
        return torch.full((count,), 1 / count, dtype=torch.float64)
    return counts.double() / counts.sum()


def _length(values: Tensor, step: Tensor) -> float:
    """How far to go along a step so that values stay above 0; 1 at most."""
    falls = step < 0
    if not falls.any():
        return 1.0
    longest = (values[falls] / -step[falls]).min()
    return min(1.0, STEP_TO_BOUNDARY * float(longest))


@dataclass(frozen=True)
class Smoothing:
    """What makes weights of conformations along a line smooth.

    place "K": where they are on it, in order. cell "K": the length for which each stands.
    stiffness: of the energy E, with p_k ∝ cell_k exp(-E_k): the penalty is stiffness / 2 ·
    Σ (E_k+1 - E_k)² / (place_k+1 - place_k), places being relative to the whole length. It is that
    of a random walk, whose steps are unrelated.
    """

    place: Tensor
    cell: Tensor
    stiffness: float

    def weights(self, energy: Tensor) -> Tensor:
        """The weights "K" of an energy "K"."""
        return torch.softmax(self.cell.log() - energy, 0)

    def penalty(self, energy: Tensor) -> Tensor:
        """How unlikely the energy "K" is, in nats."""
        length = self.place[-1] - self.place[0]
        apart = self.place.diff() / length
        return 0.5 * self.stiffness * (energy.diff().square() / apart).sum()


def cells(place: Tensor) -> Tensor:
    """The length for which each of the places "K" in order stands: half the way to both sides."""
    apart = place.diff()
    cell = torch.zeros_like(place)
    cell[:-1] += apart / 2
    cell[1:] += apart / 2
    return cell


def smooth(
    likelihood: Tensor,
    smoothing: Smoothing,
    counts: Tensor | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """The energy "K" (in kT, its mean 0) that maximises the penalised likelihood of particles.

    start "K": from which it is sought.
    """
    share = _shares(likelihood, counts)
    total = len(likelihood) if counts is None else float(counts.sum())
    if start is None:
        start = torch.zeros(likelihood.shape[1], dtype=torch.float64)
    energy = start.clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        [energy],
        max_iter=SMOOTHING_STEPS,
        tolerance_grad=SMOOTHING_TOLERANCE,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        density = likelihood @ smoothing.weights(energy)
        value = smoothing.penalty(energy) / total - share @ density.log()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimiser.step(loss)  # type: ignore[no-untyped-call]
    found = energy.detach()
    return found - found.mean()


def held_out_gain(
    likelihood: Tensor,
    place: Tensor,
    folds: Tensor,
    stiffness: Sequence[float] = STIFFNESS,
) -> Tensor:
    """log p of held-out particles, in nats for all, by the stiffness "S" of the energy that the
    others have.

    folds "m": a number of each particle; those of one number are held out together.
    """
    cell = cells(place)
    gain = torch.zeros(len(stiffness), dtype=torch.float64)
    for fold in folds.unique():
        held_out = folds == fold
        energy: Tensor | None = None
        for number in reversed(range(len(stiffness))):
            smoothing = Smoothing(place, cell, stiffness[number])
            energy = smooth(likelihood[~held_out], smoothing, start=energy)
            density = likelihood[held_out] @ smoothing.weights(energy)
            gain[number] += density.log().sum()
    return gain
