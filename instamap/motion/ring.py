"""Coordinates that close upon themselves: conformations on a circle, and how they are told from
those on a line or in a plane.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LINE = "line"
CIRCLE = "circle"
LEAST_RADIUS = 0.5  # of the mean: no conformation of a circle is nearer to its centre
LEAST_LENGTH = 1e-6
LARGEST_GAP = 75.0  # degrees between neighbours on a circle


@dataclass(frozen=True)
class Shape:
    """How coordinates are counted: `latent` columns, or the cosine and sine of one angle where the
    coordinate closes upon itself.
    """

    latent: int
    closed: bool = False

    @property
    def domains(self) -> int:
        """The number of domains that may move by themselves: one for each way to move."""
        return 1 if self.closed else self.latent

    def __str__(self) -> str:
        if self.closed:
            return "1 coordinate that closes upon itself (cosine and sine of an angle)"
        return f"{self.latent} coordinate{'s' if self.latent > 1 else ''}"


def closes(z: Tensor) -> bool:
    """Whether conformations at z "K L" lie on a circle: in two coordinates, all about equally far
    from the centre, with no wide gap between neighbours.
    """
    if z.shape[1] != 2 or len(z) < 6:
        return False
    centred = z - z.mean(0)
    radius = centred.norm(dim=1)
    if radius.min() < LEAST_RADIUS * radius.mean():
        return False
    angle = torch.atan2(centred[:, 1], centred[:, 0]).sort().values
    gaps = torch.cat([angle.diff(), angle[:1] + 2 * math.pi - angle[-1:]])
    return bool(gaps.max() < math.radians(LARGEST_GAP))


def on_circle(z: Tensor) -> Tensor:
    """The nearest points "n 2" of the unit circle about the origin; of the origin, (1, 0)."""
    centre = z.norm(dim=1, keepdim=True) < LEAST_LENGTH
    return torch.nn.functional.normalize(torch.where(centre, first_of(z), z), dim=1)


def with_angle_on_circle(z: Tensor) -> Tensor:
    """Coordinates "n 2+R" with the first two put on the unit circle."""
    return torch.cat([on_circle(z[:, :2]), z[:, 2:]], 1)


def first_of(z: Tensor) -> Tensor:
    """The point (1, 0) of the circle, "2", in the type of z."""
    return torch.tensor([1.0, 0.0]).to(z)


def around(count: int) -> Tensor:
    """`count` points "count 2" (float64) at equal distances around the unit circle."""
    angle = 2 * math.pi * torch.arange(count, dtype=torch.float64) / count
    return torch.stack([angle.cos(), angle.sin()], 1)


def with_middles(z: Tensor, shape: Shape) -> Tensor:
    """Conformations "K L", and those in the middle between neighbours along a line or a circle."""
    if shape.closed:
        angle = torch.atan2(z[:, 1], z[:, 0])
        ordered = z[angle.argsort()]
        return torch.cat([ordered, on_circle(ordered + ordered.roll(-1, 0))])
    if shape.latent > 1:
        return z
    ordered = z[z[:, 0].argsort()]
    return torch.cat([ordered, 0.5 * (ordered[1:] + ordered[:-1])])
