"""The laws of forward operators: linear, equivariant, and right: Gaussians land where the
conventions say, at their size.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from instamap.geometry import rotations
from instamap.parts import ForwardOperator, SharedDensityOperator
from instamap.scene import Views
from instamap.testing import scenes
from instamap.testing.part import PartLaws, difference, gradient, law
from instamap.testing.scenes import Case, Gaussians

BOXES = (22, 23, 24, 25)
"""The smallest boxes that hold the Gaussians of `scenes.gaussians` to 1e-7."""

ROUNDING = 1e-10
"""What must hold whatever the discretisation, since the same points are summed: some hundred
roundings of float64.
"""

QUARTER_TURN = ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))  # from x to y
HALF_TURNS = {1: (1.0, -1.0, -1.0), 2: (-1.0, 1.0, -1.0)}  # by the axis of images that they mirror
OUTSIDE_DENSITY = 1e3  # outside the mask, in units of the density's integral


class ForwardLaws(PartLaws):
    """Subclass with `name = "..."` of a registered forward operator, or override `make(scene)`.

    tolerance: error of an image relative to its largest pixel. 1e-3 is generous to operators that
    interpolate and far below what any mistake of geometry does to these Gaussians (a hundredth of a
    pixel of shift does 4e-3); exact operators should set less. bounded: whether the operator
    promises not to look outside the user's mask.
    """

    kind = "forward"
    tolerance: ClassVar[float] = 1e-3
    bounded: ClassVar[bool] = True

    def evaluate(
        self,
        part: ForwardOperator,
        case: Case,
        dtype: torch.dtype,
    ) -> Tensor:
        # These boxes are small, so the Gaussians are too: no density lies where the operator stops
        # looking.
        wide = scenes.gaussians(part.scene, case.generator())
        small = Gaussians(
            0.3 * wide.centres,
            wide.weights,
            0.35 * wide.sigma,
        )
        views = scenes.views(
            part.scene,
            case.rows,
            case.generator(),
        )
        return part(small, views.to(dtype))

    def _draw(
        self,
        case: Case,
        shift: float = 1.5,
    ) -> tuple[ForwardOperator, Gaussians, Views, torch.Generator]:
        """An operator, four Gaussians without symmetry, and views at any pose, shifted by up to
        `shift` pixels.
        """
        part = self.new_part(case)
        generator = case.generator()
        density = scenes.gaussians(part.scene, generator)
        views = scenes.views(
            part.scene,
            case.rows,
            generator,
            shift=shift,
        )
        return part, density, views, generator

    def test_is_a_forward_operator(self) -> None:
        part = self.new_part(
            Case(
                0,
                22,
                1.0,
                2,
            )
        )
        assert isinstance(part, ForwardOperator)

    @law(BOXES)
    def test_gaussians_in_closed_form(self, case: Case) -> None:
        """Σ w exp(-|u - c|² / 2σ²) / (2πσ²) at pixel u, with c = (R x)[:2] - origin: the law that
        sees every convention.
        """
        part, density, views, _ = self._draw(case)
        image = part(density, views)
        assert image.shape == (case.rows, case.box, case.box)
        expected = density.projection(views, part.scene)
        assert difference(image, expected) < self.tolerance

    @law(BOXES)
    def test_linear_in_the_density(self, case: Case) -> None:
        """A(aρ + bσ) = a A(ρ) + b A(σ), in training too for equal random numbers; and A(0) = 0."""
        part, one, views, generator = self._draw(case)
        two = scenes.gaussians(part.scene, generator)

        def mixed(x: Tensor) -> Tensor:
            return 0.7 * one(x) - 2.0 * two(x)

        def nothing(x: Tensor) -> Tensor:
            return torch.zeros_like(x[..., 0])

        def image(density: Callable[[Tensor], Tensor]) -> Tensor:
            return part(
                density,
                views,
                generator=case.generator(),
            )

        for training in (False, True):
            part.train(training)
            combined = 0.7 * image(one) - 2.0 * image(two)
            assert difference(image(mixed), combined) < ROUNDING
            assert image(nothing).abs().max() == 0

    @law(BOXES)
    def test_gradient_reaches_the_density(self, case: Case) -> None:
        """d⟨A(aρ), w⟩/da = ⟨A(ρ), w⟩, without which nothing would learn."""
        part, density, views, generator = self._draw(case)
        a = torch.ones(
            (),
            dtype=torch.float64,
            requires_grad=True,
        )
        image = part(lambda x: a * density(x), views)
        w = torch.randn(
            image.shape,
            generator=generator,
            dtype=torch.float64,
        )
        slope = gradient(image * w, a)
        expected = (image.detach() * w).sum()
        assert difference(slope, expected) < 1e-8  # the two sums may cancel by some hundred

    @law(BOXES)
    def test_equivariant(self, case: Case) -> None:
        """A(ρ∘g⁻¹; R) = A(ρ; R g): turning the density is turning the pose. Blind to half pixels,
        shift signs and swapped axes.
        """
        part, density, views, generator = self._draw(case)
        turn = rotations.random(1, generator=generator)[0]
        posed = dataclasses.replace(views, rotation=views.rotation @ turn)
        image_of_turned = part(density.rotated(turn), views)
        assert difference(image_of_turned, part(density, posed)) < self.tolerance

    @law(BOXES)
    def test_shift_moves_the_image(self, case: Case) -> None:
        """An origin of (a, b) whole pixels moves the image by (-a, -b) whole pixels."""
        part, density, views, generator = self._draw(case)
        a, b = torch.randint(
            -2,
            3,
            (2,),
            generator=generator,
        ).tolist()
        pixels = torch.tensor([a, b], dtype=torch.float64)
        origin = views.origin + pixels * case.pixel_size
        moved = dataclasses.replace(views, origin=origin)
        image = part(density, moved)
        expected = part(density, views).roll((-b, -a), (1, 2))
        # what rolls around an edge is not compared
        inner = slice(2, -2)
        difference_inside = difference(
            image[:, inner, inner],
            expected[:, inner, inner],
        )
        assert difference_inside < self.tolerance

    @law(BOXES)
    def test_pixels_sum_to_the_integral(self, case: Case) -> None:
        """Σ pixels × pixel area = ∫ρ, at every pose. Shifts stay below half a pixel, so that
        nothing leaves the image.
        """
        part, density, views, _ = self._draw(case, shift=0.5)
        image = part(density, views)
        total = image.sum((1, 2)) * case.pixel_size**2
        expected = torch.full_like(total, density.integral)
        assert difference(total, expected) < self.tolerance

    @law(BOXES)
    def test_quarter_turns(self, case: Case) -> None:
        """Turning by quarters about the beam turns the image about pixel D // 2; a half turn about
        x or y mirrors it.
        """
        part, density, views, _ = self._draw(case)
        image = part(density, views)
        inner = slice(1 - case.box % 2, None)  # row and column 0 of an even box have no partner
        quarter = torch.tensor(QUARTER_TURN, dtype=torch.float64)
        for turns in (1, 2, 3):
            turn = torch.linalg.matrix_power(quarter, turns)
            turned = part(density, _turned_views(views, turn))
            expected = _turned_image(image, turns)
            error = difference(turned[:, inner, inner], expected[:, inner, inner])
            assert error < self.tolerance, f"{turns} quarter turns"
        for axis, signs in HALF_TURNS.items():
            turn = torch.diag(torch.tensor(signs, dtype=torch.float64))
            turned = part(density, _turned_views(views, turn))
            expected = _mirrored_image(image, axis)
            error = difference(turned[:, inner, inner], expected[:, inner, inner])
            assert error < self.tolerance, f"mirrored along {axis}"

    @law(BOXES)
    def test_batch_order_does_not_matter(self, case: Case) -> None:
        """Views in another order, or one by one, give the same images."""
        part, density, views, generator = self._draw(case)
        image = part(density, views)
        order = torch.randperm(case.rows, generator=generator)
        shuffled = part(density, views[order])
        assert difference(shuffled, image[order]) < ROUNDING
        alone = [part(density, views[i : i + 1]) for i in range(case.rows)]
        assert difference(torch.cat(alone), image) < ROUNDING

    @law(BOXES)
    def test_rows_have_their_own_density(self, case: Case) -> None:
        """Row b of the density belongs to view b, unless all share one density; a change there
        changes image b alone.
        """
        part, _, views, generator = self._draw(case)
        if isinstance(part, SharedDensityOperator):
            pytest.skip("the operator is a SharedDensityOperator: all views share one density")
        density = scenes.gaussians(
            part.scene,
            generator,
            rows=case.rows,
        )
        image = part(density, views)
        expected = density.projection(views, part.scene)
        assert difference(image, expected) < self.tolerance
        row = case.seed % case.rows
        is_row = torch.arange(case.rows) == row
        factor = 1.0 + is_row.to(torch.float64)[:, None]
        changed = part(lambda x: factor * density(x), views)
        assert difference(changed[~is_row], image[~is_row]) < ROUNDING
        assert difference(changed[row], 2 * image[row]) < ROUNDING

    @law(BOXES)
    def test_random_only_in_training_and_through_the_generator(self, case: Case) -> None:
        """eval() draws nothing; in training the same generator state gives the same image, and the
        global state is untouched.
        """
        part, density, views, _ = self._draw(case)
        before = torch.random.get_rng_state()
        used = case.generator()
        without = part(density, views)
        with_generator = part(density, views, generator=used)
        assert torch.equal(without, with_generator), "the image is random in eval mode"
        unused = case.generator()
        assert torch.equal(used.get_state(), unused.get_state()), (
            "random numbers are drawn in eval mode"
        )
        part.train()
        first = part(
            density,
            views,
            generator=case.generator(),
        )
        second = part(
            density,
            views,
            generator=case.generator(),
        )
        assert torch.equal(first, second), "the same generator state gives different images"
        after = torch.random.get_rng_state()
        assert torch.equal(before, after), "random numbers are drawn from the global state"

    @law(BOXES)
    def test_mask_bounds_the_queries(self, case: Case) -> None:
        """With a mask in the scene, the density further than a voxel from it has no effect, and
        what is inside is seen in full.
        """
        if not self.bounded:
            pytest.skip("the operator does not promise to stay inside the mask")
        mask = _ball(case)
        part = self.new_part(case, case.scene(mask=mask))
        free = self.new_part(case)
        generator = case.generator()
        density = scenes.gaussians(part.scene, generator)
        views = scenes.views(
            part.scene,
            case.rows,
            generator,
            shift=1.5,
        )
        reached = torch.nn.functional.max_pool3d(
            mask[None],
            kernel_size=3,
            stride=1,
            padding=1,
        )

        def inside(x: Tensor) -> Tensor:
            return density(x) * _nearest_voxel(
                mask,
                x,
                case,
            )

        def beyond(x: Tensor) -> Tensor:
            outside = 1 - _nearest_voxel(
                reached[0],
                x,
                case,
            )
            return inside(x) + OUTSIDE_DENSITY * density.integral * outside

        bounded = part(beyond, views)
        assert difference(bounded, free(inside, views)) < self.tolerance


def _turned_views(views: Views, turn: Tensor) -> Views:
    """Poses after a turn of the image plane (and the beam), with shifts that turn along."""
    return dataclasses.replace(
        views,
        rotation=turn @ views.rotation,
        origin=views.origin @ turn[:2, :2].mT,
    )


def _turned_image(image: Tensor, turns: int) -> Tensor:
    """Images turned from x to y about pixel D // 2.

    They are np.rot90(image, -turns), and in even boxes one pixel back into place.
    """
    back = 1 - image.shape[-1] % 2
    for _ in range(turns):
        image = torch.rot90(
            image,
            -1,
            (1, 2),
        ).roll(back, 2)
    return image


def _mirrored_image(image: Tensor, axis: int) -> Tensor:
    """Images mirrored along y (axis 1) or x (axis 2), about pixel D // 2."""
    back = 1 - image.shape[-1] % 2
    return image.flip(axis).roll(back, axis)


def _ball(case: Case) -> Tensor:
    """A mask "D D D": an eccentric ball with a radius of five voxels, well inside the box."""
    axis = torch.arange(case.box, dtype=torch.float64) - case.box // 2
    z = axis[:, None, None] - 2
    y = axis[:, None] + 1
    x = axis - 1
    inside = z**2 + y**2 + x**2 <= 25
    return inside.to(torch.float64)


def _nearest_voxel(
    mask: Tensor,
    x: Tensor,
    case: Case,
) -> Tensor:
    """The mask's value at the voxel nearest to each point "*n 3"; zero outside the box."""
    index = (x / case.pixel_size).round().long() + case.box // 2
    inside = ((index >= 0) & (index < case.box)).all(-1)
    i, j, k = index.clamp(0, case.box - 1).unbind(-1)
    return mask.to(x)[k, j, i] * inside
