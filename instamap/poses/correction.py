"""What a correction of a pose is: numbers z "n 5", and the views that they make of those that were
given.

z = (ω, s): the particle is turned back by exp(ω), in its own frame, and moved by s in the image, ω
in radians and s in Å:

    B = A exp(ω)ᵀ,    origin' = origin + s.

That is what the deformation `rigid` does with (ω, t) where t = Bᵀ(s, 0): of a translation along the
beam an image says nothing.
"""

from dataclasses import replace

import torch
from torch import Tensor

from instamap.geometry import rotations
from instamap.scene import Views


def corrected(views: Views, z: Tensor) -> Views:
    """The views of particles that were given `views`."""
    turn = rotations.from_rotvec(z[:, :3]).to(views.rotation)
    return replace(
        views, rotation=views.rotation @ turn.mT, origin=views.origin + z[:, 3:].to(views.origin)
    )


def followed(z: Tensor, step: Tensor) -> Tensor:
    """The correction "n 5" that is `step` "n 5" after z: B exp(δ)ᵀ = A (exp(δ) exp(ω))ᵀ."""
    turn = rotations.from_rotvec(step[:, :3]) @ rotations.from_rotvec(z[:, :3])
    return torch.cat([rotations.to_rotvec(turn), z[:, 3:] + step[:, 3:]], 1)


def as_rigid(views: Views, z: Tensor) -> Tensor:
    """(ω, t) "n 6" of the deformation `rigid`, with which the given views show what the corrected
    ones show without it.
    """
    return torch.cat(
        [z[:, :3], (z[:, None, 3:] @ corrected(views, z).rotation[:, :2].to(z))[:, 0]], 1
    )


def from_rigid(views: Views, z: Tensor, centre: Tensor | None = None) -> Tensor:
    """The correction "n 5" whose views show what the given ones show with (ω, t) "n 6" of the
    deformation `rigid`.

    Of a translation along the beam nothing is left: it does not show. centre "3": what ω turns
    about, for a body (the origin, if None): x = exp(ω)ᵀ (y - c - t) + c lands at B (y - c - t) + A
    c.
    """
    turned = views.rotation.to(z) @ rotations.from_rotvec(z[:, :3]).mT
    moved = (turned @ z[:, 3:, None])[..., 0]
    if centre is not None:
        moved = moved + (turned - views.rotation.to(z)) @ centre.to(z)
    return torch.cat([z[:, :3], moved[:, :2]], 1)


def rms(z: Tensor) -> tuple[float, float]:
    """Of the angle in degrees and of the shift in Å."""

    def length(part):
        return float(part.square().sum(1).mean().sqrt())

    return length(torch.rad2deg(z[:, :3])), length(z[:, 3:])
