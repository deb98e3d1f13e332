"""A map on a cubic lattice, trilinear in between."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from instamap.parts import Representation
from instamap.plugin.options import RepresentationOptions, option
from instamap.scene import Scene


class Voxel(Representation):
    """ρ(x) = Σ over the eight voxels around x of weight times value; zero at birth and outside the
    box.
    """

    @dataclass(frozen=True)
    class Options(RepresentationOptions):
        size: int | None = option(None, "voxels along an edge; none means the box", low=2)
        learning_rate: float = option(0.3, "step size of Adam for this part", low=0.0)

    def __init__(self, options: Options, scene: Scene):
        super().__init__(options, scene)
        self.size = options.size or scene.box
        self.values = nn.Parameter(torch.zeros(1, 1, self.size, self.size, self.size))  # [z, y, x]

    def forward(self, x: Tensor) -> Tensor:
        spacing = self.scene.box * self.scene.pixel_size / self.size
        # grid_sample's -1 and +1 are the outer faces of the first and last voxel; ours has its
        # origin on voxel size // 2.
        where = (2 * (x.reshape(1, 1, 1, -1, 3) / spacing + self.size // 2) + 1) / self.size - 1
        values = nn.functional.grid_sample(
            self.values, where, align_corners=False, padding_mode="zeros"
        )
        return values.reshape(x.shape[:-1])
