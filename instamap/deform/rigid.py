"""A rigid-body correction for each particle, or for each of several bodies in it: refines poses
within the fit.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from instamap.deform.encoder import Encoder
from instamap.errors import CompositionError
from instamap.geometry import grids, rotations
from instamap.parts import Deformation
from instamap.plugin.options import DeformationOptions, option
from instamap.scene import Scene, Views


class Rigid(Deformation):
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

    def __init__(self, options: Options, scene: Scene):
        super().__init__(options, scene)
        self.bodies = _Bodies(options.bodies, scene) if options.bodies else None
        count = self.bodies.count if self.bodies else 1
        if options.source == "table":
            self.table = nn.Parameter(torch.zeros(scene.count, 6 * count))
        else:
            self.encoder = Encoder(6 * count)
        unit = torch.tensor(([options.angle * torch.pi / 180] * 3 + [options.shift] * 3) * count)
        self.register_buffer("unit", unit, persistent=False)

    def latent(self, views: Views, images: Tensor | None = None) -> Tensor:
        if self.options.source == "table":
            return self.table[views.index] * self.unit
        if images is None:
            raise ValueError(
                "rigid with from=image reads its coordinates off the images; give them"
            )
        seen = self.encoder(images, views, self.scene.pixel_size) * self.unit
        return (seen.unflatten(1, (-1, 3)) @ views.rotation).flatten(
            1
        )  # row vectors times A: Aᵀ ω', Aᵀ t'

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        z = z.unflatten(1, (-1, 6))
        turn = rotations.from_rotvec(z[..., :3])
        shift = z[..., 3:]
        return self.bodies(x, turn, shift) if self.bodies else x @ turn[:, 0].mT + shift[:, :1]


class _Bodies(nn.Module):
    """The masks "M D D D" of a scene's bodies, their centres of mass "M 3" and radii of gyration
    "M" (Å).
    """

    FALL = 8  # power of the distance with which bodies lose what is in no mask

    def __init__(self, files: str, scene: Scene):
        super().__init__()
        if scene.bodies is None:
            raise CompositionError(
                f"deformation 'rigid' has bodies '{files}', but the scene has no masks of them;"
                " read them into its bodies"
            )
        self.count = len(scene.bodies)
        self.box = scene.box
        self.pixel_size = scene.pixel_size
        place = grids.voxel_centres(scene.box, scene.pixel_size).to(scene.bodies)
        mass = scene.bodies.flatten(1).sum(1)
        centre = torch.einsum("mzyx,zyxc->mc", scene.bodies, place) / mass[:, None]
        square = torch.einsum(
            "mzyx,zyx->m", scene.bodies, place.square().sum(-1)
        ) / mass - centre.square().sum(1)
        for name, value in (
            ("mask", scene.bodies),
            ("centre", centre),
            ("radius", square.clamp(min=1e-6).sqrt()),
        ):
            self.register_buffer(name, value, persistent=False)

    def forward(self, x: Tensor, turn: Tensor, shift: Tensor) -> Tensor:
        """Where points "B P 3" are looked up; turn "B M 3 3", shift "B M 3"."""
        from_centre = (x[:, None] - self.centre[:, None]) @ turn.mT + shift[:, :, None]  # "B M P 3"
        there = from_centre + self.centre[:, None]
        inside = self._inside(there)
        covered = inside.sum(1, keepdim=True)
        near = torch.softmax(
            -self.FALL * torch.log(from_centre.norm(dim=-1) / self.radius[:, None] + 1e-6), 1
        )
        weight = inside / covered.clamp(min=1) + (1 - covered).clamp(min=0) * near
        return x + (weight[..., None] * (there - x[:, None])).sum(
            1
        )  # of x itself, so that nothing is rounded where nothing moves

    def _inside(self, there: Tensor) -> Tensor:
        """The masks "B M P", trilinear, each at its points "B M P 3"."""
        at = ((2 * (there / self.pixel_size + self.box // 2) + 1) / self.box - 1).transpose(0, 1)
        values = nn.functional.grid_sample(
            self.mask[:, None].to(there.dtype), at.flatten(1, 2)[:, None, None], align_corners=False
        )
        return values.view(self.count, *there.shape[:1], there.shape[2]).transpose(0, 1)
