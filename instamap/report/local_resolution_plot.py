"""A picture of local resolution: slices of a map in its colours, and how much of it has which."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from instamap.maps.local_resolution import NOISE_RATE, LocalResolution
from instamap.report import figure
from instamap.report.slices import VIEWS, label_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

COLOURS = "viridis_r"
COLOUR_QUANTILES = (0.02, 0.98)
"""Quantiles of the resolutions in the mask that get the first and the last colour."""

HISTOGRAM_BINS = 40

PANELS = "001122;333444"
"""What each place of a grid of 2 x 6 is a part of: views, histogram, noise."""


def drawn(local: LocalResolution, volume: Tensor, mask: Tensor | None = None) -> "Figure":
    """Central slices along z, y and x, coloured by local resolution where `mask` "D D D" is above a
    half, the map `volume` "D D D" in gray beneath, and a histogram.

    Beside it the FSC that noise alone reaches in the window.
    """
    inside = torch.ones_like(volume, dtype=torch.bool) if mask is None else mask > 0.5
    values = local.resolution[inside].sort().values
    last = len(values) - 1
    low, high = (float(values[round(share * last)]) for share in COLOUR_QUANTILES)
    page = figure.framed(10.5, 6.2)
    panels = page.subplot_mosaic(PANELS, height_ratios=(1.3, 1))
    pictures = [panels[number] for number in "012"]
    for axes, view in zip(pictures, VIEWS, strict=True):
        place = len(volume) // 2
        grey = volume.select(view.axis, place)
        shown = inside.select(view.axis, place)
        resolution = local.resolution.select(view.axis, place)
        colour = resolution.where(shown, torch.nan)
        image = _draw_slice(axes, grey, colour, (low, high))
        axes.set_title(f"central slice {view.title}", fontsize=9)
        label_axes(axes, view, size=8, distance=2)
    page.colorbar(image, ax=pictures, label="local resolution (Å)", shrink=0.85)
    _draw_histogram(panels["3"], values)
    _draw_noise(panels["4"], local)
    return page


def _draw_slice(
    axes: "Axes",
    grey: Tensor,
    colour: Tensor,
    span: tuple[float, float],
) -> "AxesImage":
    """A slice "D D" of the map, and over it that of the resolution, clear where it is nan."""
    axes.imshow(grey.numpy(), cmap="gray", origin="lower", interpolation="nearest")
    return axes.imshow(
        colour.numpy(),
        cmap=COLOURS,
        origin="lower",
        vmin=span[0],
        vmax=span[1],
        alpha=0.75,
        interpolation="nearest",
    )


def _draw_histogram(axes: "Axes", values: Tensor) -> None:
    axes.hist(values.numpy(), bins=HISTOGRAM_BINS, color="0.4")
    axes.set_xlabel("local resolution (Å)")
    axes.set_ylabel("voxels in the mask")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_noise(axes: "Axes", local: LocalResolution) -> None:
    """The threshold in each band, and what noise alone reaches."""
    bands = local.bands
    judged = range(bands.first, bands.last + 1)
    frequency = [bands.frequency(band) for band in judged]
    start = bands.first - 1
    label = f"noise in the window ({NOISE_RATE:.0%} of places are above)"
    axes.plot(frequency, local.chance[start:].tolist(), color="C3", label=label)
    axes.plot(frequency, local.threshold[start:].tolist(), color="0.3", ls="--", label="threshold")
    axes.set_ylim(0, 1)
    axes.set_xlabel("spatial frequency (1/Å)")
    axes.set_ylabel("local FSC")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
