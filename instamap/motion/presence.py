"""Regions that are there or not, found in a linear subspace of maps: coordinates as sums of factors
that each particle has or has not, beside what varies continuously.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.statistics.particle_images import ParticleImages

BINARY_SHARE = 0.9  # of the variance along a new factor, that it begins with
START_ROUNDS = 12  # of EM from each start
ROUNDS = 60  # of EM at most from the best one
MIN_ROUNDS = 8  # before a fit may end: at first it gains little
SETTLED = 1e-4  # nats per particle: a round that gains less is the last
FLOOR = 1e-4  # added to variances of the continuous rest
SHARES = (0.02, 0.98)  # of particles with a factor: beyond, it is none
RIDGE = 1e-9


@dataclass(frozen=True)
class SubspaceEquations:
    """What particles say of coordinates in a subspace: the normal equations G "m q+1 q+1" and h "m
    q+1" of its maps, the mean map first (see `ParticleImages.normal_equations`).

    weight "m": of the particles in sums over them, None for 1.
    """

    gram: Tensor
    h: Tensor
    weight: Tensor | None = None

    @staticmethod
    def of(particles: ParticleImages, maps: Tensor) -> "SubspaceEquations":
        """What particles say of the subspace of maps "q+1 N N N"."""
        regions = [some.normal_equations(maps) for some in particles.in_chunks()]
        gram = torch.cat([one for one, _ in regions])
        h = torch.cat([one for _, one in regions])
        return SubspaceEquations(gram, h, particles.weight)

    @property
    def share(self) -> Tensor:
        """The particles' weights "m", which sum to 1."""
        count = len(self.h)
        if self.weight is None:
            return torch.full((count,), 1 / count, dtype=torch.float64)
        return self.weight / self.weight.sum()

    def mean(self, values: Tensor) -> float:
        """The mean of values "m" of the particles."""
        return float(self.share @ values)

    def first(self, count: int) -> "SubspaceEquations":
        """The first particles alone."""
        weight = None if self.weight is None else self.weight[:count]
        return SubspaceEquations(self.gram[:count], self.h[:count], weight)


@dataclass(frozen=True)
class PresenceModel:
    """Coordinates of particles in a linear subspace as z = offset + Σ_r o_r factor_r + ε: o_r is 1
    where a particle has region r, which is so for a `share` of them, and else 0; ε is normal.

    offset "q", factors "R q", covariance "q q" (of ε), share "R", all float64.
    """

    offset: Tensor
    factors: Tensor
    covariance: Tensor
    share: Tensor

    @property
    def count(self) -> int:
        """The number of factors."""
        return len(self.factors)

    def select(self, order: Sequence[int]) -> "PresenceModel":
        """The model with its factors in another order; all of them are named."""
        chosen = list(order)
        return PresenceModel(self.offset, self.factors[chosen], self.covariance, self.share[chosen])

    def mirrored(self, number: int) -> "PresenceModel":
        """The same model, in which a factor is told by its absence."""
        factors = self.factors.clone()
        share = self.share.clone()
        offset = self.offset + factors[number]
        factors[number] = -factors[number]
        share[number] = 1 - share[number]
        return PresenceModel(offset, factors, self.covariance, share)


@dataclass(frozen=True)
class PresencePosterior:
    """log p "m" of each particle beyond the mean map, and the chance "m C" of each of the 2^R
    `patterns`.
    """

    log_prob: Tensor
    chance: Tensor

    @property
    def present(self) -> Tensor:
        """How probably each particle has each region, "m R"."""
        count = int(math.log2(self.chance.shape[1]))
        return self.chance @ patterns(count)


@dataclass(frozen=True)
class _Moments:
    """Of a particle under each pattern: log p "m C" of both, mean "m C q" and covariance "m q q" of
    z.
    """

    log_prob: Tensor
    mean: Tensor
    covariance: Tensor


def patterns(count: int) -> Tensor:
    """All "2^R R" (float64) ways to have or not to have `count` regions; the last has all."""
    rows = list(itertools.product([0.0, 1.0], repeat=count))
    return torch.tensor(rows, dtype=torch.float64).view(2**count, count)


def infer(model: PresenceModel, particles: SubspaceEquations) -> PresencePosterior:
    """What particles have."""
    moments = _moments(model, particles)
    chance = torch.softmax(moments.log_prob, 1)
    return PresencePosterior(torch.logsumexp(moments.log_prob, 1), chance)


