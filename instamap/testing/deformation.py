"""The laws of deformations: at birth nothing moves, particles do not see each other, and poses play
no part.
"""

import dataclasses

import torch
from torch import Tensor

from instamap.geometry import rotations
from instamap.parts import Deformation, SharedDensity
from instamap.plugin.options import DeformationOptions
from instamap.scene import Views
from instamap.testing import scenes
from instamap.testing.part import SMALL_BOXES, PartLaws, difference, gradient, law, stir
from instamap.testing.scenes import Case

ROUNDING = 1e-12  # some tens of roundings of float64
POINTS = 20  # of each particle


class DeformationLaws(PartLaws):
    """Subclass with `name = "..."` of a registered deformation, or override `make(scene)`."""

    kind = "deformation"

    def evaluate(
        self,
        part: Deformation,
        case: Case,
        dtype: torch.dtype,
    ) -> Tensor:
        generator = case.generator()
        rows = part.scene.count
        views = scenes.views(
            part.scene,
            rows,
            generator,
        ).to(dtype)
        x = scenes.in_ball(
            part.scene,
            (rows, POINTS),
            generator,
        ).float()
        return part(x.to(dtype), part.latent(views))

    def _draw(self, case: Case, part: Deformation) -> tuple[Views, Tensor, Tensor]:
        """Views, points "B 20 3" and coordinates "B L" away from birth."""
        generator = case.generator()
        views = scenes.views(
            part.scene,
            case.rows,
            generator,
            shift=1.0,
        )
        x = scenes.in_ball(
            part.scene,
            (case.rows, POINTS),
            generator,
        )
        z = part.latent(views).detach()
        noise = torch.randn(
            z.shape,
            generator=generator,
            dtype=z.dtype,
        )
        return views, x, z + 0.1 * noise

    def test_is_a_deformation(self) -> None:
        part = self.new_part(
            Case(
                0,
                12,
                1.0,
                2,
            )
        )
        assert isinstance(part, Deformation)
        if list(part.parameters()):
            assert isinstance(part.options, DeformationOptions), (
                "what learns needs the options of DeformationOptions (its step size)"
            )

    @law(SMALL_BOXES)
    def test_identity_at_birth(self, case: Case) -> None:
        """A fit starts from the common density: nothing is deformed before data say so."""
        part = self.new_part(case)
        generator = case.generator()
        views = scenes.views(
            part.scene,
            case.rows,
            generator,
        )
        x = scenes.in_ball(
            part.scene,
            (case.rows, POINTS),
            generator,
        )
        moved = part(x, part.latent(views))
        assert difference(moved, x) < ROUNDING

    @law(SMALL_BOXES)
    def test_latent_belongs_to_the_particle(self, case: Case) -> None:
        """z is "B L" and depends on the particle's index alone: not on the batch, its order, the
        pose or the shift.
        """
        part = self.stirred_part(case)
        generator = case.generator()
        views = scenes.views(
            part.scene,
            case.rows,
            generator,
            shift=1.0,
        )
        z = part.latent(views)
        assert z.ndim == 2, f"z has shape {tuple(z.shape)}"
        assert len(z) == case.rows, f"z has shape {tuple(z.shape)}"
        order = torch.randperm(case.rows, generator=generator)
        assert torch.equal(part.latent(views[order]), z[order])
        assert torch.equal(part.latent(views[:1]), z[:1])
        elsewhere = dataclasses.replace(
            views,
            rotation=rotations.random(case.rows, generator=generator),
            origin=views.origin + 1.0,
        )
        assert torch.equal(part.latent(elsewhere), z), "z changes with the pose"
        if isinstance(part, SharedDensity):
            first = z[:1].expand_as(z)
            assert torch.equal(z, first), "it is a SharedDensity, yet particles differ"

    @law(SMALL_BOXES)
    def test_bind_is_the_deformation(self, case: Case) -> None:
        """bind(z), which may compute once what depends on z alone, is x -> forward(x, z) for any
        points that it is given, in turn.
        """
        part = self.stirred_part(case)
        _, x, z = self._draw(case, part)
        bound = part.bind(z)
        for points in (x, 0.5 * x[:, :1], x):
            assert difference(bound(points), part(points, z)) < ROUNDING

    @law(SMALL_BOXES)
    def test_rows_are_independent(self, case: Case) -> None:
        """Another z or other points in one row change that row and no other."""
        part = self.stirred_part(case)
        _, x, z = self._draw(case, part)
        before = part(x, z)
        assert before.shape == x.shape
        row = case.seed % case.rows
        others = torch.arange(case.rows) != row
        other_z = z.clone()
        other_x = x.clone()
        other_z[row] += 0.1
        other_x[row] += 0.1 * case.pixel_size
        for after in (part(x, other_z), part(other_x, z)):
            assert difference(after[others], before[others]) < ROUNDING
        only = slice(row, row + 1)
        alone = part(x[only], z[only])
        assert difference(alone, before[only]) < ROUNDING

    @law(SMALL_BOXES)
    def test_points_do_not_see_each_other(self, case: Case) -> None:
        """Any number of points, in any order: so chunks are safe."""
        part = self.stirred_part(case)
        _, x, z = self._draw(case, part)
        whole = part(x, z)
        order = torch.randperm(x.shape[1], generator=case.generator())
        shuffled = part(x[:, order], z)
        assert difference(shuffled, whole[:, order]) < ROUNDING
        pieces = [
            part(x[:, :3], z),
            part(x[:, 3:3], z),
            part(x[:, 3:], z),
        ]
        assert difference(torch.cat(pieces, 1), whole) < ROUNDING

    @law(SMALL_BOXES)
    def test_gradient_reaches_the_coordinates(self, case: Case) -> None:
        """Each particle's z can be learned: some gradient reaches every row of coordinates."""
        part = self.stirred_part(case)
        _, x, z = self._draw(case, part)
        z.requires_grad_()
        if not z.numel():
            return
        weight = torch.randn(
            x.shape,
            generator=case.generator(),
            dtype=x.dtype,
        )
        slope = gradient(part(x, z) * weight, z)
        assert slope.isfinite().all()
        assert (slope.abs().amax(1) > 0).all()

    @law(SMALL_BOXES)
    def test_does_not_fold_space_near_birth(self, case: Case) -> None:
        """det ∂x'/∂x > 0 for parameters a thousandth away from birth, so no two points of the
        particle meet.
        """
        part = stir(
            self.new_part(case),
            case.generator(),
            1e-3,
        )
        views, x, _ = self._draw(case, part)
        z = part.latent(views).detach()
        jacobian = _jacobian(part, x, z)
        assert jacobian.isfinite().all()
        assert (torch.linalg.det(jacobian) > 0).all()


