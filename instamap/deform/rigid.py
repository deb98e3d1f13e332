"""A rigid-body correction for each particle: refines poses within the fit."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from instamap.geometry import rotations
from instamap.options import DeformationOptions, option
from instamap.protocols import Deformation
from instamap.scene import Scene, Views


class Rigid(Deformation):
    """exp(ω) x + t with z = (ω, t) of each particle, zero at birth.

    The table keeps ω in units of `angle` and t in units of `shift`, so that one step size serves both.
    """

    @dataclass(frozen=True)
    class Options(DeformationOptions):
        angle: float = option(1.0, "rotation that a table entry of one stands for", unit="degrees", low=1e-6)
        shift: float = option(1.0, "translation that a table entry of one stands for", unit="Å", low=1e-6)

    def __init__(self, options: Options, scene: Scene):
        super().__init__(options, scene)
        self.table = nn.Parameter(torch.zeros(scene.count, 6))
        unit = torch.tensor([options.angle * torch.pi / 180] * 3 + [options.shift] * 3)
        self.register_buffer("unit", unit, persistent=False)

    def latent(self, views: Views) -> Tensor:
        return self.table[views.index] * self.unit

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        turn, shift = rotations.from_rotvec(z[:, :3]), z[:, None, 3:]
        return x @ turn.mT + shift
