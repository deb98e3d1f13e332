"""Central slices: the density is put on a lattice once, and all images are planes of its Fourier
transform.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.fourier.projector import Projector
from instamap.geometry import draws, grids
from instamap.geometry.sampling import dilate
from instamap.parts import DensityFn, SharedDensityOperator
from instamap.plugin.options import Options as PartOptions
from instamap.plugin.options import option
from instamap.scene import Scene, Views


class Slice(SharedDensityOperator):
    """Projections of V, the density at the voxel centres inside the sphere or the user's mask, by
    the projection theorem (`fourier.projector`).

    One raster serves all images, which therefore have one density. They agree with rays to 3e-4 of
    the largest pixel. In training every voxel centre moves by up to ±½ voxel · jitter.
    """

    @dataclass(frozen=True)
    class Options(PartOptions):
        jitter: float = option(
            1.0,
            "scale of the random displacement of voxel centres, 0 turns it off",
            unit="voxels",
            low=0.0,
        )
        padding: float = option(
            2.0, "frame in which the CTF is applied, relative to the box", low=1.0, high=4.0
        )

    inside: Tensor

    def __init__(self, options: Options, scene: Scene) -> None:
        super().__init__(options, scene)
        self.padding = options.padding
        if scene.mask is None:
            reach = scene.radius + 0.5 * scene.pixel_size
            centres = grids.voxel_centres(
                scene.box,
                scene.pixel_size,
                dtype=torch.float64,
            )
            inside = centres.norm(dim=-1) <= reach
        else:
            # A voxel wider than the mask: jitter may step back in.
            inside = dilate(scene.mask)
        self.register_buffer("inside", inside, persistent=False)
        self.projector = Projector(scene.box, scene.pixel_size)

    @property
    def centres(self) -> Tensor:
        """Positions "P 3" (x, y, z in Å, float64) of the voxels inside, which are not kept."""
        scene = self.scene
        axis = grids.axis(scene.box, scene.pixel_size, dtype=torch.float64).to(self.inside.device)
        z, y, x = self.inside.nonzero().T
        return torch.stack([axis[x], axis[y], axis[z]], 1)

    def forward(
        self,
        density: DensityFn,
        views: Views,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Projections "B D D" of the one density that all views share."""
        volume = self.raster(density, views.rotation.dtype, generator)
        return self.projector(volume, views)

    def raster(
        self, density: DensityFn, dtype: torch.dtype, generator: torch.Generator | None
    ) -> Tensor:
        """The map "D D D" [z, y, x] of the density that is projected."""
        x = self._jittered(dtype, generator)
        values = density(x[None])[0]
        empty = values.new_zeros(self.inside.shape)
        return empty.masked_scatter(self.inside, values)

    def _jittered(
        self,
        dtype: torch.dtype,
        generator: torch.Generator | None,
    ) -> Tensor:
        """The voxel centres "P 3", each moved within its voxel in training."""
        x = self.centres.to(dtype)
        jitter = self.options.jitter * self.jitter
        if not self.training or not jitter:
            return x
        uniform = draws.uniform(x.shape, generator, x.device, dtype)
        cell = self.scene.pixel_size * jitter
        return x + (uniform - 0.5) * cell
