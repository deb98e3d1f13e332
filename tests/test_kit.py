"""The contract kit itself: right parts pass every law, and every wrong part here is caught by the law named beside it."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from instamap.options import Options
from instamap.protocols import Deformation, ForwardOperator, Likelihood, Representation
from instamap.testing import DeformationLaws, ForwardLaws, IsometryLaws, LikelihoodLaws, RepresentationLaws
from instamap.testing.scenes import Case


def failed(laws: type, made: type, boxes: tuple[int, int], **more) -> set[str]:
    """The laws that `made(options, scene)` breaks in an odd and an even box, without "test_"."""
    make = lambda self, scene: made(made.Options(), scene)
    kit = type("Kit", (laws,), {"make": make, **more})()
    return {name.removeprefix("test_") for name in dir(kit) if name.startswith("test_") and not _holds(kit, getattr(kit, name), boxes)}


def _holds(kit, law, boxes) -> bool:
    draws = [(Case(seed, box, 1.3, 3),) for seed, box in enumerate(boxes)]
    if not hasattr(law, "hypothesis"):
        draws = [()]
    elif law.__name__ == "test_any_leading_shape":
        draws = [(*case, shape) for case in draws for shape in ((), (0,), (3, 2))]
    try:
        for draw in draws:
            law.hypothesis.inner_test(kit, *draw) if draw else law()
    except pytest.skip.Exception:
        return True
    except AssertionError:
        return False
    return True


# Forward operators


class Line(ForwardOperator):
    """A line integral without any trick; each mutant below overrides one step of it."""

    def __init__(self, options, scene):
        super().__init__(options, scene)
        edge = torch.arange(scene.box, dtype=torch.float64)
        z, y, x = torch.meshgrid(edge, edge, edge, indexing="ij")
        self.register_buffer("frame", (torch.stack([x, y, z], -1) - scene.box // 2).reshape(-1, 3) * scene.pixel_size, persistent=False)
        mask = torch.ones(3 * (scene.box,)) if scene.mask is None else scene.mask
        self.register_buffer("near", nn.functional.max_pool3d(mask[None], 3, 1, 1)[0], persistent=False)

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
        return self.values(density, self.points(views), generator).reshape(-1, box, box, box).sum(1) * self.scene.pixel_size


class TransposedRotation(Line):
    def points(self, views):
        return (self.frame.to(views.rotation) + nn.functional.pad(views.origin, (0, 1))[:, None]) @ views.rotation.mT


class ShiftSign(Line):
    def points(self, views):
        return (self.frame.to(views.rotation) - nn.functional.pad(views.origin, (0, 1))[:, None]) @ views.rotation


class ShiftAfterRotation(Line):
    def points(self, views):
        return self.frame.to(views.rotation) @ views.rotation + nn.functional.pad(views.origin, (0, 1))[:, None]


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
        return torch.cat([one(density, row[None].expand(len(x), -1, -1), generator)[:1] for row in x])


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
    JitterFromGlobalState: {"linear_in_the_density", "random_only_in_training_and_through_the_generator"},
    LooksEverywhere: {"mask_bounds_the_queries"},
    NormalisedBatch: {"linear_in_the_density", "batch_order_does_not_matter"},
}


@pytest.mark.parametrize("made", FORWARD, ids=lambda made: made.__name__)
def test_forward(made):
    assert failed(ForwardLaws, made, (22, 23), tolerance=1e-6) >= FORWARD[made]


@pytest.mark.parametrize("made", [HalfPixel, CentreOfEvenBox, ShiftSign, SwappedAxes], ids=lambda made: made.__name__)
def test_equivariance_alone_is_blind(made):
    """Half a pixel, the shift's sign and swapped axes are consistent errors: the closed form sees them, equivariance can not."""
    broken = failed(ForwardLaws, made, (22, 23), tolerance=1e-6)
    assert "equivariant" not in broken
    assert "gaussians_in_closed_form" in broken


# Representations


class Wave(Representation):
    """a sin(k·x) + b, summed over waves; each mutant overrides one step."""

    def __init__(self, options, scene):
        super().__init__(options, scene)
        self.k = nn.Parameter(torch.randn(3, 5) / scene.radius)
        self.a = nn.Parameter(torch.randn(5))
        self.register_buffer("b", torch.tensor(0.2))

    def forward(self, x):
        return torch.sin(x @ self.k) @ self.a + self.b


class SeesOtherPoints(Wave):
    def forward(self, x):
        value = super().forward(x)
        return value - value.mean() if value.numel() else value


