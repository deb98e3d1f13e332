"""A picture of the resolution along each direction, and of how often each was seen."""

import math
from typing import TYPE_CHECKING

from torch import Tensor

from instamap.maps.directional_fsc import AZIMUTH_BINS, HEIGHT_BINS
from instamap.report import figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def drawn(resolution: Tensor, sampling: Tensor | None = None) -> "Figure":
    """The `resolution` "V" in Å over the half sphere, and `sampling` "V", where it is known.

    Directions are those of `maps.directional_fsc.bin_centres`.
    """
    count = 1 if sampling is None else 2
    page = figure.framed(4.6 * count, 4.4)
    grid = page.subplots(1, count, subplot_kw={"projection": "polar"}, squeeze=False)
    axes = list(grid[0])
    words = f"resolution {float(resolution.min()):.2f} to {float(resolution.max()):.2f} Å"
    _draw(page, axes[0], resolution, words, "viridis_r")
    if sampling is not None:
        words = "how often seen, of uniform views"
        _draw(page, axes[1], sampling, words, "cividis")
    return page


def _draw(page: "Figure", axes: "Axes", values: Tensor, title: str, colours: str) -> None:
    """Values over the half sphere, seen along z in equal-area projection."""
    azimuth = [2 * math.pi * step / AZIMUTH_BINS - math.pi for step in range(AZIMUTH_BINS + 1)]
    heights = [step / HEIGHT_BINS for step in range(HEIGHT_BINS + 1)]
    radius = [math.sqrt(1 - height) for height in heights]
    image = axes.pcolormesh(
        azimuth,
        radius,
        values.reshape(HEIGHT_BINS, AZIMUTH_BINS).numpy(),
        cmap=colours,
        shading="flat",
    )
    axes.set_yticks([])
    axes.set_xticks([0, math.pi / 2, math.pi, 3 * math.pi / 2], ["x", "y", "-x", "-y"])
    axes.set_title(title, fontsize=9)
    page.colorbar(image, ax=axes, shrink=0.8)
