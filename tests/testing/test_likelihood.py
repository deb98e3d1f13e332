"""The contract kit itself, on likelihoods: a right one passes every law.

Each wrong one is caught by the law beside it.
"""

import math

import pytest
import torch
from support.kit import failed

from instamap.parts import GaussianLikelihood, PremultipliedLikelihood
from instamap.testing import LikelihoodLaws


class White(PremultipliedLikelihood):
    """White noise of variance 0.5; each mutant overrides one step."""

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


class WrongNoiseVariance(White, GaussianLikelihood):
    """Tells the normal equations the standard deviation."""

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
