"""A picture of an audit for a person to look at: slices of its maps through the middle of what
moves.
"""

from pathlib import Path

import torch
from torch import Tensor

from instamap.files import replacing
from instamap.motion.audit import Audit
from instamap.report.slices import VIEWS

# map, title, colours, value outside the mask
SHOWN = (
    ("displacement", "displacement (Å)", "magma"),
    ("disagreement", "disagreement (Å)", "magma"),
    ("believed", "believed", "gray"),
    ("strain", "strain", "viridis"),
    ("jacobian", "Jacobian determinant", "RdBu"),
)


def plot(path: str | Path, audit: Audit) -> None:
    """Write a PNG: slices along z, y and x of all maps, displacement and disagreement in the same
    colours. Raises OutputError.
    """
    from matplotlib.figure import Figure  # slow to import

    at = middle(audit.maps["displacement"])
    figure = Figure(figsize=(13, 7.4), layout="constrained")
    figure.suptitle(
        f"{audit.verdict}\nmotion {audit.motion_rms:.2f} Å rms, slices through voxel x, y, z ="
        f" {at[::-1]}",
        fontsize=10,
    )
    grid = figure.subplots(3, len(SHOWN))
    for column, (name, title, colours) in zip(grid.T, SHOWN, strict=True):
        low, high = _range(audit.maps, name)
        for axes, (view, axis, across, up) in zip(column, VIEWS, strict=True):
            seen = axes.imshow(
                audit.maps[name].select(axis, at[axis]).numpy(),
                cmap=colours,
                origin="lower",
                vmin=low,
                vmax=high,
                interpolation="nearest",
            )
            axes.set_title(f"{title} {view}" if axis == 0 else view, fontsize=8)
            axes.set_xlabel(f"{across} →", fontsize=7, labelpad=1)
            axes.set_ylabel(f"{up} →", fontsize=7, labelpad=1)
            axes.set(xticks=[], yticks=[])
        figure.colorbar(seen, ax=list(column), location="bottom", shrink=0.8)
    with replacing(path) as sibling:
        figure.savefig(sibling, format="png", dpi=110)


def middle(displacement: Tensor) -> tuple[int, int, int]:
    """The voxel (z, y, x) at the mean place of the square displacement; the origin's where nothing
    moves.
    """
    square = displacement.double().square()
    if not square.any():
        return (len(square) // 2,) * 3
    index = torch.arange(len(square), dtype=torch.float64)
    return tuple(
        round(float((square.sum([a for a in range(3) if a != axis]) * index).sum() / square.sum()))
        for axis in range(3)
    )


def _range(maps: dict[str, Tensor], name: str) -> tuple[float, float]:
    """Values of the ends of the colours. Determinants lie about 1, and 0 is where space folds."""
    if name in ("believed", "jacobian"):
        return 0.0, 1.0 if name == "believed" else 2.0
    alike = ("strain",) if name == "strain" else ("displacement", "disagreement")
    seen = torch.cat([maps[other].flatten() for other in alike])
    ordered = seen[seen > 0].sort().values  # the highest are often alone, at the mask's edge
    return 0.0, float(ordered[round(0.995 * (len(ordered) - 1))]) if len(ordered) else 1.0
