"""Where a field is rasterised: the voxels that the mask and the jitter can reach, in the smallest
cube that holds them.
"""

import torch
from torch import Tensor

from instamap.fourier.kaiser_bessel import grid_size
from instamap.geometry import grids
from instamap.model import Model


class Lattice:
    """Voxels inside the mask of a model's scene, and those next to them, for jitter may step back
    in. low, high: the cube's limits.
    """

    def __init__(self, model: Model):
        scene = model.scene
        centres = grids.voxel_centres(scene.box, scene.pixel_size)
        with torch.no_grad():
            near = (
                torch.nn.functional.max_pool3d((model.window(centres) > 0).float()[None], 3, 1, 1)[
                    0
                ]
                > 0
            )
        self.low, self.high = _transformed_fast(
            int(near.nonzero().min()), int(near.nonzero().max()) + 1, scene.box
        )
        self.cut = (slice(self.low, self.high),) * 3
        self.box = scene.box
        self.near = near[self.cut]
        self.centres = centres[self.cut][self.near]

    def raster(
        self,
        model: Model,
        z: Tensor | None = None,
        *,
        cell: float = 0.0,
        points: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The density on the cube, of the common map or a particle with coordinates z "1 L", at
        centres moved by up to ±½ `cell` (Å).

        points: along each axis of the cell, which is then a lattice of so many smaller ones with a
        point in each; a voxel has their mean.
        """
        if not cell:
            values = model.density(self.centres[None], z)[0]
        else:
            at = ((torch.arange(points) + 0.5) / points - 0.5) * cell  # centres of the small cells
            places = torch.stack(torch.meshgrid(at, at, at, indexing="ij"), -1).view(-1, 3)
            x = self.centres[:, None] + places
            x = x + (torch.rand(x.shape, generator=generator) - 0.5) * (cell / points)
            values = model.density(x.view(1, -1, 3), z)[0].view(len(x), -1).mean(1)
        return torch.zeros(self.near.shape).masked_scatter(self.near, values)

    def whole(self, cube: Tensor) -> Tensor:
        """The map "D D D" of which the rest is empty."""
        out = torch.zeros(self.box, self.box, self.box)
        out[self.cut] = cube
        return out


def _transformed_fast(low: int, high: int, box: int) -> tuple[int, int]:
    """Limits of the least cube around low..high-1 whose doubled edge has no prime factor above 5,
    which halves the time of its FFTs.
    """
    edge = min(grid_size(high - low, 2.0) // 2, box)
    low = max(0, min(low - (edge - (high - low)) // 2, box - edge))
    return low, low + edge
