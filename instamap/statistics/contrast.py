"""Whether protein is white or dark in a set of images, told by a first map on held-out images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.maps import mask
from instamap.statistics import initial_map
from instamap.statistics.statistics import Statistics

CORE = 0.3  # of a map's highest density: what lies below may be ringing
MIN_GAIN = 20.0  # nats, of the dark side over the white one
MIN_RATIO = 3.0  # of the dark side's gain to the white one's


@dataclass(frozen=True)
class Contrast:
    """What each side of a first map explains of images that it was not made of, in nats.

    white: its densest parts alone; dark: its emptiest parts alone.
    """

    white: float
    dark: float

    @property
    def is_dark(self) -> bool:
        """Whether protein is dark, beyond chance."""
        return self.dark - self.white > MIN_GAIN and self.dark > MIN_RATIO * self.white


def measure(one: Statistics, two: Statistics) -> Contrast:
    """The contrast in two disjoint sets, a first map of each judged by the other."""
    box = one.cube.box
    radius = (box // 2 - 0.5) * one.pixel_size
    sphere = mask.sphere(box, one.pixel_size, radius, 0.0)
    white = 0.0
    dark = 0.0
    for fitted, held_out in ((one, two), (two, one)):
        volume = initial_map.solve(fitted, sphere)
        white += _gain(volume, held_out)
        dark += _gain(-volume, held_out, sign=-1)
    return Contrast(white, dark)


def _gain(volume: Tensor, statistics: Statistics, sign: int = 1) -> float:
    """Nats by which the core of a map, times the best factor above 0, beats an empty map.

    sign: -1 for a core that is to be subtracted.
    """
    core = volume * (volume > CORE * volume.max())
    projection = sign * (statistics.b * core).sum(dtype=torch.float64)
    curvature = (core * statistics.apply(core)).sum(dtype=torch.float64)
    if not (projection > 0 and curvature > 0):
        return 0.0
    return float(0.5 * projection**2 / curvature)
