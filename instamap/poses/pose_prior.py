"""How far poses are off: normal distributions, as wide as held-out images are likeliest under."""

from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.poses.batched import product, solve
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
        each = [self.angle] * 3 + [self.shift] * 2
        width = torch.tensor(each, dtype=torch.float64)
        width = width.clamp(min=MIN_WIDTH)
        return width**-2

    def log_marginal(self, images: Expansion) -> Tensor:
        """log p "n" of each image, its correction summed out: ∫ exp(log p(z)) N(z; 0, Λ⁻¹) dz."""
        whole, right, rest = self._quadratic(images)
        best = solve(whole, right)
        rise = (right * best).sum(1)
        peak = rest + 0.5 * rise
        volume = torch.logdet(whole)
        prior_volume = self.precision.log().sum()
        return peak - 0.5 * volume + 0.5 * prior_volume

    def estimate(self, images: Expansion) -> "PosePrior":
        """The widths under which these images are likeliest, by EM: σ² <- mean of E[z²].

        The mean is over images and axes.
        """
        prior = self
        for _ in range(EM_STEPS):
            whole, right, _ = prior._quadratic(images)
            inverse = torch.linalg.inv(whole)
            mean = product(inverse, right)
            variance = inverse.diagonal(dim1=1, dim2=2)
            square = mean.square() + variance
            square = square.mean(0)
            angle = square[:3].mean().sqrt()
            shift = square[3:].mean().sqrt()
            prior = PosePrior(float(angle), float(shift))
        return prior

    def _quadratic(self, images: Expansion) -> tuple[Tensor, Tensor, Tensor]:
        """W, r, c of log p(z) + log prior(z) = c + r·z - ½ z·W z."""
        z = images.z
        bent = product(images.curvature, z)
        linear = (images.gradient * z).sum(1)
        quadratic = (z * bent).sum(1)
        rest = images.value - linear - 0.5 * quadratic
        whole = images.curvature + torch.diag(self.precision)
        return whole, images.gradient + bent, rest
