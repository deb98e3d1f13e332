"""Rigid bodies in one density: whose each point is, and where it is looked up."""

import torch
from torch import Tensor, nn

from instamap.geometry import grids
from instamap.geometry.sampling import sample_volumes


class Bodies(nn.Module):
    """The masks "M D D D" of bodies, their centres of mass "M 3" and radii of gyration "M" (Å).

    Each body has (R, t) about its own centre: a point x is looked up at Σ_m w_m T_m(x), with T_m(x)
    = R (x - c) + c + t and w_m the body's mask at T_m(x), divided by the sum where masks overlap.
    What masks leave of one goes to the nearest bodies, so that the place that a body has left is
    looked up outside of it.
    """

    FALL_OFF = 8  # power of the distance with which bodies lose what is in no mask
    MIN_SQUARED_RADIUS = 1e-6  # Å²
    MIN_RELATIVE_DISTANCE = 1e-6  # in radii of gyration

    mask: Tensor
    centre: Tensor
    radius: Tensor

    def __init__(self, masks: Tensor, pixel_size: float) -> None:
        super().__init__()
        self.count = len(masks)
        self.pixel_size = pixel_size
        voxels = grids.voxel_centres(masks.shape[-1], pixel_size).to(masks)
        squares = voxels.square().sum(-1)
        mass = masks.flatten(1).sum(1)
        first_moment = torch.einsum("mzyx,zyxc->mc", masks, voxels)
        second_moment = torch.einsum("mzyx,zyx->m", masks, squares)
        centre = first_moment / mass[:, None]
        squared_radius = second_moment / mass - centre.square().sum(1)
        radius = squared_radius.clamp(min=self.MIN_SQUARED_RADIUS).sqrt()
        self.register_buffer("mask", masks, persistent=False)
        self.register_buffer("centre", centre, persistent=False)
        self.register_buffer("radius", radius, persistent=False)

    def forward(
        self,
        x: Tensor,
        turn: Tensor,
        shift: Tensor,
    ) -> Tensor:
        """Points "B P 3" of the common density for points `x`; turn "B M 3 3", shift "B M 3"."""
        centre = self.centre[:, None]
        relative = x[:, None] - centre
        from_centre = relative @ turn.mT + shift[:, :, None]  # "B M P 3"
        there = from_centre + centre
        inside = self._inside(there)
        covered = inside.sum(1, keepdim=True)
        near = self._nearness(from_centre)
        share = inside / covered.clamp(min=1)
        uncovered = (1 - covered).clamp(min=0)
        weight = share + uncovered * near
        # Displacements of x itself are summed: nothing is rounded where nothing moves.
        displacement = weight[..., None] * (there - x[:, None])
        return x + displacement.sum(1)

    def _nearness(self, from_centre: Tensor) -> Tensor:
        """How much of what is in no mask goes to each body, "B M P", at positions "B M P 3" from
        the bodies' centres.
        """
        relative = from_centre.norm(dim=-1) / self.radius[:, None]
        logarithm = torch.log(relative + self.MIN_RELATIVE_DISTANCE)
        return torch.softmax(-self.FALL_OFF * logarithm, 1)

    def _inside(self, there: Tensor) -> Tensor:
        """The masks "B M P", trilinear, each at its points "B M P 3"."""
        particles, _, points, _ = there.shape
        values = sample_volumes(
            self.mask.to(there.dtype),
            there.transpose(0, 1).flatten(1, 2),
            self.pixel_size,
        )
        by_body = values.view(self.count, particles, points)
        return by_body.transpose(0, 1)
