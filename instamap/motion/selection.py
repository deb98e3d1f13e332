"""Which particles are meant: by bounds of their coordinates, or by a line drawn around them."""

import math
from pathlib import Path

import torch
from torch import Tensor

from instamap.errors import DataError, OptionError
from instamap.motion.conformation_maps import coordinate_names, read_csv

MIN_CORNERS = 3  # of a polygon


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


def low_and_high(text: str, separator: str) -> tuple[float, float]:
    """The two numbers of a text with a separator between them; infinite where one is left out.

    Raises ValueError.
    """
    first, second = [word.strip() for word in text.split(separator)]
    low = float(first) if first else -math.inf
    high = float(second) if second else math.inf
    return low, high


def _bounds(text: str) -> tuple[float, float]:
    """The numbers of "low,high"; infinite where one is left out."""
    try:
        low, high = low_and_high(text, ",")
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
    header, corners = read_csv(file)
    axes = [0, 1] if header is None else _axes(header, latents, file)
    if corners.shape[1] != 2:
        raise DataError(
            f"lasso '{file}' has {corners.shape[1]} columns; it must have two, a corner of the"
            " polygon in each row"
        )
    if len(corners) < MIN_CORNERS or not corners.isfinite().all():
        raise DataError(
            f"lasso '{file}' must have three corners or more, of two numbers each; it has"
            f" {len(corners)} rows"
        )
    return inside(latents[:, axes].double(), corners)


def _axes(
    header: list[str],
    latents: Tensor,
    file: str | Path,
) -> list[int]:
    """The numbers from 0 of the coordinates that a header names."""
    known = coordinate_names(latents.shape[1])
    for name in header:
        if name not in known:
            raise DataError(
                f"lasso '{file}' has column '{name}', but particles have {_coordinates(latents)};"
                " name two of them"
            )
    if len(header) == 2 and header[0] == header[1]:
        raise DataError(f"lasso '{file}' has column '{header[0]}' twice; name two coordinates")
    return [known.index(name) for name in header]


def inside(points: Tensor, corners: Tensor) -> Tensor:
    """Which "n" of points "n 2" lie inside the polygon with corners "K 2" (even-odd rule)."""
    x, y = points.T
    odd = torch.zeros(len(points), dtype=torch.bool)
    following = corners.roll(-1, 0)
    for start, end in zip(corners.tolist(), following.tolist(), strict=True):
        ax, ay = start
        bx, by = end
        if ay == by:
            continue  # a level edge is crossed by no level line
        between = (y < ay) != (y < by)
        beyond = (y - ay) * (bx - ax)
        crossing = ax + beyond / (by - ay)
        odd ^= between & (x < crossing)
    return odd


def _coordinates(latents: Tensor) -> str:
    return ", ".join(coordinate_names(latents.shape[1]))
