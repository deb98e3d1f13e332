"""The pixels of an image that count, and their sums."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from instamap.errors import CompositionError
from instamap.geometry import grids
from instamap.plugin.options import Options, option
from instamap.scene import Scene

LEAST = (
    8  # pixels, fewer of which say nothing after offset, scale and noise have been taken from them
)


@dataclass(frozen=True)
class DiscOptions(Options):
    """What likelihoods offer that look at part of the image."""

    radius: float | None = option(
        None,
        "pixels farther than this from the image's origin do not count; none: all do",
        unit="Å",
        low=0.0,
    )


class Disc(nn.Module):
    """Pixels within `radius` of the origin, N of them (`count`), all of them without a radius."""

    def __init__(self, radius: float | None, scene: Scene):
        super().__init__()
        distance = grids.pixel_centres(scene.box, scene.pixel_size, dtype=torch.float64).norm(
            dim=-1
        )
        inside = (
            torch.ones_like(distance, dtype=torch.bool) if radius is None else distance <= radius
        )
        self.count = int(inside.sum())
        if self.count < LEAST:
            least = f"give at least {2 * scene.pixel_size:g} Å"
            raise CompositionError(
                f"radius {radius:g} Å leaves {self.count} of {inside.numel()} pixels; {least}"
            )
        self.register_buffer("inside", inside, persistent=False)

    def centred(self, images: Tensor) -> Tensor:
        """Their values "B N" in images "B D D", less their mean."""
        values = images[:, self.inside]
        return values - values.mean(1, keepdim=True)

    def filled(self, values: Tensor, elsewhere: Tensor) -> Tensor:
        """Images "B D D" with `values` "B N" at these pixels, and those of `elsewhere` "B D D" at
        the others.
        """
        images = elsewhere.clone()
        images[:, self.inside] = values
        return images


def level(scene: Scene, name: str) -> Tensor:
    """Standard deviation "G" of a pixel's noise in each optics group. Raises CompositionError where
    the data told none.
    """
    if scene.noise_variance is None:
        raise CompositionError(
            f"likelihood '{name}' knows no noise level: the data gave none; choose --likelihood"
            " gaussian"
        )
    return scene.noise_variance[:, grids.noise_shells(scene.box).flatten()].mean(1).sqrt()
