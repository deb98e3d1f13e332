"""Which particles are meant: by bounds of their coordinates, or by a line drawn around them."""

import math
import re
from pathlib import Path

import torch
from torch import Tensor

from instamap.errors import DataError, OptionError
from instamap.motion.conformation_maps import read_csv


def within(latents: Tensor, bounds: list[str]) -> Tensor:
    """Which "n" of the coordinates "n L" lie within bounds "low,high", the first of the first
    coordinate and so on, ends included.

    Either end may be left out; coordinates without bounds may be anything. Raises OptionError.
    """
    if len(bounds) > latents.shape[1]:
        raise OptionError(
            f"within is given {len(bounds)} times, but particles have {_coordinates(latents)}; give"
            " it once for each at most"
        )
    chosen = torch.ones(len(latents), dtype=torch.bool)
    for z, text in zip(latents.T, bounds, strict=False):
        low, high = _bounds(text)
        chosen &= (z >= low) & (z <= high)
    return chosen


def _bounds(text: str) -> tuple[float, float]:
    parts = [part.strip() for part in text.split(",")]
    try:
        low, high = (
            float(part) if part else usual
            for part, usual in zip(parts, (-math.inf, math.inf), strict=True)
        )
    except ValueError:
        raise OptionError(
            f'within is "{text}"; it must be two numbers, such as "0.2,0.5", either of which may be'
            " left out"
        ) from None
    if not low <= high:
        raise OptionError(f'within is "{text}"; the first number must not be above the second')
    return low, high


def lasso(latents: Tensor, file: str | Path) -> Tensor:
    """Which "n" of the coordinates "n L" lie inside the polygon of a CSV file, a corner in each
    row, and the last joined to the first.

    Of the coordinates that its header names, such as z1,z3; without a header, of the first two.
    Inside is where a line to the outside crosses the polygon an odd number of times. Raises
    DataError.
    """
    if latents.shape[1] < 2:
        raise DataError(
            f"lasso '{file}' needs two coordinates, but particles have one; select with --within"
        )
    head, corners = read_csv(file)
    axes = [0, 1] if head is None else _axes(head, latents, file)
    if corners.shape[1] != 2:
        raise DataError(
            f"lasso '{file}' has {corners.shape[1]} columns; it must have two, a corner of the"
            " polygon in each row"
        )
    if len(corners) < 3 or not corners.isfinite().all():
        raise DataError(
            f"lasso '{file}' must have three corners or more, of two numbers each; it has"
            f" {len(corners)} rows"
        )
    return inside(latents[:, axes].double(), corners)


def _axes(head: list[str], latents: Tensor, file: str | Path) -> list[int]:
    """Numbers from 0 of the coordinates that a header names."""
    for name in head:
        if not re.fullmatch(r"z\d+", name) or not 1 <= int(name[1:]) <= latents.shape[1]:
            raise DataError(
                f"lasso '{file}' has column '{name}', but particles have {_coordinates(latents)};"
                " name two of them"
            )
    if len(head) == 2 and head[0] == head[1]:
        raise DataError(f"lasso '{file}' has column '{head[0]}' twice; name two coordinates")
    return [int(name[1:]) - 1 for name in head]


def inside(points: Tensor, corners: Tensor) -> Tensor:
    """Which "n" of points "n 2" lie inside the polygon with corners "K 2" (even-odd rule)."""
    (x, y), result = points.T, torch.zeros(len(points), dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners.tolist(), corners.roll(-1, 0).tolist(), strict=True):
        if ay != by:  # a level edge is crossed by no level line
            crossed = ((y < ay) != (y < by)) & (x < ax + (y - ay) * (bx - ax) / (by - ay))
            result ^= crossed
    return result


def _coordinates(latents: Tensor) -> str:
    return ", ".join(f"z{i + 1}" for i in range(latents.shape[1]))