class OnlyLists(Wave):
    def forward(self, x):
        value = super().forward(x)
        return value.reshape(len(value), -1)[:, 0] if value.ndim else value[None]


class StrayTensor(Wave):
    def __init__(self, options, scene):
        super().__init__(options, scene)
        self.tables = {"coarse": [torch.zeros(3)]}


class ForgottenInCheckpoint(Wave):
    def __init__(self, options, scene):
        super().__init__(options, scene)
        self.register_buffer("b", torch.rand(()), persistent=False)


class UnusedParameter(Wave):
    def __init__(self, options, scene):
        super().__init__(options, scene)
        self.spare = nn.Parameter(torch.zeros(2))


class NotANumberAtTheOrigin(Wave):
    def forward(self, x):
        return super().forward(x) + torch.sqrt((x**2).sum(-1))


class Overflows(Wave):
    def forward(self, x):
        return super().forward(x) + torch.exp(0.1 * x.square().sum(-1) / self.scene.radius**2)


class DetachedFromPosition(Wave):
    def forward(self, x):
        return super().forward(x.detach())


class SinglePrecision(Wave):
    def forward(self, x):
        return super().forward(x.float().to(x.dtype))


class CancelsInSinglePrecision(Wave):
    def forward(self, x):
        return (super().forward(x) + 1e5) - 1e5


class Dropout(Wave):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


@dataclass
class _Thawed:
    floor: str = "none"


class ThawedOptions(Wave):
    Options = _Thawed


REPRESENTATION = {
    Wave: set(),
    SeesOtherPoints: {"points_do_not_see_each_other"},
    OnlyLists: {"any_leading_shape"},
    StrayTensor: {"every_tensor_is_a_parameter_or_a_buffer"},
    ForgottenInCheckpoint: {"state_dict_round_trip"},
    UnusedParameter: {"gradient_reaches_every_parameter"},
    NotANumberAtTheOrigin: {"finite_everywhere"},
    Overflows: {"finite_everywhere"},
    DetachedFromPosition: {"gradient_with_respect_to_position"},
    SinglePrecision: {"gradient_with_respect_to_position"},
    CancelsInSinglePrecision: {"float32_and_float64_agree"},
    Dropout: {"is_a_function"},
    ThawedOptions: {"options_can_be_typed_and_recorded"},
}


@pytest.mark.parametrize("made", REPRESENTATION, ids=lambda made: made.__name__)
def test_representation(made):
    assert failed(RepresentationLaws, made, (8, 9)) >= REPRESENTATION[made]


# Deformations


class Drift(Deformation):
    """x + z, a translation for each particle."""

    def __init__(self, options, scene):
        super().__init__(options, scene)
        self.table = nn.Parameter(torch.zeros(scene.count, 3))

    def latent(self, views):
        return self.table[views.index]

    def forward(self, x, z):
        return x + z[:, None]


class Shear(Drift):
    """An innocent deformation, but no isometry."""

    def forward(self, x, z):
        return x + z[:, None] * x[..., :1]


class MovedAtBirth(Drift):
    def forward(self, x, z):
        return super().forward(x, z) + 1e-3


class ByPlaceInBatch(Drift):
    def latent(self, views):
        return self.table[: len(views)]


class SeesThePose(Drift):
    def latent(self, views):
        return super().latent(views) * views.rotation[:, 0, :1]


class MeanOfBatch(Drift):
    def forward(self, x, z):
        return x + z.mean(0)


class CentresThePoints(Drift):
    def forward(self, x, z):
        return x + z[:, None] * (x.mean(1, keepdim=True) if x.shape[1] else 1)


class DetachedCoordinates(Drift):
    def forward(self, x, z):
        return x + self.table.mean() + z.detach()[:, None]


class Folds(Drift):
    def forward(self, x, z):
        return x + 1e5 * z[:, None] * x[..., :1]


class SameForAll(Drift):
    per_particle = False


class NoStepSize(Drift):
    Options = Options


class MirrorImage(Drift):
    def forward(self, x, z):
        return -x + z[:, None]


DEFORMATION = {
    Drift: set(),
    Shear: set(),
    MovedAtBirth: {"identity_at_birth"},
    ByPlaceInBatch: {"latent_belongs_to_the_particle"},
    SeesThePose: {"latent_belongs_to_the_particle"},
    MeanOfBatch: {"rows_are_independent"},
    CentresThePoints: {"points_do_not_see_each_other"},
    DetachedCoordinates: {"gradient_reaches_the_coordinates"},
    Folds: {"does_not_fold_space_near_birth"},
    SameForAll: {"latent_belongs_to_the_particle"},
    NoStepSize: {"is_a_deformation"},
}


