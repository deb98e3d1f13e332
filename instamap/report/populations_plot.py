"""A picture of populations: the energy along a single coordinate, or shares of conformations in a
plane.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from instamap.motion.energy_profile import Profile
from instamap.motion.intervals import Interval
from instamap.motion.populations import Populations
from instamap.motion.regions import Region
from instamap.report import figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("tab:blue", "tab:orange")  # of fits
LARGEST = 900.0  # square points, of the mark of a conformation that all particles are in
TOP_ENERGY = 8.0  # kT, at which the picture of an energy ends
LOWEST_ENERGY = -0.5
TICKS = 6


def plot(path: str | Path, populations: Populations) -> None:
    """Write a PNG of populations.

    One coordinate: the energy and the share of particles below, with their intervals, over the way
    along the motion. More: the first two, with marks whose area is the share of each conformation.
    Raises OutputError.
    """
    figure.save(drawn(populations), path, dpi=140)


def drawn(populations: Populations) -> "Figure":
    """The figure that `plot` writes."""
    if populations.profile is None:
        page = figure.framed(5.4, 4.6)
        _draw_plane(page.subplots(), populations)
        return page
    page = figure.framed(10.4, 4.4)
    left, right = page.subplots(1, 2)
    _draw_energy(left, populations.profile)
    _draw_shares(right, populations.profile)
    for axes in (left, right):
        axes.set_xlabel(f"way along the motion ({populations.profile.unit})")
        axes.spines["right"].set_visible(False)
        _mark_coordinates(axes, populations.profile)
    for region, share in populations.regions:
        _mark_region(left, populations.profile, region, share)
    return page


def _draw_energy(axes: "Axes", profile: Profile) -> None:
    along = (profile.distance[1:] + profile.distance[:-1]) / 2
    middle, low, high = profile.energy
    axes.fill_between(along.numpy(), low.numpy(), high.numpy(), color="0.85", linewidth=0)
    axes.plot(along.numpy(), middle.numpy(), color="tab:red", linewidth=1.6)
    highest = min(TOP_ENERGY, float(high.max()))
    axes.set_ylim(LOWEST_ENERGY, max(1.0, 1.15 * highest))
    axes.set_ylabel("energy (kT): -log of the density")


def _draw_shares(axes: "Axes", profile: Profile) -> None:
    middle, low, high = profile.cumulative
    along = profile.distance.numpy()
    axes.fill_between(along, low.numpy(), high.numpy(), color="0.85", linewidth=0)
    axes.plot(along, middle.numpy(), color="tab:red", linewidth=1.6)
    axes.set_ylim(0, 1)
    axes.set_ylabel("share of the particles below")


def _mark_coordinates(axes: "Axes", profile: Profile) -> None:
    """A second axis with the run's coordinate at some places."""
    length = float(profile.distance[-1])
    wanted = torch.linspace(0, length, TICKS + 1, dtype=torch.float64)
    last = len(profile.z) - 1
    places = torch.searchsorted(profile.distance, wanted).clamp(max=last).tolist()
    upper = axes.twiny()
    upper.set_xlim(axes.get_xlim())
    upper.set_xticks([float(profile.distance[place]) for place in places])
    words = [f"{float(profile.z[place]):.2g}" for place in places]
    upper.set_xticklabels(words, fontsize=7, rotation=60)
    upper.set_xlabel("z1", fontsize=8)
    upper.spines["right"].set_visible(False)


def _mark_region(axes: "Axes", profile: Profile, region: Region, share: Interval) -> None:
    """Lines at the bounds of a region, and its share between them."""
    low, high = region.bounds[0]
    first = float(profile.z[0])
    last = float(profile.z[-1])
    if low >= last or high <= first:
        return
    bounds = [max(low, first), min(high, last)]
    start, end = np.interp(bounds, profile.z.numpy(), profile.distance.numpy())
    if low > first:
        axes.axvline(start, color="0.5", linestyle=":", linewidth=0.9)
    if high < last:
        axes.axvline(end, color="0.5", linestyle=":", linewidth=0.9)
    axes.annotate(
        f"{region.name}\n{share.value:.1%}",
        ((start + end) / 2, 0.98),
        xycoords=("data", "axes fraction"),
        fontsize=7,
        ha="center",
        va="top",
    )


def _draw_plane(axes: "Axes", populations: Populations) -> None:
    each = zip(populations.fits, populations.weights, COLOURS, strict=False)
    for fit, weights, colour in each:
        x = fit.nodes[:, 0].numpy()
        y = fit.nodes[:, 1].numpy()
        area = LARGEST * weights.weights
        axes.scatter(x, y, s=area.numpy(), color=colour, alpha=0.6, linewidths=0, label=fit.name)
        axes.scatter(x, y, s=3, color=colour, linewidths=0)
    axes.set_xlabel("z1")
    axes.set_ylabel("z2")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, markerscale=0.5)
