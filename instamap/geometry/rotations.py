"""Rotations as 3x3 matrices: from RELION's angles and rotation vectors and back, at random."""

import torch
from torch import Tensor


def from_euler(rot: Tensor, tilt: Tensor, psi: Tensor) -> Tensor:
    """A "*n 3 3" of RELION's angles "*n" in radians, particle frame to image frame.

    A = Rz(psi) Ry(tilt) Rz(rot) with each factor turning the axes (not the object), as RELION's
    `Euler_angles2matrix` does; equal to scipy's Rotation.from_euler("ZYZ", [rot, tilt, psi]).inv().
    """
    return _about_z(psi) @ _about_y(tilt) @ _about_z(rot)


def _about_z(angle: Tensor) -> Tensor:
    c = torch.cos(angle)
    s = torch.sin(angle)
    o = torch.zeros_like(angle)
    i = torch.ones_like(angle)
    return torch.stack([c, s, o, -s, c, o, o, o, i], -1).unflatten(-1, (3, 3))


def _about_y(angle: Tensor) -> Tensor:
    c = torch.cos(angle)
    s = torch.sin(angle)
    o = torch.zeros_like(angle)
    i = torch.ones_like(angle)
    return torch.stack([c, o, -s, o, i, o, s, o, c], -1).unflatten(-1, (3, 3))


def from_rotvec(vector: Tensor) -> Tensor:
    """Rotation "*n 3 3" about the direction of `vector` "*n 3" by its length θ in radians,
    counter-clockwise; smooth at zero.

    Rodrigues: 1 + sin θ/θ K + (1 - cos θ)/θ² K², with K the cross product by `vector`.
    """
    x, y, z = vector.unbind(-1)
    o = torch.zeros_like(x)
    k = torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).unflatten(-1, (3, 3))
    turns = vector.norm(dim=-1)[..., None, None] / torch.pi
    return torch.eye(3).to(k) + torch.sinc(turns) * k + 0.5 * torch.sinc(turns / 2) ** 2 * (k @ k)


def to_euler(rotation: Tensor) -> Tensor:
    """RELION's angles rot, tilt, psi "*n 3" in radians of rotations "*n 3 3": tilt from 0 to π, the
    others from -π to π.

    Where tilt is 0 or π only rot + psi or psi - rot is known: rot is then 0.
    """
    a = rotation.double()
    sine = torch.hypot(a[..., 2, 0], a[..., 2, 1])
    level = sine < 1e-7  # below, rot and psi would be made of rounding
    zero = torch.zeros_like(sine)
    rot = torch.where(level, zero, torch.atan2(a[..., 2, 1], a[..., 2, 0]))
    psi = torch.where(
        level, torch.atan2(a[..., 0, 1], a[..., 1, 1]), torch.atan2(a[..., 1, 2], -a[..., 0, 2])
    )
    return torch.stack([rot, torch.atan2(sine, a[..., 2, 2]), psi], -1)


def to_rotvec(rotation: Tensor) -> Tensor:
    """The vector "*n 3" of which `from_rotvec` makes `rotation` "*n 3 3", for turns of less than
    half a circle.
    """
    r = rotation
    axis = (
        torch.stack(
            [r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]],
            -1,
        )
        / 2
    )  # sin θ times it
    sine = axis.norm(dim=-1)
    cosine = (r.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    angle = torch.atan2(sine, cosine)
    return (
        axis
        * torch.where(sine > 1e-12, angle / sine.clamp(min=1e-12), torch.ones_like(sine))[..., None]
    )


def random(count: int, *, generator: torch.Generator | None = None, dtype=torch.float64) -> Tensor:
    """Uniformly distributed rotations "count 3 3" (normalised Gaussian quaternions)."""
    q = torch.randn(count, 4, generator=generator, dtype=dtype)
    w, x, y, z = (q / q.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z),
        2 * (x * y - z * w),
        2 * (x * z + y * w),
        2 * (x * y + z * w),
        1 - 2 * (x * x + z * z),
        2 * (y * z - x * w),
        2 * (x * z - y * w),
        2 * (y * z + x * w),
        1 - 2 * (x * x + y * y),
    ]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))
