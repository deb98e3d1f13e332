"""How the coordinates of two independent fits relate: by particles that both have placed."""

from dataclasses import dataclass

import torch
from torch import Tensor

MIN_SPREAD = 1e-12


@dataclass(frozen=True)
class Alignment:
    """Coordinates of a second fit from those of a first one: second ≈ first @ turnᵀ + offset.

    turn "L L", offset "L". agreement: the correlation (R) of both, None where nothing moves.
    """

    turn: Tensor
    offset: Tensor
    agreement: float | None


def align(first: Tensor, second: Tensor, weight: Tensor | None = None) -> Alignment:
    """The alignment of coordinates "m L" of the same particles, which count by their weights "m"
    (None for 1).

    A single coordinate is a rank, so that only its direction may differ.
    """
    size = first.shape[1]
    spreads = torch.stack([first.std(), second.std()])
    if not (spreads > 0).all():
        unit = torch.eye(size)
        return Alignment(unit, torch.zeros(size), None)
    if size == 1:
        return _align_ranks(first, second, weight)
    if weight is None:
        weight = torch.ones_like(first[:, 0])
    root = weight.to(first).sqrt()[:, None]
    ones = torch.ones_like(first[:, :1])
    known = torch.cat([first, ones], 1)
    solution = torch.linalg.lstsq(root * known, root * second).solution
    residual = root * (second - known @ solution)
    mean = (weight.to(second) @ second) / weight.sum()
    centred = root * (second - mean)
    unexplained = residual.square().sum() / centred.square().sum()
    explained = (1 - unexplained).clamp(min=0)
    turn = solution[:-1].T.float()
    offset = solution[-1].float()
    return Alignment(turn.contiguous(), offset, float(explained.sqrt()))


def _align_ranks(first: Tensor, second: Tensor, weight: Tensor | None) -> Alignment:
    """The alignment of ranks "m 1"."""
    both = torch.cat([first.T, second.T])
    covariance = torch.cov(both, aweights=weight)
    deviation = covariance.diagonal().sqrt()
    matrix = covariance / deviation / deviation[:, None]
    correlation = float(matrix[0, 1])
    direction = 1.0 if correlation >= 0 else -1.0
    turn = torch.full((1, 1), direction)
    return Alignment(turn, torch.zeros(1), abs(correlation))


def align_scaled(first: Tensor, second: Tensor) -> Alignment:
    """The alignment of coordinates "m L" of any scale: each is brought to unit spread first."""
    first_middle = first.mean(0)
    first_scale = first.std(0).clamp(min=MIN_SPREAD)
    second_middle = second.mean(0)
    second_scale = second.std(0).clamp(min=MIN_SPREAD)
    first_unit = (first - first_middle) / first_scale
    second_unit = (second - second_middle) / second_scale
    unit = align(first_unit, second_unit)
    if unit.agreement is None:
        return Alignment(unit.turn, second_middle - first_middle, None)
    scaled = second_scale[:, None] * unit.turn
    turn = scaled / first_scale
    moved = second_middle + second_scale * unit.offset
    offset = moved - turn @ first_middle
    return Alignment(turn, offset, unit.agreement)