@pytest.mark.parametrize("made", DEFORMATION, ids=lambda made: made.__name__)
def test_deformation(made):
    assert failed(DeformationLaws, made, (8, 9)) >= DEFORMATION[made]


@pytest.mark.parametrize(("made", "expected"), [(Drift, False), (Shear, True), (MirrorImage, True)])
def test_isometry(made, expected):
    assert ("distances_are_preserved" in failed(IsometryLaws, made, (8, 9))) is expected


# Likelihoods


class White(Likelihood):
    """White noise of variance 0.5; each mutant overrides one step."""

    premultiplied = True

    @property
    def variance(self) -> float:
        return 0.5

    def log_prob(self, predicted, observed, views):
        square = (observed - predicted).square().flatten(1)
        return -0.5 * square.sum(1) / self.variance - 0.5 * square.shape[1] * math.log(2 * math.pi * self.variance)

    def sample(self, predicted, views, *, generator=None):
        return predicted + self.variance**0.5 * torch.randn(predicted.shape, generator=generator, dtype=predicted.dtype)

    def log_prob_premultiplied(self, projection, predicted, observed, views):
        return ((observed * projection).flatten(1).sum(1) - 0.5 * predicted.square().flatten(1).sum(1)) / self.variance


class VarianceForDeviation(White):
    def sample(self, predicted, views, *, generator=None):
        return predicted + self.variance * torch.randn(predicted.shape, generator=generator, dtype=predicted.dtype)


class WeakSamples(White):
    def sample(self, predicted, views, *, generator=None):
        return super().sample(0.9 * predicted, views, generator=generator)


class WrongSign(White):
    def log_prob(self, predicted, observed, views):
        return super().log_prob(-predicted, observed, views)


class Unnormalised(White):
    """Forgets the 2π: only the entropy can tell."""

    def log_prob(self, predicted, observed, views):
        return super().log_prob(predicted, observed, views) + 0.5 * observed[0].numel() * math.log(2 * math.pi)


class MixedRows(White):
    def log_prob(self, predicted, observed, views):
        return super().log_prob(predicted, observed, views).mean().expand(len(predicted))


class DividesByNorm(White):
    def log_prob(self, predicted, observed, views):
        norm = predicted.square().sum((1, 2), keepdim=True).sqrt()
        return super().log_prob(predicted / norm, observed, views)


class GlobalNoise(White):
    def sample(self, predicted, views, *, generator=None):
        return super().sample(predicted, views)


class DetachedPrediction(White):
    def log_prob(self, predicted, observed, views):
        return super().log_prob(0.9 * predicted + 0.1 * predicted.detach(), observed, views)


class TransferTwice(White):
    """Correlates the premultiplied image with the prediction, which has been through the CTF already."""

    def log_prob_premultiplied(self, projection, predicted, observed, views):
        return super().log_prob_premultiplied(predicted, predicted, observed, views)


def entropy(self, part, views):
    return 0.5 * part.scene.box**2 * math.log(2 * math.pi * math.e * 0.5)


LIKELIHOOD = {
    White: set(),
    VarianceForDeviation: {"samples_follow_log_prob", "entropy"},
    WeakSamples: {"score_of_samples_has_mean_zero"},
    WrongSign: {"score_of_samples_has_mean_zero", "truth_is_most_probable"},
    Unnormalised: {"entropy"},
    MixedRows: {"rows_are_independent"},
    DividesByNorm: {"finite_at_zero_images"},
    GlobalNoise: {"sample_is_random_only_through_the_generator"},
    DetachedPrediction: {"gradient_reaches_the_prediction"},
    TransferTwice: {"premultiplied_images"},
}


@pytest.mark.parametrize("made", LIKELIHOOD, ids=lambda made: made.__name__)
def test_likelihood(made):
    assert failed(LikelihoodLaws, made, (8, 9), entropy=entropy) >= LIKELIHOOD[made]


def test_declared_invariance_that_does_not_hold():
    assert "declared_invariances" not in failed(LikelihoodLaws, White, (8, 9))
    assert "declared_invariances" in failed(LikelihoodLaws, White, (8, 9), invariances=("scale",))
    assert "declared_invariances" in failed(LikelihoodLaws, White, (8, 9), invariances=("offset",))
