"""The contract kit itself, on forward operators: a right one passes every law, and each wrong one
is caught by the laws beside it.
"""

import pytest
import torch
from support.kit import failed
from torch import Tensor, nn

from instamap.parts import ForwardOperator
from instamap.testing import ForwardLaws


class Line(ForwardOperator):
    """A line integral without any trick; each mutant below overrides one step of it."""

    def __init__(self, options, scene):
        super().__init__(options, scene)
        edge = torch.arange(scene.box, dtype=torch.float64)
        z, y, x = torch.meshgrid(edge, edge, edge, indexing="ij")
        self.register_buffer(
            "frame",
            (torch.stack([x, y, z], -1) - scene.box // 2).reshape(-1, 3) * scene.pixel_size,
            persistent=False,
        )
        mask = torch.ones(3 * (scene.box,)) if scene.mask is None else scene.mask
        self.register_buffer(
            "near", nn.functional.max_pool3d(mask[None], 3, 1, 1)[0], persistent=False
        )

    def points(self, views) -> Tensor:
        """Points "B D·D·D 3" in the particle frame."""
        frame = self.frame.to(views.rotation)
        return (frame + nn.functional.pad(views.origin, (0, 1))[:, None]) @ views.rotation

    def values(self, density, x, generator) -> Tensor:
        i = (x / self.scene.pixel_size).round().long() + self.scene.box // 2
        valid = ((i >= 0) & (i < self.scene.box)).all(-1)
        i = i.clamp(0, self.scene.box - 1)
        return density(x) * self.near.to(x)[i[..., 2], i[..., 1], i[..., 0]] * valid

    def forward(self, density, views, *, generator=None):
        box = self.scene.box
        return (
            self.values(density, self.points(views), generator).reshape(-1, box, box, box).sum(1)
            * self.scene.pixel_size
        )


class TransposedRotation(Line):
    def points(self, views):
        return (
            self.frame.to(views.rotation) + nn.functional.pad(views.origin, (0, 1))[:, None]
        ) @ views.rotation.mT


class ShiftSign(Line):
    def points(self, views):
        return (
            self.frame.to(views.rotation) - nn.functional.pad(views.origin, (0, 1))[:, None]
        ) @ views.rotation


class ShiftAfterRotation(Line):
    def points(self, views):
        return (
            self.frame.to(views.rotation) @ views.rotation
            + nn.functional.pad(views.origin, (0, 1))[:, None]
        )


class SwappedAxes(Line):
    def forward(self, density, views, *, generator=None):
        return super().forward(density, views).mT


class HalfPixel(Line):
    def points(self, views):
        half = torch.tensor([0.5, 0.5, 0.0]).to(views.rotation) * self.scene.pixel_size
        return super().points(views) + (half @ views.rotation)[:, None]


class CentreOfEvenBox(Line):
    """Takes (D - 1) / 2 for the origin, so it is right in odd boxes."""

    def points(self, views):
        half = torch.tensor([0.5, 0.5, 0.0]).to(views.rotation) * self.scene.pixel_size
        return super().points(views) + (half @ views.rotation)[:, None] * (1 - self.scene.box % 2)


class MirroredHand(Line):
    def points(self, views):
        return super().points(views) * torch.tensor([-1.0, 1, 1]).to(views.rotation)


class NoDepthStep(Line):
    def forward(self, density, views, *, generator=None):
        return super().forward(density, views) / self.scene.pixel_size


class TooShort(Line):
    """Integrates over half of the depth only."""

    def values(self, density, x, generator):
        return super().values(density, x, generator) * (self.frame[:, 2] >= 0)


class Clamped(Line):
    def values(self, density, x, generator):
        return super().values(density, x, generator).clamp(min=0)


class Detached(Line):
    def forward(self, density, views, *, generator=None):
        return super().forward(density, views).detach()


class FirstRowForAll(Line):
    """Believes that one density is enough, and does not say so."""

    def values(self, density, x, generator):
        one = super().values
        return torch.cat(
            [one(density, row[None].expand(len(x), -1, -1), generator)[:1] for row in x]
        )


class JitterInEval(Line):
    def points(self, views):
        x = super().points(views)
        return x + 1e-7 * torch.rand(x.shape, dtype=x.dtype)


class JitterFromGlobalState(Line):
    def points(self, views):
        x = super().points(views)
        return x + torch.rand(x.shape, dtype=x.dtype) - 0.5 if self.training else x


class LooksEverywhere(Line):
    def values(self, density, x, generator):
        return density(x)


class NormalisedBatch(Line):
    def forward(self, density, views, *, generator=None):
        image = super().forward(density, views)
        return image * (1 + 1e-4 * image.square().mean())


CLOSED = {"gaussians_in_closed_form", "rows_have_their_own_density"}
FORWARD = {
    Line: set(),
    TransposedRotation: CLOSED | {"equivariant", "quarter_turns"},
    ShiftSign: CLOSED | {"shift_moves_the_image"},
    ShiftAfterRotation: CLOSED | {"equivariant", "shift_moves_the_image", "quarter_turns"},
    SwappedAxes: CLOSED | {"shift_moves_the_image", "quarter_turns"},
    HalfPixel: CLOSED | {"quarter_turns"},
    CentreOfEvenBox: CLOSED | {"quarter_turns"},
    MirroredHand: CLOSED | {"equivariant"},
    NoDepthStep: CLOSED | {"pixels_sum_to_the_integral"},
    TooShort: CLOSED | {"pixels_sum_to_the_integral", "quarter_turns"},
    Clamped: {"linear_in_the_density"},
    Detached: {"gradient_reaches_the_density"},
    FirstRowForAll: {"rows_have_their_own_density"},
    JitterInEval: {"random_only_in_training_and_through_the_generator"},
    JitterFromGlobalState: {
        "linear_in_the_density",
        "random_only_in_training_and_through_the_generator",
    },
    LooksEverywhere: {"mask_bounds_the_queries"},
    NormalisedBatch: {"linear_in_the_density", "batch_order_does_not_matter"},
}


@pytest.mark.parametrize("made", FORWARD, ids=lambda made: made.__name__)
def test_forward(made):
    assert failed(ForwardLaws, made, (22, 23), tolerance=1e-6) >= FORWARD[made]


@pytest.mark.parametrize(
    "made", [HalfPixel, CentreOfEvenBox, ShiftSign, SwappedAxes], ids=lambda made: made.__name__
)
def test_equivariance_alone_is_blind(made):
    """Half a pixel, the shift's sign and swapped axes are consistent errors: the closed form sees
    them, equivariance can not.
    """
    broken = failed(ForwardLaws, made, (22, 23), tolerance=1e-6)
    assert "equivariant" not in broken
    assert "gaussians_in_closed_form" in broken
