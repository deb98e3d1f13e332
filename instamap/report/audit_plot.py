"""A picture of an audit: slices of its maps through the middle of what moves."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from instamap.motion.audit import Audit, lattice
from instamap.report import figure
from instamap.report.slices import VIEWS, View, label_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

TOP_QUANTILE = 0.995
"""Quantile of the values that gets the last colour: the highest are often alone, at the mask's
edge.
"""


@dataclass(frozen=True)
class Column:
    """One map of an audit: its name, its title and its colours."""

    name: str
    title: str
    colours: str


COLUMNS = (
    Column("displacement", "displacement (Å)", "magma"),
    Column("disagreement", "disagreement (Å)", "magma"),
    Column("believed", "believed", "gray"),
    Column("verdict", "verdict, 0 to 3", "viridis"),
    Column("strain", "strain", "viridis"),
    Column("jacobian", "Jacobian determinant", "RdBu"),
)


def plot(path: str | Path, audit: Audit) -> None:
    """Write a PNG of slices along z, y and x of all maps of an audit.

    Displacement and disagreement have the same colours. Raises OutputError.
    """
    figure.save(drawn(audit), path, dpi=110)


def drawn(audit: Audit, every: int = 1) -> "Figure":
    """The figure that `plot` writes; of one in `every` voxels along each axis, if the audit looked
    at these alone.
    """
    maps = {name: lattice(volume, every) for name, volume in audit.maps.items()}
    columns = [column for column in COLUMNS if column.name in maps]
    place = middle(maps["displacement"])
    first = len(audit.maps["displacement"]) // 2 % every
    voxel = tuple(first + every * index for index in reversed(place))
    verdict = audit.verdict_where("'believed' is white")
    motion = f"motion {audit.motion_rms:.2f} Å rms"
    title = f"{verdict}\n{motion}, slices through voxel x, y, z = {voxel}"
    page = figure.framed(2.6 * len(columns), 7.4)
    page.suptitle(title, fontsize=10)
    grid = page.subplots(len(VIEWS), len(columns))
    for axes_of_column, column in zip(grid.T, columns, strict=True):
        span = _colour_range(maps, column.name)
        for axes, view in zip(axes_of_column, VIEWS, strict=True):
            section = maps[column.name].select(view.axis, place[view.axis])
            picture = _draw_slice(axes, section, column, view, span)
        page.colorbar(
            picture,
            ax=list(axes_of_column),
            location="bottom",
            shrink=0.8,
        )
    return page


def _draw_slice(
    axes: "Axes",
    section: Tensor,
    column: Column,
    view: View,
    span: tuple[float, float],
) -> "AxesImage":
    low, high = span
    picture = axes.imshow(
        section.numpy(),
        cmap=column.colours,
        origin="lower",
        vmin=low,
        vmax=high,
        interpolation="nearest",
    )
    title = f"{column.title} {view.title}" if view.axis == 0 else view.title
    axes.set_title(title, fontsize=8)
    label_axes(axes, view, size=7, distance=1)
    return picture


def middle(displacement: Tensor) -> tuple[int, int, int]:
    """The voxel (z, y, x) at the mean place of the square displacement.

    It is the origin's where nothing moves.
    """
    square = displacement.double().square()
    if not square.any():
        origin = len(square) // 2
        return origin, origin, origin
    total = square.sum()
    index = torch.arange(len(square), dtype=torch.float64)
    place = []
    for others in ([1, 2], [0, 2], [0, 1]):
        profile = square.sum(others)
        mean = (profile * index).sum() / total
        place.append(round(float(mean)))
    z, y, x = place
    return z, y, x


def _colour_range(maps: dict[str, Tensor], name: str) -> tuple[float, float]:
    """Values of the ends of the colours.

    Determinants lie about 1, and 0 is where space folds.
    """
    if name == "believed":
        return 0.0, 1.0
    if name == "jacobian":
        return 0.0, 2.0
    if name == "verdict":
        return 0.0, 3.0
    alike = ("strain",) if name == "strain" else ("displacement", "disagreement")
    values = torch.cat([maps[other].flatten() for other in alike])
    ordered = values[values > 0].sort().values
    if not len(ordered):
        return 0.0, 1.0
    last = len(ordered) - 1
    return 0.0, float(ordered[round(TOP_QUANTILE * last)])
