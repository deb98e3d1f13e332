"""A picture of the directions from which particles were seen, and of how they turn in the plane."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from instamap.report import figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AZIMUTH_BINS = 72
HEIGHT_BINS = 36  # of the cosine: bins of one area on the sphere


def plot(path: str | Path, rotation: Tensor, covered: float | None = None) -> None:
    """Write a PNG of rotations "n 3 3" (particle frame to image frame).

    covered: share of the directions in Fourier space that a slice goes through. Raises OutputError.
    """
    figure.save(drawn(rotation, covered), path, dpi=140)


def drawn(rotation: Tensor, covered: float | None = None) -> "Figure":
    """The figure that `plot` writes."""
    rotation = rotation.double()
    page = figure.framed(9.0, 3.6)
    words = "" if covered is None else f"; slices cover {covered:.0%} of all directions"
    page.suptitle(f"views of {len(rotation)} images{words}", fontsize=10)
    sphere, plane = page.subplots(1, 2, width_ratios=(2, 1))
    image = sphere.imshow(
        views_per_bin(rotation).numpy(),
        origin="lower",
        aspect="auto",
        extent=(-180.0, 180.0, -1.0, 1.0),
        cmap="viridis",
        vmin=0,
    )
    page.colorbar(image, ax=sphere, label="images (bins of one area)")
    sphere.set_xlabel("azimuth of the view (degrees)")
    sphere.set_ylabel("cosine of its tilt")
    plane.hist(in_plane_angles(rotation).numpy(), bins=36, range=(-180, 180), color="0.4")
    plane.set_xlabel("turn in the plane (degrees)")
    plane.set_ylabel("images")
    plane.spines[["top", "right"]].set_visible(False)
    return page


def views_per_bin(rotation: Tensor) -> Tensor:
    """Number of views "36 72" by the cosine of their tilt and by azimuth."""
    direction = rotation[:, 2]
    azimuth = torch.atan2(direction[:, 1], direction[:, 0]) / (2 * math.pi) + 0.5
    column = (azimuth * AZIMUTH_BINS).long().clamp(0, AZIMUTH_BINS - 1)
    height = (direction[:, 2] + 1) / 2
    row = (height * HEIGHT_BINS).long().clamp(0, HEIGHT_BINS - 1)
    counts = torch.bincount(row * AZIMUTH_BINS + column, minlength=AZIMUTH_BINS * HEIGHT_BINS)
    return counts.reshape(HEIGHT_BINS, AZIMUTH_BINS)


def in_plane_angles(rotation: Tensor) -> Tensor:
    """Degrees "n" by which the particle's z axis is turned in the image, from x."""
    return torch.rad2deg(torch.atan2(rotation[:, 1, 2], rotation[:, 0, 2]))
