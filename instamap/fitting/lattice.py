"""Where a field is rasterised: the voxels that the mask and the jitter can reach, in the smallest
cube that holds them.
"""

import torch
from torch import Tensor, nn

from instamap.fourier.kaiser_bessel import grid_size
from instamap.geometry import draws, grids
from instamap.geometry.sampling import dilate
from instamap.model import Model


class Lattice(nn.Module):
    """The voxels inside the mask of a model's scene, and those next to them, for jitter may step
    back in.

    low, high: the limits of the cube that holds them. reached "n n n": which of its voxels they
    are. centres "P 3": their positions in Å.
    """

    reached: Tensor
    centres: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        scene = model.scene
        device = next(model.parameters()).device
        centres = grids.voxel_centres(scene.box, scene.pixel_size)
        centres = centres.to(device)
        with torch.no_grad():
            reached = dilate(model.window(centres))
        occupied = reached.nonzero()
        first = int(occupied.min())
        last = int(occupied.max())
        limits = _transformed_fast(first, last + 1, scene.box)
        self.low, self.high = limits
        self.box = scene.box
        self.cube = (slice(self.low, self.high),) * 3
        reached = reached[self.cube]
        centres = centres[self.cube][reached]
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
        """The density on the cube, of the common map or a particle with coordinates z "1 L", at
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

    def whole(self, cube: Tensor) -> Tensor:
        """The map "D D D" that has these values "n n n" in the cube and is empty elsewhere."""
        volume = torch.zeros(self.box, self.box, self.box, device=cube.device)
        volume[self.cube] = cube
        return volume


def _transformed_fast(low: int, high: int, box: int) -> tuple[int, int]:
    """Limits of the least cube around low..high-1 whose doubled edge has no prime factor above 5,
    which halves the time of its FFTs.
    """
    size = high - low
    edge = grid_size(size, 2.0) // 2
    edge = min(edge, box)
    low = low - (edge - size) // 2
    low = min(low, box - edge)
    low = max(0, low)
    return low, low + edge
