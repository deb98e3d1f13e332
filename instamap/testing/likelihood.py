"""The laws of likelihoods: log_prob and sample describe one distribution, rows are independent,
invariances are kept.
"""

import math
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from instamap.geometry import grids
from instamap.parts import GaussianLikelihood, Likelihood, PremultipliedLikelihood
from instamap.scene import Views
from instamap.testing import scenes
from instamap.testing.part import SMALL_BOXES, PartLaws, difference, gradient, law
from instamap.testing.scenes import Case

SAMPLES = 1000

STANDARD_ERRORS = 6.0
"""Standard errors by which means of samples may differ: one false alarm in 5e8 laws."""

ROUNDING = 1e-9
"""Some hundred roundings of float64, and sums over pixels that partly cancel."""

SCALE = 2.5  # of a prediction, which some likelihoods do not see
OFFSET = 1.7


class LikelihoodLaws(PartLaws):
    """Subclass with `name = "..."` of a registered likelihood, or override `make(scene)`.

    invariances: changes of the prediction that log_prob does not see, out of "scale" (a positive
    factor) and "offset" (a constant). Override `entropy` where it has a closed form (of a
    `GaussianLikelihood` it is known).
    """

    kind = "likelihood"
    invariances: ClassVar[tuple[str, ...]] = ()

    def entropy(self, part: Likelihood, views: Views) -> Tensor | None:
        """-E[log p(y)] "B" in nats of an image of each view.

        None if it is not known or depends on the prediction.
        """
        if not isinstance(part, GaussianLikelihood):
            return None
        variance = _component_variance(part, views)
        of_component = torch.log(2 * math.pi * math.e * variance)
        return 0.5 * of_component.sum((1, 2))

    def evaluate(
        self,
        part: Likelihood,
        case: Case,
        dtype: torch.dtype,
    ) -> Tensor:
        predicted, observed, views = self._draw(case)
        return part.log_prob(
            predicted.float().to(dtype),
            observed.float().to(dtype),
            views.to(dtype),
        )

    def _draw(self, case: Case) -> tuple[Tensor, Tensor, Views]:
        """Predictions and unrelated observations "B D D" of order one, and their views."""
        generator = case.generator()
        shape = (2, case.rows, case.box, case.box)
        predicted, observed = torch.randn(
            shape,
            generator=generator,
            dtype=torch.float64,
        )
        views = scenes.views(
            case.scene(),
            case.rows,
            generator,
        )
        return predicted, observed, views

    def _samples(
        self,
        case: Case,
        *,
        proper: bool = True,
    ) -> tuple[Likelihood, Tensor, Tensor, Views]:
        """A likelihood, one prediction "1 D D", many samples of it "N D D", and the view of all.

        proper: of distributions alone.
        """
        part = self.stirred_part(case)
        predicted, _, views = self._draw(case)
        if proper and not part.proper:
            pytest.skip("the likelihood declares proper = False")
        first = torch.zeros(SAMPLES, dtype=torch.long)
        many = views[first]
        truth = predicted[:1]
        repeated = truth.expand(
            SAMPLES,
            -1,
            -1,
        )
        with torch.no_grad():
            drawn = part.sample(
                repeated,
                many,
                generator=case.generator(),
            )
        return part, truth, drawn, many

    def test_is_a_likelihood(self) -> None:
        part = self.new_part(
            Case(
                0,
                12,
                1.0,
                2,
            )
        )
        assert isinstance(part, Likelihood)

    @law(SMALL_BOXES)
    def test_score_of_samples_has_mean_zero(self, case: Case) -> None:
        """E[∂ log p(y | μ)/∂μ] = 0 for y drawn at μ: of all images the prediction itself is right,
        in position, scale and offset.
        """
        part, truth, drawn, views = self._samples(case)
        score = _score(
            part,
            truth,
            drawn,
            views,
        )
        offset = torch.ones_like(truth)
        directions = torch.cat([truth, offset, _directions(case, 3)])
        along = score.flatten(1) @ directions.flatten(1).T
        mean, error = _mean_and_error(along)
        assert (mean.abs() <= STANDARD_ERRORS * error + 1e-12).all()

    @law(SMALL_BOXES)
    def test_samples_follow_log_prob(self, case: Case) -> None:
        """E[p(y | μ') / p(y | μ)] = 1 for y drawn at μ: the samples have the noise level that
        log_prob assumes.

        μ' is one standard deviation of the log-ratio away from μ, where a wrong variance shows
        most.
        """
        part, truth, drawn, views = self._samples(case)
        directions = _directions(case, 8)
        score = _score(
            part,
            truth,
            drawn,
            views,
        )
        along = score.flatten(1) @ directions.flatten(1).T
        spread = along.std(0)
        ratios = []
        with torch.no_grad():
            base = part.log_prob(
                truth.expand_as(drawn),
                drawn,
                views,
            )
            for direction, deviation in zip(directions, spread, strict=True):
                other = truth + direction / deviation
                moved = part.log_prob(
                    other.expand_as(drawn),
                    drawn,
                    views,
                )
                ratios.append((moved - base).exp())
        ratio_of_sample = torch.stack(ratios, 1).mean(1, keepdim=True)
        mean, error = _mean_and_error(ratio_of_sample)
        assert abs(float(mean) - 1) <= STANDARD_ERRORS * float(error)

    @law(SMALL_BOXES)
    def test_truth_is_most_probable(self, case: Case) -> None:
        """E[log p(y | μ)] > E[log p(y | ν)] for y drawn at μ and another image ν (Gibbs)."""
        part, truth, drawn, views = self._samples(case, proper=False)
        other = _directions(case, 1) * truth.norm()
        with torch.no_grad():
            of_truth = part.log_prob(
                truth.expand_as(drawn),
                drawn,
                views,
            )
            of_other = part.log_prob(
                other.expand_as(drawn),
                drawn,
                views,
            )
        gain = of_truth - of_other
        assert gain.mean() > 0

    @law(SMALL_BOXES)
    def test_entropy(self, case: Case) -> None:
        """E[-log p(sample)] is the entropy, which fixes the normalisation; where the class gives a
        closed form.
        """
        part, truth, drawn, views = self._samples(case)
        entropy = self.entropy(part, views[:1])
        if entropy is None:
            pytest.skip("no closed form of the entropy is given")
        with torch.no_grad():
            surprise = -part.log_prob(
                truth.expand_as(drawn),
                drawn,
                views,
            )
        mean, error = _mean_and_error(surprise[:, None])
        assert abs(float(mean - entropy)) <= STANDARD_ERRORS * float(error)

    @law(SMALL_BOXES)
    def test_sample_is_random_only_through_the_generator(self, case: Case) -> None:
        """Samples have the prediction's shape and dtype; the same generator state gives the same
        sample.
        """
        part = self.stirred_part(case)
        predicted, _, views = self._draw(case)
        before = torch.random.get_rng_state()
        first = part.sample(
            predicted,
            views,
            generator=case.generator(),
        )
        second = part.sample(
            predicted,
            views,
            generator=case.generator(),
        )
        assert first.shape == predicted.shape
        assert first.dtype == predicted.dtype
        assert torch.equal(first, second)
        after = torch.random.get_rng_state()
        assert torch.equal(before, after), "random numbers are drawn from the global state"

    @law(SMALL_BOXES)
    def test_rows_are_independent(self, case: Case) -> None:
        """log p "B" of an image does not depend on the other images, nor on their order."""
        part = self.stirred_part(case)
        predicted, observed, views = self._draw(case)
        value = part.log_prob(
            predicted,
            observed,
            views,
        )
        assert value.shape == (case.rows,)
        order = torch.randperm(case.rows, generator=case.generator())
        shuffled = part.log_prob(
            predicted[order],
            observed[order],
            views[order],
        )
        assert difference(shuffled, value[order]) < ROUNDING
        alone = []
        for row in range(case.rows):
            only = slice(row, row + 1)
            alone.append(
                part.log_prob(
                    predicted[only],
                    observed[only],
                    views[only],
                )
            )
        assert difference(torch.cat(alone), value) < ROUNDING

    @law(SMALL_BOXES)
    def test_declared_invariances(self, case: Case) -> None:
        """log p does not see the changes of the prediction that are declared."""
        part = self.stirred_part(case)
        predicted, observed, views = self._draw(case)
        value = part.log_prob(
            predicted,
            observed,
            views,
        )
        changes = {"scale": SCALE * predicted, "offset": predicted + OFFSET}
        for name in self.invariances:
            changed = part.log_prob(
                changes[name],
                observed,
                views,
            )
            assert difference(changed, value) < ROUNDING, f"not invariant to {name}"

    @law(SMALL_BOXES)
    def test_finite_at_zero_images(self, case: Case) -> None:
        """An empty map and an empty image have a finite log p and gradient: fits start there."""
        part = self.stirred_part(case)
        predicted, observed, views = self._draw(case)
        nothing = torch.zeros_like(predicted)
        pairs = [(nothing, observed), (predicted, nothing), (nothing, nothing)]
        for prediction, observation in pairs:
            prediction = prediction.clone().requires_grad_()
            value = part.log_prob(
                prediction,
                observation,
                views,
            )
            assert value.isfinite().all()
            assert gradient(value, prediction).isfinite().all()

    @law(SMALL_BOXES)
    def test_gradient_reaches_the_prediction(self, case: Case) -> None:
        """∂ log p/∂μ is the derivative of log p, in each row. Central differences of 1e-5: rounding
        1e-9, truncation 1e-10.
        """
        part = self.stirred_part(case)
        predicted, observed, views = self._draw(case)
        along = _directions(case, case.rows)
        step = 1e-5
        prediction = predicted.clone().requires_grad_()
        slopes = gradient(
            part.log_prob(
                prediction,
                observed,
                views,
            ),
            prediction,
        )
        ahead = part.log_prob(
            predicted + step * along,
            observed,
            views,
        )
        behind = part.log_prob(
            predicted - step * along,
            observed,
            views,
        )
        expected = (ahead - behind) / (2 * step)
        steepest = slopes.flatten(1)
        assert (steepest.abs().amax(1) > 0).all()
        error = (slopes * along).sum((1, 2)) - expected
        norm = float(steepest.norm(dim=1).max())
        assert float(error.abs().max()) < 1e-6 * norm

    @law(SMALL_BOXES)
    def test_quadratic_form(self, case: Case) -> None:
        """log p(y | μ) = -½ Σ_k |Y - M|² / (D² σ²(k)) + const with σ² from `noise_variance`, for a
        `GaussianLikelihood`: that is all the normal equations know of it.
        """
        part = self.stirred_part(case)
        predicted, observed, views = self._draw(case)
        if not isinstance(part, GaussianLikelihood):
            pytest.skip("the likelihood is no GaussianLikelihood")
        variance = _component_variance(part, views)

        def expected(image: Tensor) -> Tensor:
            power = torch.fft.fft2(observed - image).abs().square()
            return -0.5 * (power / variance).sum((1, 2)) / case.box**2

        nothing = torch.zeros_like(predicted)
        of_predicted = part.log_prob(
            predicted,
            observed,
            views,
        )
        of_nothing = part.log_prob(
            nothing,
            observed,
            views,
        )
        gain = of_predicted - of_nothing
        assert difference(gain, expected(predicted) - expected(nothing)) < ROUNDING

    @law(SMALL_BOXES)
    def test_premultiplied_images(self, case: Case) -> None:
        """For y' = C y, log_prob_premultiplied and log p(y | C PV) differ by a constant of the
        data, so they have one gradient.
        """
        part = self.stirred_part(case)
        projection, observed, views = self._draw(case)
        if not isinstance(part, PremultipliedLikelihood):
            pytest.skip("the likelihood is no PremultipliedLikelihood")
        transfer = _even_filter(case.box)
        multiplied = _apply(transfer, observed)

        def both(image: Tensor) -> tuple[Tensor, Tensor]:
            predicted = _apply(transfer, image)
            plain = part.log_prob(
                predicted,
                observed,
                views,
            )
            special = part.log_prob_premultiplied(
                image,
                predicted,
                multiplied,
                views,
            )
            return plain, special

        image = projection.clone().requires_grad_()
        plain, special = both(image)
        assert special.shape == (case.rows,)
        plain_slope = gradient(plain, image)
        assert difference(gradient(special, image), plain_slope) < ROUNDING
        plain_at_zero, special_at_zero = both(torch.zeros_like(projection))
        assert difference(special - special_at_zero, plain - plain_at_zero) < ROUNDING


