"""Continuous bending: a smooth displacement field in the particle's own frame, steered by a few
coordinates per particle.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from instamap.deform.encoder import Encoder
from instamap.errors import CompositionError
from instamap.parts import Deformation
from instamap.plugin.options import DeformationOptions, option
from instamap.scene import Scene, Views

# samples of the spline per control interval, between which displacements are interpolated linearly
FINE = 2
WIDTH = 64
DEPTH = 2  # of the decoder


class BendingField(Deformation):
    """x + u(x; z), u a cubic B-spline on a lattice of control points c(z), c a small network that
    is zero at birth.

    u lives in the particle's fixed frame and is the same whatever the pose. The spline is sampled
    twice per control interval h and interpolated linearly between, off by at most h²/32 Σ_a max
    |∂²u/∂a²|: a hundredth of u where control points vary over two of them (σ), a tenth where each
    is drawn for itself. Beyond the box u goes on as at the box's surface. Coordinates z come from a
    table with a row for each particle, or from a network that sees the image, moved and turned in
    its plane into the particle's frame, and not the pose.
    """

    states = "bend"

    @dataclass(frozen=True)
    class Options(DeformationOptions):
        latent: Literal["auto", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10] = option(
            1, "coordinates per particle; auto: what held-out images favour"
        )
        source: Literal["table", "image"] = option(
            "table",
            "what coordinates come from: a table of all particles, or a network that sees the"
            " image",
            name="from",
        )
        points: int = option(16, "control points along an edge of the box", low=5, high=48)
        learning_rate: float = option(3e-3, "step size of Adam for this part", low=0.0)

    def __init__(self, options: Options, scene: Scene):
        super().__init__(options, scene)
        if options.latent == "auto":
            raise CompositionError(
                "latent=auto is for engine 'states', which can tell; give a number from 1 to 10"
            )
        if options.source == "table":
            self.table = nn.Parameter(0.1 * torch.randn(scene.count, options.latent))
        else:
            self.encoder = Encoder(options.latent, pose=False)
        n = options.points
        self.half = 0.5 * scene.box * scene.pixel_size
        layers: list[nn.Module] = []
        for before in [options.latent] + [WIDTH] * (DEPTH - 1):
            layers += [nn.Linear(before, WIDTH), nn.SiLU()]
        self.decoder = nn.Sequential(*layers, nn.Linear(WIDTH, 3 * n**3))
        nn.init.zeros_(self.decoder[-1].weight)
        nn.init.zeros_(self.decoder[-1].bias)
        self.register_buffer("spline", _spline(n), persistent=False)

    def latent(self, views: Views, images: Tensor | None = None) -> Tensor:
        if self.options.source == "table":
            return self.table[views.index]
        if images is None:
            raise ValueError(
                "bending-field with from=image reads its coordinates off the images; give them"
            )
        return self.encoder(images, views, self.scene.pixel_size)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.at(z)(x)

    def at(self, z: Tensor) -> Callable[[Tensor], Tensor]:
        lattice = self.lattice(z)

        def moved(x: Tensor) -> Tensor:
            where = (x / self.half)[:, :, None, None]  # "B P 1 1 3", from -1 to 1 over the box
            u = nn.functional.grid_sample(lattice, where, padding_mode="border", align_corners=True)
            return x + u[..., 0, 0].mT

        return moved

    def lattice(self, z: Tensor) -> Tensor:
        """Displacements "B 3 M M M" (x, y, z in Å; [z, y, x]) for coordinates z "B L", on a lattice
        whose ends are the box's.
        """
        n = self.options.points
        control = self.decoder(z).view(len(z), 3, n, n, n) * (
            self.half / 32
        )  # one for a displacement by a 64th of the box
        for axis in (2, 3, 4):
            control = torch.movedim(
                torch.movedim(control, axis, -1) @ self.spline.to(control).mT, -1, axis
            )
        return control


def _spline(points: int) -> Tensor:
    """Weights "M points" (float64) of control points, the outermost of which are one interval
    outside the box, at samples over the box.
    """
    intervals = points - 3
    at = torch.arange(FINE * intervals + 1, dtype=torch.float64) / FINE + 1
    d = (at[:, None] - torch.arange(points)).abs()
    near = 2 / 3 - d**2 + d**3 / 2
    far = (2 - d).clamp(min=0) ** 3 / 6
    return torch.where(d < 1, near, far)
