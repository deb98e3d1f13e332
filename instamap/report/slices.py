"""A picture of a map for a person to look at: three central slices, three projections."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from instamap.report import figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GRAY_QUANTILES = (0.001, 0.999)
"""Quantiles that become black and white: a hot voxel shall not turn the rest gray."""

ROUND_STEPS = (1, 2, 5)  # of a scale bar's length, times a power of ten


@dataclass(frozen=True)
class View:
    """A direction of view along an axis of a map [z, y, x], and what is horizontal and vertical."""

    title: str
    axis: int
    across: str
    up: str


VIEWS = (
    View("along z", 0, "x", "y"),
    View("along y", 1, "x", "z"),
    View("along x", 2, "y", "z"),
)


def plot(path: str | Path, volume: Tensor, pixel_size: float) -> None:
    """Write a PNG: central slices [D // 2] and projections of a map [z, y, x], with a scale bar.

    Views are along z, y and x. Raises OutputError.
    """
    figure.save(drawn(volume, pixel_size), path, dpi=140)


def drawn(volume: Tensor, pixel_size: float) -> "Figure":
    """The figure that `plot` writes."""
    volume = volume.detach().cpu()
    middle = [volume.select(view.axis, volume.shape[view.axis] // 2) for view in VIEWS]
    slices = [one.double() for one in middle]
    projections = [sums * pixel_size for sums in _sums(volume)]
    page = figure.framed(7.2, 5.1)
    upper, lower = page.subplots(2, 3)
    _draw_row(upper, slices, "central slice")
    _draw_row(lower, projections, "projection")
    _draw_scale_bar(upper[0], volume.shape[-1], pixel_size)
    return page


def _sums(volume: Tensor) -> list[Tensor]:
    """Sums of a map "D D D" along each of its axes, in float64; a plane at a time, which stays in a
    cache.
    """
    along_z = volume.new_zeros(volume.shape[1:], dtype=torch.float64)
    along_y = []
    along_x = []
    for plane in volume:
        plane = plane.double()
        along_z += plane
        along_y.append(plane.sum(0))
        along_x.append(plane.sum(1))
    return [along_z, torch.stack(along_y), torch.stack(along_x)]


def label_axes(axes: "Axes", view: View, *, size: float, distance: float) -> None:
    """Name what is horizontal and vertical, and leave out ticks.

    size: of the letters in points. distance: from the axes in points.
    """
    axes.set_xlabel(f"{view.across} →", fontsize=size, labelpad=distance)
    axes.set_ylabel(f"{view.up} →", fontsize=size, labelpad=distance)
    axes.set_xticks([])
    axes.set_yticks([])


def _draw_row(row: "list[Axes]", images: list[Tensor], name: str) -> None:
    """An image for each view, all in the same gray values."""
    low, high = _gray_range(images)
    for axes, image, view in zip(row, images, VIEWS, strict=True):
        axes.imshow(
            image.numpy(),
            cmap="gray",
            origin="lower",
            vmin=low,
            vmax=high,
            interpolation="nearest",
        )
        axes.set_title(f"{name} {view.title}", fontsize=9)
        label_axes(axes, view, size=8, distance=2)


def _gray_range(images: list[Tensor]) -> tuple[float, float]:
    """Values that become black and white in all `images`."""
    values = torch.cat([image.flatten() for image in images])
    ordered = values.sort().values
    last = len(ordered) - 1
    low, high = (float(ordered[round(quantile * last)]) for quantile in GRAY_QUANTILES)
    return low, high


def _draw_scale_bar(axes: "Axes", box: int, pixel_size: float) -> None:
    """A bar of a round length (1, 2 or 5 times a power of ten), at most a third of the box."""
    longest = box * pixel_size / 3
    lengths = [step * 10.0**power for power in range(-3, 5) for step in ROUND_STEPS]
    length = max(length for length in lengths if length <= longest)
    left = 0.05 * box
    bottom = 0.06 * box
    axes.plot(
        [left, left + length / pixel_size],
        [bottom, bottom],
        color="white",
        linewidth=3,
        solid_capstyle="butt",
    )
    axes.text(
        left,
        bottom + 0.03 * box,
        f"{length:g} Å",
        color="white",
        fontsize=8,
        va="bottom",
    )
