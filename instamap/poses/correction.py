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
from instamap.poses.batched import product
from instamap.scene import Views


def corrected(views: Views, z: Tensor) -> Views:
    """The views of particles whose given `views` are corrected by z "n 5"."""
    angle, shift = _parts(z)
    turn = rotations.from_rotvec(angle)
    turn = turn.to(views.rotation)
    rotation = views.rotation @ turn.mT
    origin = views.origin + shift.to(views.origin)
    return replace(views, rotation=rotation, origin=origin)


def followed_by(z: Tensor, step: Tensor) -> Tensor:
    """The correction "n 5" that is `step` "n 5" after z: B exp(δ)ᵀ = A (exp(δ) exp(ω))ᵀ."""
    first_angle, first_shift = _parts(z)
    second_angle, second_shift = _parts(step)
    second = rotations.from_rotvec(second_angle)
    first = rotations.from_rotvec(first_angle)
    angle = rotations.to_rotvec(second @ first)
    shift = first_shift + second_shift
    return torch.cat([angle, shift], 1)


def as_rigid(views: Views, z: Tensor) -> Tensor:
    """The (ω, t) "n 6" of the deformation `rigid` that stand for a correction z "n 5".

    With them the given views show what the corrected ones show without.
    """
    angle, shift = _parts(z)
    frames = corrected(views, z).rotation[:, :2]
    row = shift[:, None]
    if views.magnification is not None:
        magnification = views.magnification.to(z)
        row = row @ torch.linalg.inv(magnification)
    translation = row @ frames.to(z)
    return torch.cat([angle, translation[:, 0]], 1)


def from_rigid(views: Views, z: Tensor, centre: Tensor | None = None) -> Tensor:
    """The correction "n 5" that stands for (ω, t) "n 6" of the deformation `rigid`.

    Of a translation along the beam nothing is left: it does not show. centre "3": what ω turns
    about, for a body (the origin, if None): x = exp(ω)ᵀ (y - c - t) + c lands at
    B (y - c - t) + A c.
    """
    angle, translation = _parts(z)
    before = views.rotation.to(z)
    turn = rotations.from_rotvec(angle)
    after = before @ turn.mT
    moved = product(after, translation)
    if centre is not None:
        moved = moved + (after - before) @ centre.to(z)
    shift = moved[:, :2]
    if views.magnification is not None:
        magnification = views.magnification.to(z)
        row = shift[:, None] @ magnification
        shift = row[:, 0]
    return torch.cat([angle, shift], 1)


def root_mean_square(z: Tensor) -> tuple[float, float]:
    """The root mean squares of the angle in degrees and of the shift in Å, of corrections "n 5"."""
    angle, shift = _parts(z)
    degrees = torch.rad2deg(angle)
    return _rms_length(degrees), _rms_length(shift)


def _parts(z: Tensor) -> tuple[Tensor, Tensor]:
    """The rotation vectors "n 3" and the shifts of corrections."""
    return z[:, :3], z[:, 3:]


def _rms_length(vectors: Tensor) -> float:
    square = vectors.square().sum(1)
    mean = square.mean()
    return float(mean.sqrt())
