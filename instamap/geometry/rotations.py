"""Rotations as 3x3 matrices: from RELION's angles and rotation vectors and back, at random."""

import torch
from torch import Tensor

# sin(tilt) below which rot and psi would be made of rounding
MIN_SINE_OF_TILT = 1e-7
# sin θ below which θ / sin θ is 1
MIN_SINE_OF_TURN = 1e-12


def from_euler(rot: Tensor, tilt: Tensor, psi: Tensor) -> Tensor:
    """A "*n 3 3" of RELION's angles "*n" in radians, particle frame to image frame.

    A = Rz(psi) Ry(tilt) Rz(rot) with each factor turning the axes (not the object), as RELION's
    `Euler_angles2matrix` does; equal to scipy's Rotation.from_euler("ZYZ", [rot, tilt, psi]).inv().
    """
    first = _about_z(rot)
    second = _about_y(tilt)
    third = _about_z(psi)
    return third @ second @ first


def _about_z(angle: Tensor) -> Tensor:
    """Turns "*n 3 3" of the axes about z."""
    c = torch.cos(angle)
    s = torch.sin(angle)
    o = torch.zeros_like(angle)
    i = torch.ones_like(angle)
    return _matrix(
        [c, s, o],
        [-s, c, o],
        [o, o, i],
    )


def _about_y(angle: Tensor) -> Tensor:
    """Turns "*n 3 3" of the axes about y."""
    c = torch.cos(angle)
    s = torch.sin(angle)
    o = torch.zeros_like(angle)
    i = torch.ones_like(angle)
    return _matrix(
        [c, o, -s],
        [o, i, o],
        [s, o, c],
    )


def _matrix(*rows: list[Tensor]) -> Tensor:
    """Matrices "*n 3 3" of three rows of three entries "*n"."""
    entries = []
    for row in rows:
        entries.extend(row)
    flat = torch.stack(entries, -1)
    return flat.unflatten(-1, (3, 3))


def from_rotvec(vector: Tensor) -> Tensor:
    """Rotation "*n 3 3" about the direction of `vector` "*n 3" by its length θ in radians,
    counter-clockwise; smooth at zero.

    Rodrigues: 1 + sin θ/θ K + (1 - cos θ)/θ² K², with K the cross product by `vector`.
    """
    x, y, z = vector.unbind(-1)
    o = torch.zeros_like(x)
    cross = _matrix(
        [o, -z, y],
        [z, o, -x],
        [-y, x, o],
    )
    angle = vector.norm(dim=-1)
    turns = angle[..., None, None] / torch.pi
    identity = torch.eye(3).to(cross)
    linear = torch.sinc(turns) * cross
    half = torch.sinc(turns / 2)
    weight = 0.5 * half**2
    quadratic = weight * (cross @ cross)
    return identity + linear + quadratic


def to_euler(rotation: Tensor) -> Tensor:
    """RELION's angles rot, tilt, psi "*n 3" in radians of rotations "*n 3 3": tilt from 0 to π, the
    others from -π to π.

    Where tilt is 0 or π only rot + psi or psi - rot is known: rot is then 0.
    """
    a = rotation.double()
    x, y, cosine = a[..., 2, :].unbind(-1)
    sine = torch.hypot(x, y)
    tilt = torch.atan2(sine, cosine)
    level = sine < MIN_SINE_OF_TILT
    rot = torch.atan2(y, x)
    rot = torch.where(level, torch.zeros_like(sine), rot)
    x, y = a[..., :2, 2].unbind(-1)
    psi = torch.atan2(y, -x)
    sine, cosine = a[..., :2, 1].unbind(-1)
    in_plane = torch.atan2(sine, cosine)
    psi = torch.where(level, in_plane, psi)
    return torch.stack([rot, tilt, psi], -1)


def to_rotvec(rotation: Tensor) -> Tensor:
    """The vector "*n 3" of which `from_rotvec` makes `rotation` "*n 3 3", for turns of less than
    half a circle.
    """
    twice = rotation - rotation.mT
    x = twice[..., 2, 1]
    y = twice[..., 0, 2]
    z = twice[..., 1, 0]
    axis = torch.stack([x, y, z], -1) / 2  # of length sin θ
    sine = axis.norm(dim=-1)
    trace = rotation.diagonal(dim1=-2, dim2=-1).sum(-1)
    cosine = (trace - 1) / 2
    angle = torch.atan2(sine, cosine)
    stretch = angle / sine.clamp(min=MIN_SINE_OF_TURN)
    turned = sine > MIN_SINE_OF_TURN
    stretch = torch.where(turned, stretch, torch.ones_like(sine))
    return axis * stretch[..., None]


def random(
    count: int,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Uniformly distributed rotations "count 3 3" (normalised Gaussian quaternions)."""
    normal = torch.randn(
        count,
        4,
        generator=generator,
        dtype=dtype,
    )
    length = normal.norm(dim=-1, keepdim=True)
    unit = normal / length
    return _from_quaternion(unit)


def _from_quaternion(unit: Tensor) -> Tensor:
    """Rotations "n 3 3" of unit quaternions "n 4" (w, x, y, z)."""
    w, x, y, z = unit.unbind(-1)
    xx = x * x
    yy = y * y
    zz = z * z
    xy = x * y
    xz = x * z
    yz = y * z
    xw = x * w
    yw = y * w
    zw = z * w
    return _matrix(
        [
            1 - 2 * (yy + zz),
            2 * (xy - zw),
            2 * (xz + yw),
        ],
        [
            2 * (xy + zw),
            1 - 2 * (xx + zz),
            2 * (yz - xw),
        ],
        [
            2 * (xz - yw),
            2 * (yz + xw),
            1 - 2 * (xx + yy),
        ],
    )
