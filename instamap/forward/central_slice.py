"""Central slices: the density is put on a lattice once, and all images are planes of its Fourier
transform.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.fourier.projector import Projector
from instamap.geometry import grids
from instamap.parts import DensityFn, ForwardOperator
from instamap.plugin.options import Options, option
from instamap.scene import Scene, Views


class Slice(ForwardOperator):
    """Projections of V, the density at the voxel centres inside the sphere or the user's mask, as
    in `geometry.projections`.

    One raster serves all images, which therefore have one density. They agree with rays to 3e-4 of
    the largest pixel. In training every voxel centre moves by up to ±½ voxel · jitter.
    """

    deforms = False

    @dataclass(frozen=True)
    class Options(Options):
        jitter: float = option(
            1.0,
            "scale of the random displacement of voxel centres, 0 turns it off",
            unit="voxels",
            low=0.0,
        )
        padding: float = option(
            2.0, "frame in which the CTF is applied, relative to the box", low=1.0, high=4.0
        )

    def __init__(self, options: Options, scene: Scene):
        super().__init__(options, scene)
        self.padding = options.padding
        centres = grids.voxel_centres(scene.box, scene.pixel_size, dtype=torch.float64)
        inside = centres.norm(dim=-1) <= scene.radius + 0.5 * scene.pixel_size
        if scene.mask is not None:  # a voxel wider than the mask: jitter may step back in
            inside = torch.nn.functional.max_pool3d((scene.mask > 0).float()[None], 3, 1, 1)[0] > 0
        self.register_buffer("inside", inside, persistent=False)
        self.register_buffer("centres", centres[inside], persistent=False)
        self.projector = Projector(scene.box, scene.pixel_size)

    def forward(
        self, density: DensityFn, views: Views, *, generator: torch.Generator | None = None
    ) -> Tensor:
        scene = self.scene
        kind = views.rotation.dtype
        x = self.centres.to(kind)
        jitter = self.options.jitter * self.jitter
        if self.training and jitter:
            shift = torch.rand(x.shape, generator=generator, dtype=kind, device=x.device) - 0.5
            x = x + shift * (scene.pixel_size * jitter)
        values = density(x[None])[0]
        volume = values.new_zeros(self.inside.shape).masked_scatter(self.inside, values)
        return self.projector(volume, views.rotation, views.origin)
