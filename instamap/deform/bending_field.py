"""Continuous bending: a smooth displacement field in the particle's own frame, steered by a few
coordinates per particle.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from instamap.deform.encoder import Encoder
from instamap.parts import ContinuousDeformation, PerParticleTable
from instamap.plugin.options import CoordinateOptions, DeformationOptions, option
from instamap.scene import Scene, Views

# Samples of the spline per control interval, between which displacements are interpolated linearly.
SAMPLES_PER_INTERVAL = 2
DECODER_WIDTH = 64  # units of a hidden layer
DECODER_DEPTH = 2  # hidden layers
# Standard deviation of the table's entries at birth.
INITIAL_SPREAD = 0.1
# Share of half the box that an output of one of the decoder stands for: a 64th of the box.
DISPLACEMENT_UNIT = 1 / 32


class BendingField(ContinuousDeformation, PerParticleTable):
    """x + u(x; z), u a cubic B-spline on a lattice of control points c(z), c a small network that
    is zero at birth.

    u lives in the particle's fixed frame and is the same whatever the pose. The spline is sampled
    twice per control interval h and interpolated linearly between, off by at most h²/32 Σ_a max
    |∂²u/∂a²|: a hundredth of u where control points vary over two of them (σ), a tenth where each
    is drawn for itself. Beyond the box u goes on as at the box's surface. Coordinates z come from a
    table with a row for each particle, or from a network that sees the image, moved and turned in
    its plane into the particle's frame, and not the pose.
    """

    table: nn.Parameter
    spline: Tensor

    @dataclass(frozen=True)
    class Options(CoordinateOptions, DeformationOptions):
        source: Literal["table", "image"] = option(
            "table",
            "what coordinates come from: a table of all particles, or a network that sees the"
            " image",
            name="from",
        )
        points: int = option(16, "control points along an edge of the box", low=5, high=48)
        learning_rate: float = option(3e-3, "step size of Adam for this part", low=0.0)

    @classmethod
    def uses_table(cls, options: Options) -> bool:
        """Whether coordinates come from the table; if not, a network reads them off the image."""
        return options.source == "table"

    def __init__(self, options: Options, scene: Scene) -> None:
        super().__init__(options, scene)
        count = 1 if options.latent == "auto" else options.latent
        if self.uses_table(options):
            start = torch.randn(scene.count, count)
            self.table = nn.Parameter(INITIAL_SPREAD * start)
        else:
            self.encoder = Encoder(count, pose=False)
        self.half_edge = 0.5 * scene.box * scene.pixel_size
        self.decoder = _decoder(count, 3 * options.points**3)
        spline = _spline_weights(options.points)
        self.register_buffer("spline", spline, persistent=False)

    def latent(
        self,
        views: Views,
        images: Tensor | None = None,
    ) -> Tensor:
        """Coordinates "B L": rows of the table, or what the network reads off the images."""
        if self.uses_table(self.options):
            return self.table[views.index]
        if images is None:
            raise ValueError(
                "bending-field with from=image reads its coordinates off the images; give them"
            )
        return self.encoder(images, views, self.scene.pixel_size)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Points x + u(x; z) "B P 3"."""
        return self.bind(z)(x)

    def bind(self, z: Tensor) -> Callable[[Tensor], Tensor]:
        """The function x -> x + u(x; z): the lattice of displacements is made once for all x."""
        lattice = self.lattice(z)

        def moved(x: Tensor) -> Tensor:
            normalised = x / self.half_edge  # from -1 to 1 over the box
            displacements = nn.functional.grid_sample(
                lattice,
                normalised[:, :, None, None],
                padding_mode="border",
                align_corners=True,
            )
            return x + displacements[..., 0, 0].mT

        return moved

    def lattice(self, z: Tensor) -> Tensor:
        """Displacements "B 3 M M M" (x, y, z in Å; [z, y, x]) for coordinates z "B L", on a lattice
        whose ends are the box's.
        """
        points = self.options.points
        outputs = self.decoder(z)
        control = outputs.view(
            len(z),
            3,
            points,
            points,
            points,
        )
        sampled = control * (self.half_edge * DISPLACEMENT_UNIT)
        weights = self.spline.to(sampled).mT
        for axis in (2, 3, 4):
            last = torch.movedim(sampled, axis, -1)
            sampled = torch.movedim(last @ weights, -1, axis)
        return sampled


def _decoder(inputs: int, outputs: int) -> nn.Sequential:
    """The network from coordinates to control points, which are zero at birth."""
    layers: list[nn.Module] = []
    width = inputs
    for _ in range(DECODER_DEPTH):
        layers.append(nn.Linear(width, DECODER_WIDTH))
        layers.append(nn.SiLU())
        width = DECODER_WIDTH
    last = nn.Linear(width, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


def _spline_weights(points: int) -> Tensor:
    """Weights "M points" (float64) of control points, the outermost of which are one interval
    outside the box, at samples over the box.
    """
    intervals = points - 3
    samples = SAMPLES_PER_INTERVAL * intervals + 1
    index = torch.arange(samples, dtype=torch.float64)
    position = index / SAMPLES_PER_INTERVAL + 1
    difference = position[:, None] - torch.arange(points)
    distance = difference.abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    beyond = (2 - distance).clamp(min=0)
    far = beyond**3 / 6
    return torch.where(distance < 1, near, far)
