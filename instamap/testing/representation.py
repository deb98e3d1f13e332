"""The laws of representations: a field is a function of one point at a time, smooth enough to fit,
finite everywhere.
"""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from instamap.parts import Representation
from instamap.plugin.options import RepresentationOptions
from instamap.testing import part as common
from instamap.testing import scenes
from instamap.testing.part import SMALL, PartLaws, difference, law

# Batches of other sizes go through other kernels, which sum in another order: some hundred
# roundings of float64.
ROUNDING = 1e-10


class RepresentationLaws(PartLaws):
    """Subclass with `name = "..."` of a registered representation, or override `make(scene)`."""

    kind = "representation"
    base_options = RepresentationOptions

    def evaluate(self, part, case, dtype):
        # Rounded to float32 first, so that both precisions are asked for the same points.
        x = scenes.in_ball(part.scene, (512,), case.generator()).float()
        return part(x.to(dtype))

    def test_is_a_representation(self):
        assert isinstance(self.born(scenes.Case(0, 12, 1.0, 2)), Representation)

    @common.SETTINGS
    @given(case=scenes.cases(SMALL), shape=st.lists(st.integers(0, 4), max_size=4).map(tuple))
    def test_any_leading_shape(self, case, shape):
        """Points "*n 3" give values "*n": one point, none, or any box of them."""
        part = self.grown(case)
        x = scenes.in_box(part.scene, shape, case.generator())
        value = part(x)
        assert value.shape == shape
        assert value.dtype == x.dtype
        assert difference(value.flatten(), part(x.reshape(-1, 3))) < ROUNDING

    @law(SMALL)
    def test_points_do_not_see_each_other(self, case):
        """The value at a point does not depend on the order of points, nor on which others are
        asked for: so chunks are safe.
        """
        part = self.grown(case)
        g = case.generator()
        x = scenes.in_box(part.scene, (101,), g)
        order = torch.randperm(len(x), generator=g)
        whole = part(x)
        assert difference(part(x[order]), whole[order]) < ROUNDING
        assert difference(torch.cat([part(x[:7]), part(x[7:8]), part(x[8:])]), whole) < ROUNDING

    @law(SMALL)
    def test_is_a_function(self, case):
        """The same points give the same values, in training too: randomness belongs to forward
        operators.
        """
        part = self.grown(case)
        x = scenes.in_box(part.scene, (50,), case.generator())
        before = torch.random.get_rng_state()
        values = [part.train(training)(x) for training in (False, True, True)]
        assert torch.equal(values[0], values[1]) and torch.equal(values[1], values[2])
        assert torch.equal(before, torch.random.get_rng_state()), "it draws random numbers"

    @law(SMALL)
    def test_gradient_with_respect_to_position(self, case):
        """∇ρ is the derivative of ρ: deformations and pose refinement learn through it.

        Central differences over 2e-6 pixels: truncation is negligible there and rounding of ρ is
        1e-10 of its value per pixel. A field may have kinks (cell faces); a point falls on one with
        odds below one in a thousand, so the worst tenth does not count.
        """
        part = self.grown(case)
        g = case.generator()
        x = scenes.in_ball(part.scene, (64,), g).requires_grad_()
        along = torch.nn.functional.normalize(
            torch.randn(64, 3, generator=g, dtype=torch.float64), dim=-1
        )
        step = 1e-6 * case.pixel_size
        gradient = common.gradient(part(x), x)
        with torch.no_grad():
            slope = (part(x + step * along) - part(x - step * along)) / (2 * step)
            scale = max(
                float(slope.abs().max()), 1e-6 * float(part(x).abs().max()) / case.pixel_size
            )
        wrong = ((gradient * along).sum(-1) - slope).abs() / (scale or 1.0)
        assert wrong.quantile(0.9) < 1e-4, (
            "the gradient with respect to position is not the derivative"
        )

    @law(SMALL)
    def test_finite_everywhere(self, case):
        """Values and gradients, at the origin, on voxels, at faces, edges and corners of the box,
        and a thousand boxes away.
        """
        part = self.grown(case)
        points = _awkward(case)
        for dtype in (torch.float64, torch.float32):
            part.to(dtype).zero_grad()
            x = points.to(dtype, copy=True).requires_grad_()
            value = part(x)
            assert value.isfinite().all(), (
                f"not finite at {_first(points, ~value.isfinite())} Å in {dtype}"
            )
            if value.requires_grad:
                value.sum().backward()
            bad = (
                torch.zeros(len(points), dtype=torch.bool)
                if x.grad is None
                else ~x.grad.isfinite().all(-1)
            )
            assert not bad.any(), (
                f"the gradient with respect to position is not finite at {_first(points, bad)} Å in"
                f" {dtype}"
            )
            for name, p in part.named_parameters():
                assert p.grad is None or p.grad.isfinite().all(), (
                    f"the gradient of parameter '{name}' is not finite in {dtype}"
                )


def _awkward(case: scenes.Case) -> Tensor:
    """Points "n 3" in Å where formulas break: lattice points, the hull of the box from both sides,
    far away.
    """
    half = 0.5 * case.box
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)] * 3)
    reach = [
        1.0,
        half - 1,
        half - 0.5,
        half,
        half * (1 - 1e-7),
        half * (1 + 1e-7),
        half + 0.5,
        half + 1,
        10 * half,
        2000 * half,
    ]
    return torch.cat([corners * r for r in reach]) * case.pixel_size


def _first(points: Tensor, wrong: Tensor) -> list[float]:
    return points[wrong][0].tolist()