def _component_variance(part: GaussianLikelihood, views: Views) -> Tensor:
    """σ² "B D D" of the components of torch.fft.fft2.

    The plane's corners, beyond the last shell, continue it.
    """
    shell_of_component = grids.noise_shells(part.scene.box)
    return part.noise_variance(views)[:, shell_of_component]


def _directions(case: Case, count: int) -> Tensor:
    """Random images "n D D" of unit norm, unrelated to those of the case."""
    generator = torch.Generator().manual_seed(case.seed + 3)
    shape = (count, case.box, case.box)
    images = torch.randn(
        shape,
        generator=generator,
        dtype=torch.float64,
    )
    norm = images.flatten(1).norm(dim=1)
    return images / norm[:, None, None]


def _score(
    part: Likelihood,
    truth: Tensor,
    drawn: Tensor,
    views: Views,
) -> Tensor:
    """∂ log p(y_n | μ)/∂μ "N D D" of each sample."""
    predicted = truth.expand_as(drawn).clone().requires_grad_()
    value = part.log_prob(
        predicted,
        drawn,
        views,
    )
    return gradient(value, predicted)


def _mean_and_error(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and its standard error over the rows of "N K"."""
    error = values.std(0) / math.sqrt(len(values))
    return values.mean(0), error


def _even_filter(box: int) -> Tensor:
    """A real, even, astigmatic filter "D D" of torch.fft.fft2, of either sign like a CTF."""
    frequency = torch.fft.fftfreq(box, dtype=torch.float64)
    y = frequency[:, None]
    x = frequency
    square = y**2 + 0.5 * x**2 + 0.4 * y * x
    wave = torch.cos(20 * square)
    mirrored = wave.flip(0, 1).roll((1, 1), (0, 1))
    # even on the Nyquist lines of even boxes too
    return 0.5 * (wave + mirrored)


def _apply(transfer: Tensor, images: Tensor) -> Tensor:
    transform = torch.fft.fft2(images)
    return torch.fft.ifft2(transform * transfer).real
