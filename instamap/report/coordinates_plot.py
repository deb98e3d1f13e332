"""A picture of the particles' coordinates, and of how they go with the direction of view."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from instamap.motion.pose_dependence import explained_by_view
from instamap.report import figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PARTICLES = 20_000  # in a picture
DENSITY_BINS = 48  # of a coordinate, in which the density of particles is counted
HISTOGRAM_BINS = 60
MEDIAN_PIECES = 18  # of an angle's range
MIN_PARTICLES_OF_MEDIAN = 5


@dataclass(frozen=True)
class Angle:
    """An angle of the direction of view: values "n" in degrees, and their possible range."""

    values: Tensor
    low: float
    high: float

    @property
    def ticks(self) -> list[float]:
        """Five ticks from end to end."""
        return [self.low + (self.high - self.low) * i / 4 for i in range(5)]


def plot(path: str | Path, latents: Tensor, rotation: Tensor, conformations: Tensor) -> None:
    """Write a PNG of the coordinates "n L" of particles at rotations "n 3 3".

    The conformations "K L" are marked in it. One coordinate: its histogram, and it over tilt and
    rot. More: the first two, coloured by the density of particles, tilt and rot. Raises
    OutputError.
    """
    figure.save(drawn(latents, rotation, conformations), path, dpi=140)


def drawn(latents: Tensor, rotation: Tensor, conformations: Tensor) -> "Figure":
    """The figure that `plot` writes."""
    every = max(1, math.ceil(len(latents) / MAX_PARTICLES))
    some = latents[::every].double()
    angles = viewing_angles(rotation[::every])
    marks = conformations.double()
    page = figure.framed(11.4, 3.9)
    page.suptitle(_title(latents, rotation), fontsize=10)
    if latents.shape[1] == 1:
        _draw_one_coordinate(page, some[:, 0], angles, marks[:, 0])
    else:
        _draw_two_coordinates(page, some[:, :2], angles, marks[:, :2])
    for axes in page.axes[:3]:
        axes.spines[["top", "right"]].set_visible(False)
    return page


def drawn_alone(latents: Tensor) -> "Figure":
    """The coordinates "n L", of particles whose directions of view are not known."""
    every = max(1, math.ceil(len(latents) / MAX_PARTICLES))
    some = latents[::every].double()
    page = figure.framed(4.6, 3.9)
    axes = page.subplots()
    if latents.shape[1] == 1:
        _draw_histogram(axes, some[:, 0], some[:0, 0])
    else:
        points = some[:, :2]
        _draw_cloud(axes, points, _density(points), "particles around")
    axes.spines[["top", "right"]].set_visible(False)
    return page


def _title(latents: Tensor, rotation: Tensor) -> str:
    """The share of each coordinate's variance that the direction of view explains."""
    shares = []
    for number, share in enumerate(explained_by_view(latents, rotation), 1):
        word = "-" if share is None else f"{share:.1%}"
        shares.append(f"z{number} {word}")
    return f"variance that the direction of view explains: {', '.join(shares)}"


def viewing_angles(rotation: Tensor) -> dict[str, Angle]:
    """RELION's tilt and rot of rotations "n 3 3"."""
    x, y, z = rotation[:, 2].double().unbind(-1)
    tilt = torch.rad2deg(torch.acos(z.clamp(-1, 1)))
    rot = torch.rad2deg(torch.atan2(y, x))
    return {"tilt": Angle(tilt, 0, 180), "rot": Angle(rot, -180, 180)}


def _draw_one_coordinate(
    page: "Figure",
    z: Tensor,
    angles: dict[str, Angle],
    conformations: Tensor,
) -> None:
    first, *others = page.subplots(1, 3)
    _draw_histogram(first, z, conformations)
    for axes, (name, angle) in zip(others, angles.items(), strict=True):
        axes.hist2d(
            angle.values.numpy(),
            z.numpy(),
            bins=DENSITY_BINS,
            range=[(angle.low, angle.high), _range(z)],
            cmap="Blues",
        )
        middles, medians = _medians(angle, z)
        axes.plot(
            middles,
            medians,
            color="tab:red",
            linewidth=1.6,
            label="median",
        )
        axes.set_xlabel(f"{name} of the view (°)")
        axes.set_ylabel("z1")
        axes.set_xticks(angle.ticks)
    others[0].legend(frameon=False, fontsize=8)


