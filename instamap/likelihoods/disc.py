"""The pixels of an image that count, and their sums."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from instamap.errors import CompositionError
from instamap.geometry import grids
from instamap.plugin.options import Options, option
from instamap.scene import Scene

# Fewer pixels say nothing after offset, scale and noise have been taken from them.
MIN_PIXELS = 8


@dataclass(frozen=True)
class DiscOptions(Options):
    """Options of likelihoods that look at part of the image."""

    radius: float | None = option(
        None,
        "pixels farther than this from the image's origin do not count; none: all do",
        unit="Å",
        low=0.0,
    )


class Disc(nn.Module):
    """Pixels within `radius` of the origin, N of them (`count`), all of them without a radius."""

    inside: Tensor

    def __init__(self, radius: float | None, scene: Scene) -> None:
        super().__init__()
        pixels = grids.pixel_centres(
            scene.box,
            scene.pixel_size,
            dtype=torch.float64,
        )
        distance = pixels.norm(dim=-1)
        if radius is None:
            inside = torch.ones_like(distance, dtype=torch.bool)
        else:
            inside = distance <= radius
        self.count = int(inside.sum())
        if self.count < MIN_PIXELS:
            enough = f"give at least {2 * scene.pixel_size:g} Å"
            raise CompositionError(
                f"radius {radius:g} Å leaves {self.count} of {inside.numel()} pixels; {enough}"
            )
        self.register_buffer("inside", inside, persistent=False)

    def centred(self, images: Tensor) -> Tensor:
        """Values "B N" of the pixels in images "B D D", less their mean."""
        values = images[:, self.inside]
        return values - values.mean(1, keepdim=True)

    def filled(self, values: Tensor, elsewhere: Tensor) -> Tensor:
        """Images "B D D" with `values` "B N" at these pixels, and those of `elsewhere` "B D D" at
        the others.
        """
        images = elsewhere.clone()
        images[:, self.inside] = values
        return images
