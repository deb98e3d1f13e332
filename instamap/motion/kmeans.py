"""Clusters of coordinates: Lloyd's k-means, from points that are drawn with a seed."""

import torch
from torch import Tensor

LEAST_WEIGHT = 1e-12  # of a cluster, by which a sum is divided


def kmeans(
    points: Tensor,
    count: int,
    generator: torch.Generator,
    rounds: int = 20,
    weight: Tensor | None = None,
) -> Tensor:
    """Centres "K L" of `count` clusters of points "n L", after at most `rounds` rounds.

    They are fewer only where there are fewer points. In each round, a centre becomes the mean of
    the points that are nearer to it than to others, by their weights "n" (None for 1), until none
    moves; one without points stays.
    Lloyd, IEEE Trans. Inf. Theory 28, 129-137 (1982).
    """
    drawn = torch.randperm(len(points), generator=generator)[:count]
    centres = points[drawn]
    for _ in range(rounds):
        before = centres
        cluster = nearest(points, centres)
        centres = means(points, cluster, centres, weight)
        if torch.equal(before, centres):
            break
    return centres


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Number "n" of the nearest of the centres "K L" for each point "n L"."""
    return torch.cdist(points, centres).argmin(1)


def means(
    points: Tensor,
    cluster: Tensor,
    otherwise: Tensor,
    weight: Tensor | None = None,
) -> Tensor:
    """Means "K L" of the points "n L" by their cluster "n" and weights "n" (None for 1).

    A cluster without points has its row of `otherwise` "K L".
    """
    if weight is not None:
        weight = weight.to(points)
        points = points * weight[:, None]
    sums = torch.zeros_like(otherwise).index_add_(0, cluster, points)
    number = torch.bincount(cluster, weight, minlength=len(otherwise))[:, None]
    mean = sums / (number.clamp(min=1) if weight is None else number.clamp(min=LEAST_WEIGHT))
    return torch.where(number > 0, mean, otherwise)
