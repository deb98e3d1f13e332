"""A Guinier plot: the logarithm of a map's amplitudes over the square of spatial frequency."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from instamap.maps.sharpening import GuinierFit
from instamap.report import figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def drawn(
    amplitudes: dict[str, Tensor],
    fit: GuinierFit | None,
    box: int,
    pixel_size: float,
) -> "Figure":
    """ln |F| "D//2+1" by name over 1/d², and the line through them, where there is one."""
    page = figure.framed(6.4, 4.2)
    axes = page.subplots()
    for name, amplitude in amplitudes.items():
        shell = torch.arange(len(amplitude), dtype=torch.float64)
        square = (shell / (box * pixel_size)).square()
        # the mean of the map would squeeze all the rest
        shown = (amplitude > 0) & (shell > 0)
        logarithm = amplitude[shown].log()
        axes.plot(square[shown].tolist(), logarithm.tolist(), linewidth=1.4, label=name)
    if fit is not None:
        squares = [1 / fit.low**2, 1 / fit.high**2 if fit.high > 0 else float(square[-1])]
        line = [fit.intercept + fit.slope * value for value in squares]
        label = f"B-factor {fit.b_factor:.0f} Å²"
        axes.plot(squares, line, color="0.2", linestyle="--", linewidth=1.2, label=label)
    axes.set_xlabel("spatial frequency squared (1/Å²)")
    axes.set_ylabel("ln |F|")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return page
