"""Regularisers of density and displacement: what they cost, in nats per image, at points drawn anew
in each step.
"""

import torch
from torch import Tensor, nn

from instamap.geometry import draws, grids, strain
from instamap.model import Model
from instamap.parts import Deformation, SharedDensity

POINTS = 2048  # at which the density is looked up; the displacements of a batch share as many
SMOOTH = 1e-12  # under the root of the gradient's square: smooth at zero, where u begins


class Regulariser(nn.Module):
    """Σ weight · mean over points x, drawn evenly within the mask's voxels, of

    density, with ρ in units of the scene's density scale: total_variation |ρ(x + Δe) - ρ(x)|, e a
    random axis, Δ a voxel; positivity max(-ρ(x), 0); displacement u(x; z) = deformation(x; z) - x,
    with J = 1 + ∇u: magnitude |u|² (Å²); total_variation ‖∇u‖ (Frobenius); strain ‖½ (JᵀJ - 1)‖²,
    the Green-Lagrange strain, which no rigid motion has.

    The weights are options of the two parts. centres "n 3": of these voxels, in Å; none where no
    term has a weight. Gradients of u are differences over half a voxel.
    """

    centres: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        density = model.representation.options
        self.density_weights = {
            "total_variation": density.total_variation,
            "positivity": density.positivity,
        }
        self.displacement_weights = _displacement_weights(model.deformation)
        self.cell = model.scene.pixel_size
        device = next(model.parameters()).device
        centres = torch.zeros(0, 3, device=device)
        if self.displaces or any(self.density_weights.values()):
            centres = _centres_inside(model, device)
        self.register_buffer("centres", centres, persistent=False)

    @property
    def displaces(self) -> bool:
        """Whether any regulariser of the displacement has a weight."""
        return any(self.displacement_weights.values())

    def forward(self, model: Model, z: Tensor | None, generator: torch.Generator) -> Tensor:
        """The cost (scalar) for particles with coordinates z "B L"; of the density alone where z is
        None.
        """
        cost = torch.zeros((), device=self.centres.device)
        if any(self.density_weights.values()):
            x = self._points(1, POINTS, generator)
            cost = cost + self._density_cost(model, x, generator)
        if z is not None and self.displaces:
            each = -(-POINTS // len(z))
            x = self._points(len(z), each, generator)
            cost = cost + self._displacement_cost(model, x, z)
        return cost

    def _points(self, rows: int, count: int, generator: torch.Generator) -> Tensor:
        """Random points "rows count 3" in Å."""
        device = self.centres.device
        voxel = draws.whole(len(self.centres), (rows, count), generator, device)
        within = draws.uniform((rows, count, 3), generator, device) - 0.5
        centres = self.centres[voxel]
        return centres + within * self.cell

    def _density_cost(self, model: Model, x: Tensor, generator: torch.Generator) -> Tensor:
        axes = torch.eye(3, device=x.device)
        axis = draws.whole(3, tuple(x.shape[:-1]), generator, x.device)
        neighbour = x + axes[axis] * self.cell
        scale = model.scene.density_scale
        here = model.density(x) / scale
        there = model.density(neighbour) / scale
        change = (there - here).abs()
        below = (-here).clamp(min=0)
        weights = self.density_weights
        cost = weights["total_variation"] * change.mean()
        return cost + weights["positivity"] * below.mean()

    def _displacement_cost(self, model: Model, x: Tensor, z: Tensor) -> Tensor:
        def moved(x: Tensor) -> Tensor:
            return model.deformation(x, z)

        there = moved(x)
        jacobian = strain.jacobian(moved, x, there, 0.5 * self.cell)
        unit = torch.eye(3, device=x.device)
        displacement = there - x
        gradient = jacobian - unit
        gradient = gradient.square()
        strains = strain.green_lagrange(jacobian)
        total = gradient.sum((-1, -2))
        terms = {
            "magnitude": displacement.square().sum(-1),
            "total_variation": (total + SMOOTH).sqrt(),
            "strain": strains.square().sum((-1, -2)),
        }
        cost = torch.zeros((), device=x.device)
        for name, weight in self.displacement_weights.items():
            cost = cost + weight * terms[name].mean()
        return cost


@torch.no_grad()
def _centres_inside(model: Model, device: torch.device) -> Tensor:
    """Centres "n 3" (Å) of the voxels inside the model's window."""
    centres = grids.voxel_centres(model.scene.box, model.scene.pixel_size)
    centres = centres.to(device).reshape(-1, 3)
    return centres[model.window(centres) > 0]


def _displacement_weights(deformation: Deformation) -> dict[str, float]:
    """The weights of the terms of a deformation's displacement; none where no point moves."""
    if isinstance(deformation, SharedDensity):
        return {}
    options = deformation.options
    return {
        "magnitude": options.magnitude,
        "total_variation": options.total_variation,
        "strain": options.strain,
    }
