"""The laws of forward operators: linear, equivariant, and right: Gaussians land where the
conventions say, at their size.
"""

import dataclasses
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from instamap.geometry import rotations
from instamap.parts import ForwardOperator
from instamap.testing import scenes
from instamap.testing.part import PartLaws, difference, gradient, law

# The smallest boxes that hold the Gaussians of `scenes.gaussians` to 1e-7.
BOXES = (22, 23, 24, 25)
# What must hold whatever the discretisation, since the same points are summed: some hundred
# roundings of float64.
ROUNDING = 1e-10


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

    def evaluate(self, part, case, dtype):
        # These boxes are small, so the Gaussians are too: no density lies where the operator stops
        # looking.
        g = case.generator()
        wide = scenes.gaussians(part.scene, case.generator())
        density = scenes.Gaussians(0.3 * wide.centres, wide.weights, 0.35 * wide.sigma)
        return part(density, scenes.views(part.scene, case.rows, g).to(dtype))

    def _draw(self, case, shift=1.5):
        """An operator, four Gaussians without symmetry, and views at any pose, shifted by up to
        `shift` pixels.
        """
        part = self.born(case)
        g = case.generator()
        return (
            part,
            scenes.gaussians(part.scene, g),
            scenes.views(part.scene, case.rows, g, shift=shift),
            g,
        )

    def test_is_a_forward_operator(self):
        assert isinstance(self.born(scenes.Case(0, 22, 1.0, 2)), ForwardOperator)

    @law(BOXES)
    def test_gaussians_in_closed_form(self, case):
        """Σ w exp(-|u - c|² / 2σ²) / (2πσ²) at pixel u, with c = (R x)[:2] - origin: the law that
        sees every convention.
        """
        part, density, views, _ = self._draw(case)
        image = part(density, views)
        assert image.shape == (case.rows, case.box, case.box)
        assert difference(image, density.projection(views, part.scene)) < self.tolerance

    @law(BOXES)
    def test_linear_in_the_density(self, case):
        """A(aρ + bσ) = a A(ρ) + b A(σ), in training too for the same random numbers; and A(0) = 0."""
        part, one, views, g = self._draw(case)
        two = scenes.gaussians(part.scene, g)
        for training in (False, True):
            part.train(training)

            def image(density, part=part):
                return part(density, views, generator=case.generator())

            mixed = image(lambda x: 0.7 * one(x) - 2.0 * two(x))
            assert difference(mixed, 0.7 * image(one) - 2.0 * image(two)) < ROUNDING
            assert image(lambda x: torch.zeros_like(x[..., 0])).abs().max() == 0

    @law(BOXES)
    def test_gradient_reaches_the_density(self, case):
        """d⟨A(aρ), w⟩/da = ⟨A(ρ), w⟩, without which nothing would learn."""
        part, density, views, g = self._draw(case)
        a = torch.ones((), dtype=torch.float64, requires_grad=True)
        image = part(lambda x: a * density(x), views)
        w = torch.randn(image.shape, generator=g, dtype=torch.float64)
        assert (
            difference(gradient(image * w, a), (image.detach() * w).sum()) < 1e-8
        )  # the two sums may cancel by some hundred

    @law(BOXES)
    def test_equivariant(self, case):
        """A(ρ∘g⁻¹; R) = A(ρ; R g): turning the density is turning the pose. Blind to half pixels,
        shift signs and swapped axes.
        """
        part, density, views, g = self._draw(case)
        turn = rotations.random(1, generator=g)[0]
        posed = dataclasses.replace(views, rotation=views.rotation @ turn)
        assert difference(part(density.rotated(turn), views), part(density, posed)) < self.tolerance

    @law(BOXES)
    def test_shift_moves_the_image(self, case):
        """An origin of (a, b) whole pixels moves the image by (-a, -b) whole pixels."""
        part, density, views, g = self._draw(case)
        a, b = (int(t) for t in torch.randint(-2, 3, (2,), generator=g))
        moved = dataclasses.replace(
            views, origin=views.origin + torch.tensor([a, b], dtype=torch.float64) * case.pixel_size
        )
        expected = part(density, views).roll((-b, -a), (1, 2))
        inner = (
            slice(None),
            slice(2, -2),
            slice(2, -2),
        )  # what rolls around an edge is not compared
        assert difference(part(density, moved)[inner], expected[inner]) < self.tolerance

    @law(BOXES)
    def test_pixels_sum_to_the_integral(self, case):
        """Σ pixels × pixel area = ∫ρ, at every pose. Shifts stay below half a pixel, so that
        nothing leaves the image.
        """
        part, density, views, _ = self._draw(case, shift=0.5)
        total = part(density, views).sum((1, 2)) * case.pixel_size**2
        assert difference(total, torch.full_like(total, density.integral)) < self.tolerance

    @law(BOXES)
    def test_quarter_turns(self, case):
        """Turning by quarters about the beam turns the image about pixel D // 2; a half turn about
        x or y mirrors it.
        """
        part, density, views, _ = self._draw(case)
        image = part(density, views)
        inner = slice(1 - case.box % 2, None)  # row and column 0 of an even box have no partner
        quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)  # x to y
        for turns in (1, 2, 3):
            turn = torch.linalg.matrix_power(quarter, turns)
            seen = part(density, _turned(views, turn))
            assert (
                difference(seen[:, inner, inner], _rot(image, turns)[:, inner, inner])
                < self.tolerance
            ), f"{turns} quarter turns"
        for axis, signs in ((1, [1.0, -1, -1]), (2, [-1.0, 1, -1])):
            seen = part(
                density, _turned(views, torch.diag(torch.tensor(signs, dtype=torch.float64)))
            )
            assert (
                difference(seen[:, inner, inner], _mirror(image, axis)[:, inner, inner])
                < self.tolerance
            ), f"mirrored along {axis}"

    @law(BOXES)
    def test_batch_order_does_not_matter(self, case):
        """Views in another order, or one by one, give the same images."""
        part, density, views, g = self._draw(case)
        image = part(density, views)
        order = torch.randperm(case.rows, generator=g)
        assert difference(part(density, views[order]), image[order]) < ROUNDING
        assert (
            difference(
                torch.cat([part(density, views[i : i + 1]) for i in range(case.rows)]), image
            )
            < ROUNDING
        )

    @law(BOXES)
    def test_rows_have_their_own_density(self, case):
        """Row b of the density belongs to view b, where the operator `deforms`; a change there
        changes image b alone.
        """
        part, _, views, g = self._draw(case)
        if not part.deforms:
            pytest.skip("the operator declares deforms = False: all views share one density")
        density = scenes.gaussians(part.scene, g, rows=case.rows)
        image = part(density, views)
        assert difference(image, density.projection(views, part.scene)) < self.tolerance
        row = case.seed % case.rows
        others = torch.arange(case.rows) != row
        factor = 1.0 + (torch.arange(case.rows) == row).to(torch.float64)[:, None]
        changed = part(lambda x: factor * density(x), views)
        assert difference(changed[others], image[others]) < ROUNDING
        assert difference(changed[row], 2 * image[row]) < ROUNDING

    @law(BOXES)
    def test_random_only_in_training_and_through_the_generator(self, case):
        """eval() draws nothing; in training the same generator state gives the same image, and the
        global state is untouched.
        """
        part, density, views, _ = self._draw(case)
        before = torch.random.get_rng_state()
        used = case.generator()
        assert torch.equal(part(density, views), part(density, views, generator=used)), (
            "the image is random in eval mode"
        )
        assert torch.equal(used.get_state(), case.generator().get_state()), (
            "random numbers are drawn in eval mode"
        )
        part.train()
        images = [part(density, views, generator=case.generator()) for _ in range(2)]
        assert torch.equal(*images), "the same generator state gives different images"
        assert torch.equal(before, torch.random.get_rng_state()), (
            "random numbers are drawn from the global state"
        )

    @law(BOXES)
    def test_mask_bounds_the_queries(self, case):
        """With a mask in the scene, the density further than a voxel from it has no effect, and
        what is inside is seen in full.
        """
        if not self.bounded:
            pytest.skip("the operator does not promise to stay inside the mask")
        mask = _ball(case)
        part = self.born(case, case.scene(mask=mask))
        free = self.born(case)
        g = case.generator()
        density = scenes.gaussians(part.scene, g)
        views = scenes.views(part.scene, case.rows, g, shift=1.5)
        near = torch.nn.functional.max_pool3d(mask[None], 3, 1, 1)[0]

        def inside(x):
            return density(x) * _nearest(mask, x, case)

        def beyond(x):
            return inside(x) + 1e3 * density.integral * (1 - _nearest(near, x, case))

        assert difference(part(beyond, views), free(inside, views)) < self.tolerance


