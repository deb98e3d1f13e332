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
from instamap.testing.part import SMALL_BOXES, PartLaws, difference, law
from instamap.testing.scenes import Case

ROUNDING = 1e-10
"""Batches of other sizes go through other kernels, which sum in another order: some hundred
roundings of float64.
"""

DIFFERENCE_STEP = 1e-6  # pixels, to either side, of central differences
WORST_POINTS = 0.1  # share of the points, on which kinks may fall
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


class RepresentationLaws(PartLaws):
    """Subclass with `name = "..."` of a registered representation, or override `make(scene)`."""

    kind = "representation"
    base_options = RepresentationOptions

    def evaluate(
        self,
        part: Representation,
        case: Case,
        dtype: torch.dtype,
    ) -> Tensor:
        x = scenes.in_ball(
            part.scene,
            (512,),
            case.generator(),
        )
        # Rounded to float32 first, so that both precisions are asked for the same points.
        return part(x.float().to(dtype))

    def test_is_a_representation(self) -> None:
        part = self.new_part(
            Case(
                0,
                12,
                1.0,
                2,
            )
        )
        assert isinstance(part, Representation)

    @common.SETTINGS
    @given(case=scenes.cases(SMALL_BOXES), shape=SHAPES)
    def test_any_leading_shape(self, case: Case, shape: tuple[int, ...]) -> None:
        """Points "*n 3" give values "*n": one point, none, or any box of them."""
        part = self.stirred_part(case)
        x = scenes.in_box(
            part.scene,
            shape,
            case.generator(),
        )
        value = part(x)
        assert value.shape == shape
        assert value.dtype == x.dtype
        flat = part(x.reshape(-1, 3))
        assert difference(value.flatten(), flat) < ROUNDING

    @law(SMALL_BOXES)
    def test_points_do_not_see_each_other(self, case: Case) -> None:
        """The value at a point does not depend on the order of points, nor on which others are
        asked for: so chunks are safe.
        """
        part = self.stirred_part(case)
        generator = case.generator()
        x = scenes.in_box(
            part.scene,
            (101,),
            generator,
        )
        order = torch.randperm(len(x), generator=generator)
        whole = part(x)
        shuffled = part(x[order])
        assert difference(shuffled, whole[order]) < ROUNDING
        pieces = [part(x[:7]), part(x[7:8]), part(x[8:])]
        assert difference(torch.cat(pieces), whole) < ROUNDING

    @law(SMALL_BOXES)
    def test_is_a_function(self, case: Case) -> None:
        """The same points give the same values, in training too: randomness belongs to forward
        operators.
        """
        part = self.stirred_part(case)
        x = scenes.in_box(
            part.scene,
            (50,),
            case.generator(),
        )
        before = torch.random.get_rng_state()
        evaluated = part.eval()(x)
        trained = part.train()(x)
        again = part.train()(x)
        assert torch.equal(evaluated, trained)
        assert torch.equal(trained, again)
        after = torch.random.get_rng_state()
        assert torch.equal(before, after), "it draws random numbers"

    @law(SMALL_BOXES)
    def test_gradient_with_respect_to_position(self, case: Case) -> None:
        """∇ρ is the derivative of ρ: deformations and pose refinement learn through it.

        Central differences over 2e-6 pixels: truncation is negligible there and rounding of ρ is
        1e-10 of its value per pixel. A field may have kinks (cell faces); a point falls on one with
        odds below one in a thousand, so the worst tenth does not count.
        """
        part = self.stirred_part(case)
        generator = case.generator()
        x = scenes.in_ball(
            part.scene,
            (64,),
            generator,
        ).requires_grad_()
        normal = torch.randn(
            64,
            3,
            generator=generator,
            dtype=torch.float64,
        )
        along = torch.nn.functional.normalize(normal, dim=-1)
        step = DIFFERENCE_STEP * case.pixel_size
        gradient = common.gradient(part(x), x)
        with torch.no_grad():
            ahead = part(x + step * along)
            behind = part(x - step * along)
            slope = (ahead - behind) / (2 * step)
            steepest = float(slope.abs().max())
            highest = float(part(x).abs().max())
        scale = max(steepest, 1e-6 * highest / case.pixel_size)
        error = (gradient * along).sum(-1) - slope
        wrong = error.abs() / (scale or 1.0)
        assert wrong.quantile(1 - WORST_POINTS) < 1e-4, (
            "the gradient with respect to position is not the derivative"
        )

    @law(SMALL_BOXES)
    def test_finite_everywhere(self, case: Case) -> None:
        """Values and gradients, at the origin, on voxels, at faces, edges and corners of the box,
        and a thousand boxes away.
        """
        part = self.stirred_part(case)
        points = _awkward_points(case)
        for dtype in (torch.float64, torch.float32):
            part.to(dtype).zero_grad()
            x = points.to(dtype, copy=True).requires_grad_()
            value = part(x)
            finite = value.isfinite()
            assert finite.all(), f"not finite at {_first(points, ~finite)} Å in {dtype}"
            if value.requires_grad:
                value.sum().backward()
            if x.grad is not None:
                finite = x.grad.isfinite().all(-1)
            assert finite.all(), (
                "the gradient with respect to position is not finite at"
                f" {_first(points, ~finite)} Å in {dtype}"
            )
            for name, parameter in part.named_parameters():
                assert parameter.grad is None or parameter.grad.isfinite().all(), (
                    f"the gradient of parameter '{name}' is not finite in {dtype}"
                )


def _awkward_points(case: Case) -> Tensor:
    """Points "n 3" in Å where formulas break.

    They are lattice points, the hull of the box from both sides, and far away.
    """
    half = 0.5 * case.box
    signs = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    corners = torch.cartesian_prod(
        signs,
        signs,
        signs,
    )
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
    shells = [corners * distance for distance in reach]
    return torch.cat(shells) * case.pixel_size


def _first(points: Tensor, wrong: Tensor) -> list[float]:
    return points[wrong][0].tolist()
