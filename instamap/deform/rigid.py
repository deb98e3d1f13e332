"""A rigid-body correction for each particle: refines poses within the fit."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from instamap.deform.encoder import Encoder
from instamap.geometry import rotations
from instamap.options import DeformationOptions, option
from instamap.protocols import Deformation
from instamap.scene import Scene, Views


class Rigid(Deformation):
    """exp(ω) x + t with z = (ω, t) of each particle, zero at birth.

    From a table, with a row for each particle of the STAR file, or from the image by a network that has seen others: it answers in the
    image's frame (ω' and t', with ω = Aᵀω' and t = Aᵀt'), so that it need not learn what the pose A says. Both speak in units of `angle`
    and `shift`, so that one step size serves ω and t.
    """

    @dataclass(frozen=True)
    class Options(DeformationOptions):
        source: Literal["table", "image"] = option(
            "table", "what coordinates come from: a table of all particles, or a network that sees the image", name="from"
        )
        angle: float = option(1.0, "rotation that an entry of one stands for", unit="degrees", low=1e-6)
        shift: float = option(1.0, "translation that an entry of one stands for", unit="Å", low=1e-6)

    def __init__(self, options: Options, scene: Scene):
        super().__init__(options, scene)
        if options.source == "table":
            self.table = nn.Parameter(torch.zeros(scene.count, 6))
        else:
            self.encoder = Encoder(6)
        unit = torch.tensor([options.angle * torch.pi / 180] * 3 + [options.shift] * 3)
        self.register_buffer("unit", unit, persistent=False)

    def latent(self, views: Views, images: Tensor | None = None) -> Tensor:
        if self.options.source == "table":
            return self.table[views.index] * self.unit
        if images is None:
            raise ValueError("rigid with from=image reads its coordinates off the images; give them")
        seen = self.encoder(images, views, self.scene.pixel_size) * self.unit
        return (seen.unflatten(1, (2, 3)) @ views.rotation).flatten(1)  # row vectors times A: Aᵀ ω', Aᵀ t'

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        turn, shift = rotations.from_rotvec(z[:, :3]), z[:, None, 3:]
        return x @ turn.mT + shift
