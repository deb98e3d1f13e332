"""A rigid-body correction for each particle, or for each of several bodies in it: refines poses
within the fit.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from instamap.deform.encoder import Encoder
from instamap.errors import CompositionError
from instamap.geometry import rotations
from instamap.geometry.bodies import Bodies
from instamap.parts import HasBodies, PerParticleTable, RigidCorrection
from instamap.plugin.options import DeformationOptions, option
from instamap.scene import Scene, Views


class Rigid(RigidCorrection, PerParticleTable, HasBodies):
    """exp(ω) x + t with z = (ω, t) of each particle, zero at birth.

    From a table, with a row for each particle of the STAR file, or from the image by a network that
    has seen others: it answers in the image's frame (ω' and t', with ω = Aᵀω' and t = Aᵀt'), so
    that it need not learn what the pose A says. Both speak in units of `angle` and `shift`, so that
    one step size serves ω and t.

    With bodies, z has (ω, t) of each, about its own centre: a point x is looked up at Σ_m w_m
    T_m(x), with T_m(x) = exp(ω) (x - c) + c + t and w_m the body's mask at T_m(x), divided by the
    sum where masks overlap. What masks leave of one goes to the nearest bodies, so that the place
    that a body has left is looked up outside of it. Masks should cover all of the density.
    """

    table: nn.Parameter
    unit: Tensor

    @dataclass(frozen=True)
    class Options(DeformationOptions):
        source: Literal["table", "image"] = option(
            "table",
            "what coordinates come from: a table of all particles, or a network that sees the"
            " image",
            name="from",
        )
        angle: float = option(
            1.0, "rotation that an entry of one stands for", unit="degrees", low=1e-6
        )
        shift: float = option(
            1.0, "translation that an entry of one stands for", unit="Å", low=1e-6
        )
        bodies: str | None = option(
            None,
            "files of soft masks, joined by commas, of bodies that move on their own; none means"
            " one for all",
        )

    @classmethod
    def uses_table(cls, options: Options) -> bool:
        """Whether coordinates come from the table; if not, a network reads them off the image."""
        return options.source == "table"

    @classmethod
    def body_files(cls, options: Options) -> list[str]:
        """The files of the bodies' masks; none where the particle moves as a whole."""
        return options.bodies.split(",") if options.bodies else []

    def __init__(self, options: Options, scene: Scene) -> None:
        super().__init__(options, scene)
        self.bodies = _bodies(options.bodies, scene) if options.bodies else None
        count = self.bodies.count if self.bodies else 1
        if self.uses_table(options):
            self.table = nn.Parameter(torch.zeros(scene.count, 6 * count))
        else:
            self.encoder = Encoder(6 * count)
        radians = options.angle * torch.pi / 180
        of_one_body = [radians] * 3 + [options.shift] * 3
        unit = torch.tensor(of_one_body * count)
        self.register_buffer("unit", unit, persistent=False)

    def latent(
        self,
        views: Views,
        images: Tensor | None = None,
    ) -> Tensor:
        """Rotation vectors and shifts "B 6M" (radians, Å): rows of the table, or what the network
        reads off the images.
        """
        if self.uses_table(self.options):
            return self.table[views.index] * self.unit
        if images is None:
            raise ValueError(
                "rigid with from=image reads its coordinates off the images; give them"
            )
        outputs = self.encoder(images, views, self.scene.pixel_size)
        in_image_frame = (outputs * self.unit).unflatten(1, (-1, 3))
        in_particle_frame = in_image_frame @ views.rotation  # rows times A: Aᵀ ω', Aᵀ t'
        return in_particle_frame.flatten(1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Points "B P 3", moved with the particle or with its bodies."""
        of_bodies = z.unflatten(1, (-1, 6))
        turn = rotations.from_rotvec(of_bodies[..., :3])
        shift = of_bodies[..., 3:]
        if self.bodies:
            return self.bodies(x, turn, shift)
        return x @ turn[:, 0].mT + shift[:, :1]


def _bodies(files: str, scene: Scene) -> Bodies:
    """The scene's bodies, whose masks were read from these files. Raises CompositionError."""
    if scene.bodies is None:
        raise CompositionError(
            f"deformation 'rigid' has bodies '{files}', but the scene has no masks of them;"
            " read them into its bodies"
        )
    return Bodies(scene.bodies, scene.pixel_size)
