"""A picture of Fourier shell correlations over spatial frequency."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from instamap.maps.fsc import RESOLUTION_THRESHOLDS, resolution
from instamap.report import figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TICKS = 6  # of the frequency axis, beside that at 0


def plot(path: str | Path, curves: dict[str, Tensor], box: int, pixel_size: float) -> None:
    """Write a PNG of named curves "D//2+1", with their resolutions at 0.143 and 0.5.

    Raises OutputError.
    """
    figure.save(drawn(curves, box, pixel_size), path, dpi=160)


def drawn(curves: dict[str, Tensor], box: int, pixel_size: float) -> "Figure":
    """The figure that `plot` writes."""
    page = figure.framed(6.4, 4.2)
    axes = page.subplots()
    for name, curve in curves.items():
        frequency = torch.arange(len(curve)) / (box * pixel_size)
        axes.plot(
            frequency.tolist(),
            curve.tolist(),
            linewidth=1.6,
            label=_label(name, curve, box, pixel_size),
        )
    _draw_thresholds(axes)
    lowest = min(float(curve.min()) for curve in curves.values())
    _draw_frame(axes, box, pixel_size, min(0.0, lowest))
    # inside the axes, curves would run through it
    page.legend(loc="outside upper left", frameon=False, fontsize=9)
    return page


def _label(name: str, curve: Tensor, box: int, pixel_size: float) -> str:
    """The curve's name and its resolution at each threshold, the strictest last."""
    half, gold = (resolution(curve, box, pixel_size, t) for t in RESOLUTION_THRESHOLDS)
    return f"{name}: {gold:.2f} Å (0.143), {half:.2f} Å (0.5)"


def _draw_thresholds(axes: "Axes") -> None:
    """A dashed line at each threshold, named at its right end."""
    for threshold in RESOLUTION_THRESHOLDS:
        axes.axhline(
            threshold,
            color="0.55",
            linestyle="--",
            linewidth=0.8,
            zorder=0,
        )
        axes.annotate(
            f"{threshold:g}",
            (1, threshold),
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color="0.4",
        )


def _draw_frame(axes: "Axes", box: int, pixel_size: float, lowest: float) -> None:
    """Axes from zero frequency to Nyquist, with room for the lowest value of all curves."""
    last = (box // 2) / (box * pixel_size)
    ticks = [last * i / TICKS for i in range(1, TICKS + 1)]
    labels = [f"{1 / frequency:.3g}" for frequency in ticks]
    bottom = max(-1.05, min(-0.05, lowest - 0.05))
    axes.set_xticks([0, *ticks], ["∞", *labels])
    axes.set_xlim(0, last)
    axes.set_ylim(bottom, 1.03)
    axes.set_xlabel("spatial frequency, as resolution (Å)")
    axes.set_ylabel("Fourier shell correlation")
    axes.axhline(0, color="0.3", linewidth=0.8, zorder=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
