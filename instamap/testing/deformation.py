"""The laws of deformations: at birth nothing moves, particles do not see each other, and poses play
no part.
"""

import dataclasses

import torch
from torch import Tensor

from instamap.geometry import rotations
from instamap.parts import Deformation
from instamap.plugin.options import DeformationOptions
from instamap.testing import scenes
from instamap.testing.part import SMALL, PartLaws, difference, gradient, law, stir

# Some tens of roundings of float64.
ROUNDING = 1e-12


class DeformationLaws(PartLaws):
    """Subclass with `name = "..."` of a registered deformation, or override `make(scene)`."""

    kind = "deformation"

    def evaluate(self, part, case, dtype):
        g = case.generator()
        views = scenes.views(part.scene, part.scene.count, g).to(dtype)
        x = scenes.in_ball(part.scene, (part.scene.count, 20), g).float()
        return part(x.to(dtype), part.latent(views))

    def _draw(self, case, part):
        """Views, points "B 20 3" and coordinates "B L" away from birth."""
        g = case.generator()
        views = scenes.views(part.scene, case.rows, g, shift=1.0)
        x = scenes.in_ball(part.scene, (case.rows, 20), g)
        z = part.latent(views).detach()
        return views, x, z + 0.1 * torch.randn(z.shape, generator=g, dtype=z.dtype)

    def test_is_a_deformation(self):
        part = self.born(scenes.Case(0, 12, 1.0, 2))
        assert isinstance(part, Deformation)
        if list(part.parameters()):
            assert isinstance(part.options, DeformationOptions), (
                "what learns needs the options of DeformationOptions (its step size)"
            )

    @law(SMALL)
    def test_identity_at_birth(self, case):
        """A fit starts from the common density: nothing is deformed before there is evidence."""
        part = self.born(case)
        g = case.generator()
        views = scenes.views(part.scene, case.rows, g)
        x = scenes.in_ball(part.scene, (case.rows, 20), g)
        assert difference(part(x, part.latent(views)), x) < ROUNDING

    @law(SMALL)
    def test_latent_belongs_to_the_particle(self, case):
        """z is "B L" and depends on the particle's index alone: not on the batch, its order, the
        pose or the shift.
        """
        part = self.grown(case)
        g = case.generator()
        views = scenes.views(part.scene, case.rows, g, shift=1.0)
        z = part.latent(views)
        assert z.ndim == 2 and len(z) == case.rows, f"z has shape {tuple(z.shape)}"
        order = torch.randperm(case.rows, generator=g)
        assert torch.equal(part.latent(views[order]), z[order])
        assert torch.equal(part.latent(views[:1]), z[:1])
        elsewhere = dataclasses.replace(
            views, rotation=rotations.random(case.rows, generator=g), origin=views.origin + 1.0
        )
        assert torch.equal(part.latent(elsewhere), z), "z changes with the pose"
        if not part.per_particle:
            assert torch.equal(z, z[:1].expand_as(z)), "per_particle is False, yet particles differ"

    @law(SMALL)
    def test_bind_is_the_deformation(self, case):
        """bind(z), which may compute once what depends on z alone, is x -> forward(x, z) for any
        points that it is given, in turn.
        """
        part = self.grown(case)
        _, x, z = self._draw(case, part)
        there = part.bind(z)
        for some in (x, 0.5 * x[:, :1], x):
            assert difference(there(some), part(some, z)) < ROUNDING

    @law(SMALL)
    def test_rows_are_independent(self, case):
        """Another z or other points in one row change that row and no other."""
        part = self.grown(case)
        _, x, z = self._draw(case, part)
        before = part(x, z)
        assert before.shape == x.shape
        row = case.seed % case.rows
        others = torch.arange(case.rows) != row
        z2 = z.clone()
        x2 = x.clone()
        z2[row] += 0.1
        x2[row] += 0.1 * case.pixel_size
        for after in (part(x, z2), part(x2, z)):
            assert difference(after[others], before[others]) < ROUNDING
        assert (
            difference(part(x[row : row + 1], z[row : row + 1]), before[row : row + 1]) < ROUNDING
        )

    @law(SMALL)
    def test_points_do_not_see_each_other(self, case):
        """Any number of points, in any order: so chunks are safe."""
        part = self.grown(case)
        _, x, z = self._draw(case, part)
        whole = part(x, z)
        order = torch.randperm(x.shape[1], generator=case.generator())
        assert difference(part(x[:, order], z), whole[:, order]) < ROUNDING
        assert (
            difference(
                torch.cat([part(x[:, :3], z), part(x[:, 3:3], z), part(x[:, 3:], z)], 1), whole
            )
            < ROUNDING
        )

    @law(SMALL)
    def test_gradient_reaches_the_coordinates(self, case):
        """Each particle's z can be learned: some gradient reaches every row that has coordinates."""
        part = self.grown(case)
        _, x, z = self._draw(case, part)
        z.requires_grad_()
        if not z.numel():
            return
        slope = gradient(
            part(x, z) * torch.randn(x.shape, generator=case.generator(), dtype=x.dtype), z
        )
        assert slope.isfinite().all() and (slope.abs().amax(1) > 0).all()

    @law(SMALL)
    def test_does_not_fold_space_near_birth(self, case):
        """det ∂x'/∂x > 0 for parameters a thousandth away from birth, so no two points of the
        particle meet.
        """
        part = stir(self.born(case), case.generator(), 1e-3)
        views, x, _ = self._draw(case, part)
        jacobian = _jacobian(part, x, part.latent(views).detach())
        assert jacobian.isfinite().all() and (torch.linalg.det(jacobian) > 0).all()


class IsometryLaws(DeformationLaws):
    """For deformations that move the particle, or the whole of it, as a rigid body."""

    @law(SMALL)
    def test_distances_are_preserved(self, case):
        """|x'_i - x'_j| = |x_i - x_j|, and no mirror image, for any parameters and coordinates."""
        part = stir(self.born(case), case.generator(), 1.0)
        _, x, z = self._draw(case, part)
        assert difference(_distances(part(x, z)), _distances(x)) < ROUNDING
        assert (torch.linalg.det(_jacobian(part, x, z)) > 0).all(), "a mirror image"


def _distances(x: Tensor) -> Tensor:
    return (x[:, :, None] - x[:, None]).norm(dim=-1)


def _jacobian(part: Deformation, x: Tensor, z: Tensor) -> Tensor:
    """∂x'_i/∂x_j "B P 3 3"; one backward per row i will do, since points do not see each other."""
    x = x.clone().requires_grad_()
    moved = part(x, z)
    return torch.stack([gradient(moved[..., i], x) for i in range(3)], -2)
