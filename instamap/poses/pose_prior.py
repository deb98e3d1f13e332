"""How far poses are off: normal distributions, as wide as held-out images are likeliest under."""

from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.poses.expansion import Expansion

MIN_WIDTH = 1e-4  # of the distributions, in radians or Å: below, nothing is corrected
EM_STEPS = 200


@dataclass(frozen=True)
class PosePrior:
    """Standard deviations of a correction: about each axis in radians, along each in Å."""

    angle: float
    shift: float

    @property
    def precision(self) -> Tensor:
        """The precisions "5" of the five numbers of a correction, float64."""
        width = torch.tensor([self.angle] * 3 + [self.shift] * 2, dtype=torch.float64)
        return width.clamp(min=MIN_WIDTH) ** -2

    def log_marginal(self, images: Expansion) -> Tensor:
        """log p "n" of each image, its correction summed out: ∫ exp(log p(z)) N(z; 0, Λ⁻¹) dz."""
        whole, right, rest = self._quadratic(images)
        solved = torch.linalg.solve(whole, right[..., None])[..., 0]
        peak = rest + 0.5 * (right * solved).sum(1)
        return peak - 0.5 * torch.logdet(whole) + 0.5 * self.precision.log().sum()

    def estimate(self, images: Expansion) -> "PosePrior":
        """The widths under which these images are likeliest, by EM: σ² <- mean of E[z²].

        The mean is over images and axes.
        """
        prior = self
        for _ in range(EM_STEPS):
            whole, right, _ = prior._quadratic(images)
            inverse = torch.linalg.inv(whole)
            mean = (inverse @ right[..., None])[..., 0]
            variance = inverse.diagonal(dim1=1, dim2=2)
            square = (mean.square() + variance).mean(0)
            prior = PosePrior(float(square[:3].mean().sqrt()), float(square[3:].mean().sqrt()))
        return prior

    def _quadratic(self, images: Expansion) -> tuple[Tensor, Tensor, Tensor]:
        """W, r, c of log p(z) + log prior(z) = c + r·z - ½ z·W z."""
        bent = (images.curvature @ images.z[..., None])[..., 0]
        linear = (images.gradient * images.z).sum(1)
        rest = images.value - linear - 0.5 * (images.z * bent).sum(1)
        whole = images.curvature + torch.diag(self.precision)
        return whole, images.gradient + bent, rest
