"""How far poses are off: normal distributions of the corrections, whose widths are those under
which held-out images are likeliest.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from instamap.poses.expansion import Expansion

LEAST = 1e-4  # of the widths: below, nothing is corrected
STEPS = 200


@dataclass(frozen=True)
class Prior:
    """Standard deviations about each axis in radians (`angle`) and along each in Å (`shift`)."""

    angle: float
    shift: float

    @property
    def precision(self) -> Tensor:
        """Of the five numbers of a correction, float64."""
        width = torch.tensor([self.angle] * 3 + [self.shift] * 2, dtype=torch.float64)
        return width.clamp(min=LEAST) ** -2

    def evidence(self, images: "Expansion") -> Tensor:
        """log p "n" of each image with its correction summed out: ∫ exp(log p(z)) N(z; 0, Λ⁻¹) dz
        of the quadratic.
        """
        whole, right, rest = self._quadratic(images)
        solved = torch.linalg.solve(whole, right[..., None])[..., 0]
        return (
            rest
            + 0.5 * (right * solved).sum(1)
            - 0.5 * torch.logdet(whole)
            + 0.5 * self.precision.log().sum()
        )

    def estimate(self, images: "Expansion") -> "Prior":
        """The widths under which these images are likeliest, by EM: σ² <- mean over images and axes
        of E[z²].
        """
        prior = self
        for _ in range(STEPS):
            whole, right, _ = prior._quadratic(images)
            inverse = torch.linalg.inv(whole)
            mean = (inverse @ right[..., None])[..., 0]
            square = (mean.square() + inverse.diagonal(dim1=1, dim2=2)).mean(0)
            prior = Prior(float(square[:3].mean().sqrt()), float(square[3:].mean().sqrt()))
        return prior

    def _quadratic(self, e: "Expansion") -> tuple[Tensor, Tensor, Tensor]:
        """W, r, c of log p(z) + log prior(z) = c + r·z - ½ z·W z."""
        bent = (e.curvature @ e.z[..., None])[..., 0]
        rest = e.value - (e.gradient * e.z).sum(1) - 0.5 * (e.z * bent).sum(1)
        return e.curvature + torch.diag(self.precision), e.gradient + bent, rest