def _turned(views, turn: Tensor):
    """Poses after a turn of the image plane (and the beam), with shifts that turn along."""
    return dataclasses.replace(
        views, rotation=turn @ views.rotation, origin=views.origin @ turn[:2, :2].mT
    )


def _rot(image: Tensor, turns: int) -> Tensor:
    """Images turned from x to y about pixel D // 2: np.rot90(image, -turns), and in even boxes one
    pixel back into place.
    """
    for _ in range(turns):
        image = torch.rot90(image, -1, (1, 2)).roll(1 - image.shape[-1] % 2, 2)
    return image


def _mirror(image: Tensor, axis: int) -> Tensor:
    """Images mirrored along y (axis 1) or x (axis 2), about pixel D // 2."""
    return image.flip(axis).roll(1 - image.shape[-1] % 2, axis)


def _ball(case: scenes.Case) -> Tensor:
    """A mask "D D D": an eccentric ball with a radius of five voxels, well inside the box."""
    a = torch.arange(case.box, dtype=torch.float64) - case.box // 2
    return ((a[:, None, None] - 2) ** 2 + (a[:, None] + 1) ** 2 + (a - 1) ** 2 <= 25).to(
        torch.float64
    )


def _nearest(mask: Tensor, x: Tensor, case: scenes.Case) -> Tensor:
    """The mask's value at the voxel nearest to each point "*n 3"; zero outside the box."""
    i = (x / case.pixel_size).round().long() + case.box // 2
    valid = ((i >= 0) & (i < case.box)).all(-1)
    i = i.clamp(0, case.box - 1)
    return mask.to(x)[i[..., 2], i[..., 1], i[..., 0]] * valid