class IsometryLaws(DeformationLaws):
    """For deformations that move the particle, or the whole of it, as a rigid body."""

    @law(SMALL_BOXES)
    def test_distances_are_preserved(self, case: Case) -> None:
        """|x'_i - x'_j| = |x_i - x_j|, and no mirror image, for any parameters and coordinates."""
        part = stir(
            self.new_part(case),
            case.generator(),
            1.0,
        )
        _, x, z = self._draw(case, part)
        moved = part(x, z)
        assert difference(_distances(moved), _distances(x)) < ROUNDING
        determinant = torch.linalg.det(
            _jacobian(
                part,
                x,
                z,
            )
        )
        assert (determinant > 0).all(), "a mirror image"


def _distances(x: Tensor) -> Tensor:
    """Distances "B P P" between the points "B P 3" of each row."""
    between = x[:, :, None] - x[:, None]
    return between.norm(dim=-1)


def _jacobian(
    part: Deformation,
    x: Tensor,
    z: Tensor,
) -> Tensor:
    """∂x'_i/∂x_j "B P 3 3".

    One backward per row i will do, since points do not see each other.
    """
    x = x.clone().requires_grad_()
    moved = part(x, z)
    rows = [gradient(moved[..., i], x) for i in range(3)]
    return torch.stack(rows, -2)
