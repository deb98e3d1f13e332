"""A picture of a map for a person to look at: three central slices, three projections."""

from pathlib import Path

import torch
from torch import Tensor

from instamap.files import replacing

SHOWN = (
    0.001,
    0.999,
)  # quantiles that become black and white: a hot voxel shall not turn the rest gray
VIEWS = (
    ("along z", 0, "x", "y"),
    ("along y", 1, "x", "z"),
    ("along x", 2, "y", "z"),
)  # title, summed axis, horizontal, vertical


def plot(path: str | Path, map: Tensor, pixel_size: float) -> None:
    """Write a PNG: central slices [D // 2] and projections of `map` [z, y, x] along z, y and x,
    with a scale bar in Å.

    Raises OutputError.
    """
    from matplotlib.figure import Figure  # slow to import, and fits that draw nothing need not wait

    map = map.detach().cpu().double()
    slices = [map.select(axis, map.shape[axis] // 2) for _, axis, _, _ in VIEWS]
    projections = [map.sum(axis) * pixel_size for _, axis, _, _ in VIEWS]
    figure = Figure(figsize=(7.2, 5.1), layout="constrained")
    for row, images, name in zip(
        figure.subplots(2, 3), (slices, projections), ("central slice", "projection"), strict=True
    ):
        low, high = _range(images)
        for axes, image, (title, _, across, up) in zip(row, images, VIEWS, strict=True):
            axes.imshow(
                image.numpy(),
                cmap="gray",
                origin="lower",
                vmin=low,
                vmax=high,
                interpolation="nearest",
            )
            axes.set_title(f"{name} {title}", fontsize=9)
            axes.set_xlabel(f"{across} →", fontsize=8, labelpad=2)
            axes.set_ylabel(f"{up} →", fontsize=8, labelpad=2)
            axes.set(xticks=[], yticks=[])
    _scale_bar(figure.axes[0], map.shape[-1], pixel_size)
    with replacing(path) as sibling:
        figure.savefig(sibling, format="png", dpi=140)


def _range(images: list[Tensor]) -> tuple[float, float]:
    """Gray values common to all `images`."""
    ordered = torch.cat([i.flatten() for i in images]).sort().values
    return tuple(float(ordered[round(q * (len(ordered) - 1))]) for q in SHOWN)


def _scale_bar(axes, box: int, pixel_size: float) -> None:
    """A bar of a round length (1, 2 or 5 times a power of ten), at most a third of the box."""
    longest = box * pixel_size / 3
    length = max(
        step * 10.0**power
        for power in range(-3, 5)
        for step in (1, 2, 5)
        if step * 10.0**power <= longest
    )
    left = 0.05 * box
    bottom = 0.06 * box
    axes.plot(
        [left, left + length / pixel_size],
        [bottom, bottom],
        color="white",
        linewidth=3,
        solid_capstyle="butt",
    )
    axes.text(left, bottom + 0.03 * box, f"{length:g} Å", color="white", fontsize=8, va="bottom")
