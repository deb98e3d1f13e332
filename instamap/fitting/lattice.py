"""Where a field is rasterised: the voxels that the mask and the jitter can reach, in the smallest
block that holds them.
"""

import torch
from torch import Tensor, nn

from instamap.geometry import draws, grids
from instamap.geometry.block import Block
from instamap.geometry.cube import Cube
from instamap.geometry.sampling import dilate
from instamap.model import Model


class Lattice(nn.Module):
    """The voxels inside the mask of a model's scene, and those next to them, for jitter may step
    back in.

    within: the cube outside which nothing is known; None for the whole box. block: that which holds
    them. reached "nz ny nx": which of its voxels they are. centres "P 3": their positions in Å.
    """

    reached: Tensor
    centres: Tensor

    def __init__(self, model: Model, within: Cube | None = None) -> None:
        super().__init__()
        scene = model.scene
        device = next(model.parameters()).device
        axis = grids.axis(scene.box, scene.pixel_size).to(device)
        with torch.no_grad():
            reached = dilate(_window(model, axis))
        self.block = Block.around(reached, within)
        reached = self.block.of(reached)
        low = torch.tensor(self.block.low, device=device)
        z, y, x = (reached.nonzero() + low).T
        centres = torch.stack([axis[x], axis[y], axis[z]], 1)
        self.register_buffer("reached", reached, persistent=False)
        self.register_buffer("centres", centres, persistent=False)

    def raster(
        self,
        model: Model,
        z: Tensor | None = None,
        *,
        cell: float = 0.0,
        points: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The density on the block, of the common map or a particle with coordinates z "1 L", at
        centres moved by up to ±½ `cell` (Å).

        points: along each axis of the cell, which is then a lattice of so many smaller ones with a
        point in each; a voxel has their mean.
        """
        if cell:
            x = self._jittered(cell, points, generator)
            sampled = x.view(1, -1, 3)
            values = model.density(sampled, z)[0]
            values = values.view(len(x), -1)
            values = values.mean(1)
        else:
            values = model.density(self.centres[None], z)[0]
        empty = torch.zeros(self.reached.shape, device=self.reached.device)
        return empty.masked_scatter(self.reached, values)

    def _jittered(self, cell: float, points: int, generator: torch.Generator | None) -> Tensor:
        """A random point "P points³ 3" in each of the small cells around each voxel's centre."""
        device = self.centres.device
        steps = torch.arange(points, device=device)
        along = ((steps + 0.5) / points - 0.5) * cell
        axes = torch.meshgrid(along, along, along, indexing="ij")
        places = torch.stack(axes, -1)
        places = places.view(-1, 3)
        x = self.centres[:, None] + places
        moved = draws.uniform(x.shape, generator, device) - 0.5
        return x + moved * (cell / points)


def _window(model: Model, axis: Tensor) -> Tensor:
    """The model's window "D D D" at voxel centres, whose coordinates along each axis these are; a
    plane at a time, as positions take three numbers each.
    """
    planes = []
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    for height in axis:
        centres = torch.stack([x, y, torch.full_like(x, height)], -1)
        planes.append(model.window(centres))
    return torch.stack(planes)
