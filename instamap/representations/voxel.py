"""A map on a cubic lattice, trilinear in between."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from instamap.geometry.sampling import sample_volume
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

    def __init__(self, options: Options, scene: Scene) -> None:
        super().__init__(options, scene)
        size = options.size or scene.box
        self.spacing = scene.box * scene.pixel_size / size
        empty = torch.zeros(1, 1, size, size, size)  # [z, y, x]
        self.values = nn.Parameter(empty)

    def forward(self, x: Tensor) -> Tensor:
        """The field "*n" at points "*n 3"."""
        volume = self.values.flatten(0, 2)
        return sample_volume(volume, x, self.spacing)