def _draw_histogram(axes: "Axes", z: Tensor, conformations: Tensor) -> None:
    """The histogram of a coordinate, with a numbered line at each conformation."""
    axes.hist(z.numpy(), bins=HISTOGRAM_BINS, color="0.75")
    for number, place in enumerate(conformations.tolist(), 1):
        axes.axvline(place, color="tab:red", linewidth=0.8)
        axes.annotate(
            str(number),
            (place, 1),
            xycoords=("data", "axes fraction"),
            fontsize=6,
            color="tab:red",
            ha="center",
            va="bottom",
        )
    axes.set_xlabel("z1")
    axes.set_ylabel("particles")


def _draw_two_coordinates(
    page: "Figure",
    points: Tensor,
    angles: dict[str, Angle],
    conformations: Tensor,
) -> None:
    first, second, third = page.subplots(1, 3)
    density = _density(points)
    _draw_cloud(first, points, density, "particles around")
    _draw_cloud_by_angle(second, points, angles["tilt"], "tilt of the view (°)", "viridis")
    _draw_cloud_by_angle(third, points, angles["rot"], "rot of the view (°)", "twilight")
    x, y = conformations.unbind(1)
    first.plot(
        x.numpy(),
        y.numpy(),
        "o",
        color="tab:red",
        markersize=4,
    )
    frame = {"boxstyle": "round,pad=0.1", "color": "white", "alpha": 0.7, "linewidth": 0}
    for number, place in enumerate(conformations.tolist(), 1):
        first.annotate(
            str(number),
            place,
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=8,
            color="tab:red",
            bbox=frame,
        )


def _draw_cloud_by_angle(
    axes: "Axes",
    points: Tensor,
    angle: Angle,
    label: str,
    colours: str,
) -> None:
    _draw_cloud(
        axes,
        points,
        angle.values,
        label,
        colours=colours,
        span=(angle.low, angle.high),
        ticks=angle.ticks,
    )


def _draw_cloud(
    axes: "Axes",
    points: Tensor,
    values: Tensor,
    label: str,
    *,
    colours: str = "viridis",
    span: tuple[float | None, float | None] = (None, None),
    ticks: list[float] | None = None,
) -> None:
    """The points "n 2", coloured by `values` "n", with a bar that says what colours mean."""
    x, y = points.unbind(1)
    low, high = span
    cloud = axes.scatter(
        x.numpy(),
        y.numpy(),
        c=values.numpy(),
        s=3,
        cmap=colours,
        vmin=low,
        vmax=high,
        linewidths=0,
        rasterized=True,
    )
    axes.figure.colorbar(
        cloud,
        ax=axes,
        label=label,
        ticks=ticks,
    )
    axes.set_xlabel("z1")
    axes.set_ylabel("z2")


def _density(points: Tensor) -> Tensor:
    """For each of the points "n 2" how many are in its cell, of DENSITY_BINS² cells."""
    low = points.amin(0)
    extent = (points.amax(0) - low).clamp(min=1e-12)
    cell = ((points - low) / extent * (DENSITY_BINS - 1e-6)).long()
    code = cell[:, 0] * DENSITY_BINS + cell[:, 1]
    count = torch.bincount(code, minlength=DENSITY_BINS**2)
    return count[code].double()


def _medians(angle: Angle, z: Tensor) -> tuple[list[float], list[float]]:
    """The middles of equal pieces of an angle's range, and the median coordinate in each.

    A piece with too few particles is left out.
    """
    extent = angle.high - angle.low
    position = (angle.values - angle.low) / extent
    piece = (position * MEDIAN_PIECES).long().clamp(0, MEDIAN_PIECES - 1)
    middles = []
    medians = []
    for number in range(MEDIAN_PIECES):
        inside = piece == number
        if int(inside.sum()) < MIN_PARTICLES_OF_MEDIAN:
            continue
        middles.append(angle.low + (number + 0.5) * extent / MEDIAN_PIECES)
        medians.append(float(z[inside].median()))
    return middles, medians


def _range(z: Tensor) -> tuple[float, float]:
    """From the lowest to the highest value, and never empty."""
    low = float(z.min())
    high = float(z.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)
