"""The contract kit itself, on the other kinds: right parts pass every law, and each wrong one is
caught by the law beside it.
"""

import math
from dataclasses import dataclass

import pytest
import torch
from test_kit import failed
from torch import nn

from instamap.parts import Deformation, Likelihood, Representation
from instamap.plugin.options import Options
from instamap.testing import DeformationLaws, IsometryLaws, LikelihoodLaws, RepresentationLaws

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
        return -0.5 * square.sum(1) / self.variance - 0.5 * square.shape[1] * math.log(
            2 * math.pi * self.variance
        )

    def sample(self, predicted, views, *, generator=None):
        return predicted + self.variance**0.5 * torch.randn(
            predicted.shape, generator=generator, dtype=predicted.dtype
        )

    def log_prob_premultiplied(self, projection, predicted, observed, views):
        return (
            (observed * projection).flatten(1).sum(1) - 0.5 * predicted.square().flatten(1).sum(1)
        ) / self.variance


class VarianceForDeviation(White):
    def sample(self, predicted, views, *, generator=None):
        return predicted + self.variance * torch.randn(
            predicted.shape, generator=generator, dtype=predicted.dtype
        )


class WeakSamples(White):
    def sample(self, predicted, views, *, generator=None):
        return super().sample(0.9 * predicted, views, generator=generator)


class WrongSign(White):
    def log_prob(self, predicted, observed, views):
        return super().log_prob(-predicted, observed, views)


class Unnormalised(White):
    """Forgets the 2π: only the entropy can tell."""

    def log_prob(self, predicted, observed, views):
        return super().log_prob(predicted, observed, views) + 0.5 * observed[0].numel() * math.log(
            2 * math.pi
        )


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
    """Correlates the premultiplied image with the prediction, which has been through the CTF
    already.
    """

    def log_prob_premultiplied(self, projection, predicted, observed, views):
        return super().log_prob_premultiplied(predicted, predicted, observed, views)


class WrongNoiseVariance(White):
    """Tells the normal equations the standard deviation."""

    quadratic = True

    def noise_variance(self, views):
        return torch.full(
            (len(views), self.scene.box // 2 + 1), self.variance**0.5, dtype=torch.float64
        )


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
    WrongNoiseVariance: {"quadratic_form"},
}


@pytest.mark.parametrize("made", LIKELIHOOD, ids=lambda made: made.__name__)
def test_likelihood(made):
    assert failed(LikelihoodLaws, made, (8, 9), entropy=entropy) >= LIKELIHOOD[made]


def test_declared_invariance_that_does_not_hold():
    assert "declared_invariances" not in failed(LikelihoodLaws, White, (8, 9))
    assert "declared_invariances" in failed(LikelihoodLaws, White, (8, 9), invariances=("scale",))
    assert "declared_invariances" in failed(LikelihoodLaws, White, (8, 9), invariances=("offset",))