def without_factors(particles: SubspaceEquations) -> PresenceModel:
    """The model in which nothing comes and goes, z being normal."""
    size = particles.h.shape[1] - 1
    unit = torch.eye(size, dtype=torch.float64)
    nothing = torch.zeros(0, size, dtype=torch.float64)
    start = PresenceModel(nothing.sum(0), nothing, unit, nothing.sum(1))
    return _em(start, particles, ROUNDS)


def with_one_more(
    model: PresenceModel, particles: SubspaceEquations, starts: Tensor, sample: int
) -> PresenceModel:
    """The likeliest model with one factor more, from those that begin in the directions `starts` "S
    q", which are tried on the first particles alone, `sample` of them.
    """
    some = particles.first(sample)
    trials = [_em(_with_start(model, one), some, START_ROUNDS) for one in starts]
    best = max(trials, key=lambda trial: some.mean(infer(trial, some).log_prob))
    return _em(best, particles, ROUNDS)


def _moments(model: PresenceModel, particles: SubspaceEquations) -> _Moments:
    """The posterior of z under each pattern, whose prior mean is that of the pattern."""
    curvature = particles.gram[:, 1:, 1:]
    slope = particles.h[:, 1:] - particles.gram[:, 0, 1:]
    present = patterns(model.count)
    means = model.offset + present @ model.factors
    root = torch.linalg.cholesky(model.covariance)
    precision = torch.cholesky_inverse(root)
    posterior_precision = curvature + precision
    covariance = torch.linalg.inv(posterior_precision)
    pulled = means @ precision
    right = slope[:, None] + pulled
    mean = right @ covariance
    explained = 0.5 * (right * mean).sum(2)
    of_prior = 0.5 * (pulled * means).sum(1)
    volume = 0.5 * torch.logdet(posterior_precision) + root.diagonal().log().sum()
    chance = present * model.share.log() + (1 - present) * (1 - model.share).log()
    log_prob = explained - of_prior - volume[:, None] + chance.sum(1)
    return _Moments(log_prob, mean, covariance)


def _em(model: PresenceModel, particles: SubspaceEquations, rounds: int) -> PresenceModel:
    """The model after rounds of EM, until they gain nothing."""
    before = -math.inf
    for number in range(rounds):
        moments = _moments(model, particles)
        now = particles.mean(torch.logsumexp(moments.log_prob, 1))
        if number > MIN_ROUNDS and now - before < SETTLED:
            break
        before = now
        model = _maximise(model, moments, particles.share)
    return model


def _maximise(model: PresenceModel, moments: _Moments, weight: Tensor) -> PresenceModel:
    """The likeliest model given what particles, whose weights "m" sum to 1, have: a regression of z
    on what is there.
    """
    chance = weight[:, None] * torch.softmax(moments.log_prob, 1)
    present = patterns(model.count)
    ones = torch.ones(len(present), 1, dtype=torch.float64)
    known = torch.cat([ones, present], 1)
    mass = chance.sum(0)
    ridge = RIDGE * torch.eye(known.shape[1], dtype=torch.float64)
    system = known.T @ (mass[:, None] * known) + ridge
    right = torch.einsum("mc,cx,mcq->xq", chance, known, moments.mean)
    solution = torch.linalg.solve(system, right)
    residual = moments.mean - known @ solution
    spread = torch.einsum("mc,mci,mcj->ij", chance, residual, residual)
    floor = FLOOR * torch.eye(spread.shape[0], dtype=torch.float64)
    within = torch.einsum("m,mij->ij", weight, moments.covariance)
    share = (mass @ present).clamp(*SHARES)
    return PresenceModel(solution[0], solution[1:], within + spread + floor, share)


def _with_start(model: PresenceModel, direction: Tensor) -> PresenceModel:
    """The model with a factor in this direction "q" more, which half of the particles have and
    which stands for most of the variance along it.
    """
    root = torch.linalg.cholesky(model.covariance)
    white = torch.linalg.solve_triangular(root, direction[:, None], upper=False)
    factor = direction * (2 * math.sqrt(BINARY_SHARE) / white.norm())
    floor = FLOOR * torch.eye(len(direction), dtype=torch.float64)
    covariance = model.covariance - 0.25 * torch.outer(factor, factor) + floor
    half = torch.full((1,), 0.5, dtype=torch.float64)
    return PresenceModel(
        model.offset - 0.5 * factor,
        torch.cat([model.factors, factor[None]]),
        covariance,
        torch.cat([model.share, half]),
    )
