"""Regularisers of density and displacement: what they cost, in nats per image, at points drawn anew
in each step.
"""

import torch
from torch import Tensor

from instamap.geometry import grids, strain
from instamap.model import Model

POINTS = 2048  # for the density; the displacements of a batch share as many


class Prior:
    """Σ weight · mean over points x, drawn evenly within the mask's voxels, of

    density, with ρ in units of the scene's density scale: total_variation |ρ(x + Δe) - ρ(x)|, e a
    random axis, Δ a voxel; positivity max(-ρ(x), 0); displacement u(x; z) = deformation(x; z) - x,
    with J = 1 + ∇u: magnitude |u|² (Å²); total_variation ‖∇u‖ (Frobenius); strain ‖½ (JᵀJ - 1)‖²,
    the Green-Lagrange strain, which no rigid motion has.

    The weights are options of the two parts. Gradients of u are differences over half a voxel.
    """

    def __init__(self, model: Model):
        density = model.representation.options
        displacement = model.deformation.options
        self.density = {name: getattr(density, name) for name in ("total_variation", "positivity")}
        self.displacement = {
            name: getattr(displacement, name, 0.0)
            for name in ("magnitude", "total_variation", "strain")
        }
        self.bends = any(self.displacement.values())
        self.cell = model.scene.pixel_size
        centres = grids.voxel_centres(model.scene.box, self.cell).reshape(-1, 3)
        with torch.no_grad():
            self.centres = centres[model.window(centres) > 0]

    def __call__(self, model: Model, z: Tensor | None, generator: torch.Generator) -> Tensor:
        """The cost (scalar) for particles with coordinates z "B L"; of the density alone where z is
        None.
        """
        cost = torch.zeros(())
        if any(self.density.values()):
            cost = cost + self._density(model, self._points(1, POINTS, generator), generator)
        if z is not None and self.bends:
            cost = cost + self._displacement(
                model, self._points(len(z), -(-POINTS // len(z)), generator), z
            )
        return cost

    def _points(self, rows: int, count: int, generator: torch.Generator) -> Tensor:
        """Points "rows count 3" in Å."""
        at = torch.randint(len(self.centres), (rows, count), generator=generator)
        return (
            self.centres[at] + (torch.rand(rows, count, 3, generator=generator) - 0.5) * self.cell
        )

    def _density(self, model: Model, x: Tensor, generator: torch.Generator) -> Tensor:
        along = torch.eye(3)[torch.randint(3, x.shape[:-1], generator=generator)] * self.cell
        here, there = (model.density(at) / model.scene.density_scale for at in (x, x + along))
        change = (there - here).abs().mean()
        below = (-here).clamp(min=0).mean()
        return self.density["total_variation"] * change + self.density["positivity"] * below

    def _displacement(self, model: Model, x: Tensor, z: Tensor) -> Tensor:
        there = model.deformation(x, z)
        jacobian = strain.jacobian(lambda at: model.deformation(at, z), x, there, 0.5 * self.cell)
        terms = {"magnitude": (there - x).square().sum(-1)}
        terms["total_variation"] = (
            (jacobian - torch.eye(3)).square().sum((-1, -2)) + 1e-12
        ).sqrt()  # smooth at zero, where u is born
        terms["strain"] = strain.green_lagrange(jacobian).square().sum((-1, -2))
        return sum(weight * terms[name].mean() for name, weight in self.displacement.items())
