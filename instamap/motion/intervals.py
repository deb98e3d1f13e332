"""Intervals of what two independent fits say, by draws of particles and by how far they differ."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LEVEL = 0.95  # of intervals
NORMAL_QUANTILE = 1.959964  # of a standard error, to either side, at that level


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its 95 % interval, and what each fit says by itself."""

    value: float
    low: float
    high: float
    of_fits: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%})"

    def record(self) -> dict[str, Any]:
        """As populations.json says it."""
        bounds = [self.low, self.high]
        return {"share": self.value, "interval": bounds, "by_half": list(self.of_fits)}


def bounds(values: Tensor, drawn: Tensor) -> Tensor:
    """The mean over fits of values "F S", and the bounds of its interval: "3 S".

    drawn "B F S": of draws of the particles, with replacement, whose means' quantiles give the
    interval. Where two fits differ by more than draws make them, it becomes wider: half their
    difference is the standard error of their mean.
    """
    mean = values.mean(0)
    means = drawn.mean(1)
    tail = (1 - LEVEL) / 2
    levels = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    low, high = torch.quantile(means, levels, dim=0)
    excess = _excess(values, drawn)
    below = (mean - low).clamp(min=0)
    above = (high - mean).clamp(min=0)
    widened = (below.square() + excess).sqrt()
    raised = (above.square() + excess).sqrt()
    return torch.stack([mean, mean - widened, mean + raised])


def of_share(values: Tensor, drawn: Tensor) -> Interval:
    """The interval of a share, of values "F" and "B F"."""
    columns = bounds(values[:, None], drawn[..., None])
    value, low, high = columns[:, 0].tolist()
    return Interval(value, max(low, 0.0), min(high, 1.0), tuple(values.tolist()))


def _excess(values: Tensor, drawn: Tensor) -> Tensor:
    """The square "S" of what the difference of two fits adds to half the width of an interval."""
    if len(values) < 2:
        return torch.zeros_like(values[0])
    half = (values[0] - values[1]) / 2
    drawn_half = (drawn[:, 0] - drawn[:, 1]) / 2
    beyond = half.square() - drawn_half.var(0)
    return NORMAL_QUANTILE**2 * beyond.clamp(min=0)
