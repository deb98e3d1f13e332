"""A correction of a pose: numbers z "n 5", and the views that they make of those that were given.

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
    """The views of particles whose given `views` are corrected by z "n 5"."""
    turn = rotations.from_rotvec(z[:, :3]).to(views.rotation)
    shift = z[:, 3:].to(views.origin)
    return replace(views, rotation=views.rotation @ turn.mT, origin=views.origin + shift)


def followed_by(z: Tensor, step: Tensor) -> Tensor:
    """The correction "n 5" that is `step` "n 5" after z: B exp(δ)ᵀ = A (exp(δ) exp(ω))ᵀ."""
    second = rotations.from_rotvec(step[:, :3])
    first = rotations.from_rotvec(z[:, :3])
    turn = rotations.to_rotvec(second @ first)
    return torch.cat([turn, z[:, 3:] + step[:, 3:]], 1)


def as_rigid(views: Views, z: Tensor) -> Tensor:
    """The (ω, t) "n 6" of the deformation `rigid` that stand for a correction z "n 5".

    With them the given views show what the corrected ones show without.
    """
    in_plane = corrected(views, z).rotation[:, :2].to(z)
    shift = z[:, None, 3:]
    if views.magnification is not None:
        shift = shift @ torch.linalg.inv(views.magnification.to(z))
    translation = (shift @ in_plane)[:, 0]
    return torch.cat([z[:, :3], translation], 1)


def from_rigid(views: Views, z: Tensor, centre: Tensor | None = None) -> Tensor:
    """The correction "n 5" that stands for (ω, t) "n 6" of the deformation `rigid`.

    Of a translation along the beam nothing is left: it does not show. centre "3": what ω turns
    about, for a body (the origin, if None): x = exp(ω)ᵀ (y - c - t) + c lands at
    B (y - c - t) + A c.
    """
    given = views.rotation.to(z)
    turned = given @ rotations.from_rotvec(z[:, :3]).mT
    moved = (turned @ z[:, 3:, None])[..., 0]
    if centre is not None:
        moved = moved + (turned - given) @ centre.to(z)
    shift = moved[:, :2]
    if views.magnification is not None:
        shift = (shift[:, None] @ views.magnification.to(z))[:, 0]
    return torch.cat([z[:, :3], shift], 1)


def root_mean_square(z: Tensor) -> tuple[float, float]:
    """The root mean squares of the angle in degrees and of the shift in Å, of corrections "n 5"."""
    return _rms_length(torch.rad2deg(z[:, :3])), _rms_length(z[:, 3:])


def _rms_length(vectors: Tensor) -> float:
    square = vectors.square().sum(1)
    return float(square.mean().sqrt())
