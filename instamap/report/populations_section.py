"""What a report says of populations: the density of particles over a motion, and the energy."""

import torch
from torch import Tensor

from instamap.motion.conformation_maps import coordinate_names
from instamap.motion.energy_profile import Profile
from instamap.motion.intervals import Interval
from instamap.motion.populations import Populations
from instamap.report import svg
from instamap.report.section import Section, paragraphs, table

TITLE = "Populations"
NAMES = ("estimate", "interval from", "interval to")
TOP_ENERGY = 8.0  # kT, at which the chart ends
CAUTION = (
    "Densities under which the images are likeliest, not counts of placed particles, which noise"
    " smears out; each half's conformations are held against particles that it was not fitted to."
    " Intervals (95 %) are those of draws of the particles, and of how far the halves differ."
)


def section(populations: Populations) -> Section:
    """Of a single coordinate the density of particles and the energy along the motion, and the
    shares of its wells; of several the shares of conformations.
    """
    lines = paragraphs([CAUTION])
    more = paragraphs(
        ["instamap populations names regions of your own, and writes all of this as tables."]
    )
    if populations.profile is None:
        return Section(TITLE, lines + _conformations(populations) + more)
    charts = _density(populations.profile) + _energy(populations.profile)
    return Section(TITLE, lines + charts + _regions(populations) + more)


def density(profile: Profile) -> Tensor:
    """The density of particles over the way along the motion, and the bounds of its interval: "3
    G", with an integral of 1.
    """
    length = profile.distance.diff()
    weight = torch.exp(-profile.energy)
    total = (weight[0] * length).sum()
    middle, upper, lower = weight / total  # the lowest energy is the highest density
    return torch.stack([middle, lower, upper])


def _density(profile: Profile) -> str:
    """The chart of the density of particles."""
    values = density(profile)
    axis = svg.linear_axis(f"share of the particles per {profile.unit}", 0.0, float(values.max()))
    words = "The density of particles over the way along the motion."
    return _chart(profile, values, axis, words)


def _energy(profile: Profile) -> str:
    """The chart of the energy."""
    highest = min(TOP_ENERGY, float(profile.energy.max()))
    axis = svg.linear_axis("energy (kT)", 0.0, highest)
    words = f"The energy, -log of the density, above the lowest; up to {TOP_ENERGY:g} kT."
    return _chart(profile, profile.energy.clamp(max=axis.high), axis, words)


def _chart(profile: Profile, values: Tensor, axis: svg.Axis, words: str) -> str:
    """Three curves over the way along the motion."""
    along = (profile.distance[1:] + profile.distance[:-1]) / 2
    z = (profile.z[1:] + profile.z[:-1]) / 2
    x = along.tolist()
    curves = [svg.Curve(name, x, row.tolist()) for name, row in zip(NAMES, values, strict=True)]
    label = f"way along the motion ({profile.unit})"
    length = float(profile.distance[-1])
    chart = svg.Chart(
        title=words,
        x=svg.linear_axis(label, 0.0, length),
        y=axis,
        curves=curves,
        levels=[],
        places=[],
        x_name=f"way ({profile.unit}), at z1",
        x_words=[f"{way:.3g} ({place:+.2f})" for way, place in zip(x, z.tolist(), strict=True)],
    )
    return svg.figure(chart, words)


def _regions(populations: Populations) -> str:
    """The shares of wells, or of regions that were named."""
    rows = []
    for region, share in populations.regions:
        rows.append([region.name, region.first_bounds, *_share(share)])
    return table(["region", "z1", "share", "95 % interval", "by half"], rows, "Shares of regions")


def _conformations(populations: Populations) -> str:
    """The shares of the conformations of each fit."""
    rows = []
    for fit, shares in zip(populations.fits, populations.intervals, strict=True):
        for z, share in zip(fit.nodes.tolist(), shares, strict=True):
            place = [f"{value:.3g}" for value in z]
            value, interval, _ = _share(share)
            rows.append([fit.name, *place, value, interval])
    names = coordinate_names(populations.fits[0].nodes.shape[1])
    head = ["half", *names, "share", "95 % interval"]
    return table(head, rows, "Shares of conformations")


def _share(share: Interval) -> list[str]:
    """A share, its interval and that of each half."""
    each = ", ".join(f"{one:.1%}" for one in share.of_fits)
    return [f"{share.value:.1%}", f"{share.low:.1%} to {share.high:.1%}", each]
