"""What coordinates of particles hold of values that are known: angles, and what is present."""

import itertools
import math

import torch
from torch import Tensor


def quadratic(z: Tensor) -> Tensor:
    """1, each coordinate and each product of two "n F" of coordinates "n L"."""
    pairs = itertools.combinations_with_replacement(range(z.shape[1]), 2)
    products = [z[:, i] * z[:, j] for i, j in pairs]
    return torch.stack([torch.ones_like(z[:, 0]), *z.T, *products], 1)


def read_off(z: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """What a quadratic function of the coordinates "n L", fitted to every other particle, says of
    the truth "n G" on the rest; and which particles "n" these are.
    """
    features = quadratic(z)
    learn = torch.arange(len(z)) % 2 == 0
    weights = torch.linalg.lstsq(features[learn], truth[learn], driver="gelsd").solution
    return features[~learn] @ weights, ~learn


def explained(z: Tensor, truth: Tensor) -> list[float]:
    """R² of each hidden value of `truth` "n H" as it is read off the coordinates "n L"; below 0
    where the mean would be better.
    """
    guess, rest = read_off(z, truth)
    left = (truth[rest] - guess).square().sum(0)
    spread = (truth[rest] - truth[rest].mean(0)).square().sum(0)
    return (1 - left / spread).tolist()


def canonical(z: Tensor, truth: Tensor) -> list[float]:
    """Canonical correlations, the largest first, of coordinates "n L" and hidden values "n H"; 0
    where there is nothing to correlate.

    Hotelling, Biometrika 28, 321 (1936).
    """
    bases = []
    for values in (z, truth):
        u, s, _ = torch.linalg.svd(values - values.mean(0), full_matrices=False)
        bases.append(u[:, s > 1e-9 * math.sqrt(len(values))])
    found: list[float] = []
    if all(basis.shape[1] for basis in bases):
        found = torch.linalg.svdvals(bases[0].T @ bases[1]).clamp(max=1).tolist()
    return found + [0.0] * (min(z.shape[1], truth.shape[1]) - len(found))


def auc(score: Tensor, present: Tensor) -> float:
    """The area under the receiver operating characteristic of scores "n" for what is there (1) or
    not (0), "n": the chance that one that has the part scores above one that has not, ties being
    half (Mann & Whitney 1947).
    """
    values, number = score.unique(return_inverse=True)
    there = present > 0.5
    with_part = torch.bincount(number[there], minlength=len(values)).double()
    without = torch.bincount(number[~there], minlength=len(values)).double()
    below = without.cumsum(0) - without
    won = (with_part * (below + 0.5 * without)).sum()
    return float(won / (with_part.sum() * without.sum()))


def spearman(first: Tensor, second: Tensor) -> float:
    """The correlation of ranks of two values "n"; ties have the mean of their ranks."""
    ranks = torch.stack([_ranks(first), _ranks(second)])
    if not (ranks.std(dim=1) > 0).all():
        return 0.0
    return float(torch.corrcoef(ranks)[0, 1])


def _ranks(values: Tensor) -> Tensor:
    _, number, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.double().cumsum(0)
    return (ends - 0.5 * (counts - 1))[number]
