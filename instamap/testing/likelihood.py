"""The laws of likelihoods: log_prob and sample describe one distribution, rows are independent,
invariances are kept.
"""

import math
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from instamap.geometry import grids
from instamap.parts import Likelihood
from instamap.scene import Views
from instamap.testing import scenes
from instamap.testing.part import SMALL, PartLaws, difference, gradient, law

DRAWS = 1000
# Means of samples are compared at six standard errors: one false alarm in 5e8 laws.
ERRORS = 6.0
# Some hundred roundings of float64, and sums over pixels that partly cancel.
ROUNDING = 1e-9

INVARIANCES = {
    "scale": lambda predicted: 2.5 * predicted,
    "offset": lambda predicted: predicted + 1.7,
}


class LikelihoodLaws(PartLaws):
    """Subclass with `name = "..."` of a registered likelihood, or override `make(scene)`.

    invariances: changes of the prediction that log_prob does not see, out of "scale" (a positive
    factor) and "offset" (a constant). Override `entropy` where it has a closed form (of `quadratic`
    likelihoods it is known).
    """

    kind = "likelihood"
    invariances: ClassVar[tuple[str, ...]] = ()

    def entropy(self, part: Likelihood, views: Views) -> Tensor | None:
        """-E[log p(y)] "B" in nats of an image of each view, if it is known and does not depend on
        the prediction.
        """
        return (
            0.5 * torch.log(2 * math.pi * math.e * _components(part, views)).sum((1, 2))
            if part.quadratic
            else None
        )

    def evaluate(self, part, case, dtype):
        predicted, observed, views = self._draw(case)
        return part.log_prob(
            predicted.float().to(dtype), observed.float().to(dtype), views.to(dtype)
        )

    def _draw(self, case):
        """Predictions and unrelated observations "B D D" of order one, and their views."""
        g = case.generator()
        scene = case.scene()
        images = torch.randn(2, case.rows, case.box, case.box, generator=g, dtype=torch.float64)
        return *images, scenes.views(scene, case.rows, g)

    def _samples(self, case, *, proper: bool = True):
        """One prediction "1 D D", many samples of it "N D D", and the view of all of them; proper:
        of distributions alone.
        """
        part, (predicted, _, views) = self.grown(case), self._draw(case)
        if proper and not part.proper:
            pytest.skip("the likelihood declares proper = False")
        many = views[torch.zeros(DRAWS, dtype=torch.long)]
        truth = predicted[:1]
        with torch.no_grad():
            return (
                part,
                truth,
                part.sample(truth.expand(DRAWS, -1, -1), many, generator=case.generator()),
                many,
            )

    def test_is_a_likelihood(self):
        assert isinstance(self.born(scenes.Case(0, 12, 1.0, 2)), Likelihood)

    @law(SMALL)
    def test_score_of_samples_has_mean_zero(self, case):
        """E[∂ log p(y | μ)/∂μ] = 0 for y drawn at μ: of all images the prediction itself is right,
        in position, scale and offset.
        """
        part, truth, drawn, views = self._samples(case)
        score = _score(part, truth, drawn, views)
        directions = torch.cat([truth, torch.ones_like(truth), _directions(case, 3)])
        mean, error = _mean((score.flatten(1)) @ directions.flatten(1).T)
        assert (mean.abs() <= ERRORS * error + 1e-12).all()

    @law(SMALL)
    def test_samples_follow_log_prob(self, case):
        """E[p(y | μ') / p(y | μ)] = 1 for y drawn at μ: the samples have the noise level that
        log_prob assumes.

        μ' is one standard deviation of the log-ratio away from μ, where a wrong variance shows
        most.
        """
        part, truth, drawn, views = self._samples(case)
        directions = _directions(case, 8)
        spread = (_score(part, truth, drawn, views).flatten(1) @ directions.flatten(1).T).std(0)
        with torch.no_grad():
            base = part.log_prob(truth.expand_as(drawn), drawn, views)
            other = [
                part.log_prob((truth + d / s).expand_as(drawn), drawn, views)
                for d, s in zip(directions, spread, strict=True)
            ]
        mean, error = _mean(torch.stack([(o - base).exp() for o in other], 1).mean(1, keepdim=True))
        assert abs(float(mean) - 1) <= ERRORS * float(error)

    @law(SMALL)
    def test_truth_is_most_probable(self, case):
        """E[log p(y | μ)] > E[log p(y | ν)] for y drawn at μ and another image ν (Gibbs)."""
        part, truth, drawn, views = self._samples(case, proper=False)
        other = _directions(case, 1) * truth.norm()
        with torch.no_grad():
            gain = part.log_prob(truth.expand_as(drawn), drawn, views) - part.log_prob(
                other.expand_as(drawn), drawn, views
            )
        assert gain.mean() > 0

    @law(SMALL)
    def test_entropy(self, case):
        """E[-log p(sample)] is the entropy, which fixes the normalisation; where the class gives a
        closed form.
        """
        part, truth, drawn, views = self._samples(case)
        entropy = self.entropy(part, views[:1])
        if entropy is None:
            pytest.skip("no closed form of the entropy is given")
        with torch.no_grad():
            mean, error = _mean(-part.log_prob(truth.expand_as(drawn), drawn, views)[:, None])
        assert abs(float(mean - entropy)) <= ERRORS * float(error)

    @law(SMALL)
    def test_sample_is_random_only_through_the_generator(self, case):
        """Samples have the prediction's shape and dtype; the same generator state gives the same
        sample.
        """
        part, (predicted, _, views) = self.grown(case), self._draw(case)
        before = torch.random.get_rng_state()
        one, two = (part.sample(predicted, views, generator=case.generator()) for _ in range(2))
        assert one.shape == predicted.shape and one.dtype == predicted.dtype
        assert torch.equal(one, two)
        assert torch.equal(before, torch.random.get_rng_state()), (
            "random numbers are drawn from the global state"
        )

    @law(SMALL)
    def test_rows_are_independent(self, case):
        """log p "B" of an image does not depend on the other images, nor on their order."""
        part, (predicted, observed, views) = self.grown(case), self._draw(case)
        value = part.log_prob(predicted, observed, views)
        assert value.shape == (case.rows,)
        order = torch.randperm(case.rows, generator=case.generator())
        assert (
            difference(part.log_prob(predicted[order], observed[order], views[order]), value[order])
            < ROUNDING
        )
        alone = [
            part.log_prob(predicted[i : i + 1], observed[i : i + 1], views[i : i + 1])
            for i in range(case.rows)
        ]
        assert difference(torch.cat(alone), value) < ROUNDING

    @law(SMALL)
    def test_declared_invariances(self, case):
        """log p does not see the changes of the prediction that are declared."""
        part, (predicted, observed, views) = self.grown(case), self._draw(case)
        value = part.log_prob(predicted, observed, views)
        for name in self.invariances:
            assert (
                difference(part.log_prob(INVARIANCES[name](predicted), observed, views), value)
                < ROUNDING
            ), f"not invariant to {name}"

    @law(SMALL)
    def test_finite_at_zero_images(self, case):
        """An empty map and an empty image have a finite log p and gradient: fits start there."""
        part, (predicted, observed, views) = self.grown(case), self._draw(case)
        nothing = torch.zeros_like(predicted)
        for p, o in ((nothing, observed), (predicted, nothing), (nothing, nothing)):
            p = p.clone().requires_grad_()
            value = part.log_prob(p, o, views)
            assert value.isfinite().all() and gradient(value, p).isfinite().all()

    @law(SMALL)
    def test_gradient_reaches_the_prediction(self, case):
        """∂ log p/∂μ is the derivative of log p, in each row. Central differences of 1e-5: rounding
        1e-9, truncation 1e-10.
        """
        part, (predicted, observed, views) = self.grown(case), self._draw(case)
        along = _directions(case, case.rows)
        step = 1e-5
        p = predicted.clone().requires_grad_()
        found = gradient(part.log_prob(p, observed, views), p)
        up, down = (part.log_prob(predicted + s * along, observed, views) for s in (step, -step))
        slope = (up - down) / (2 * step)
        assert (found.flatten(1).abs().amax(1) > 0).all()
        assert float(((found * along).sum((1, 2)) - slope).abs().max()) < 1e-6 * float(
            found.flatten(1).norm(dim=1).max()
        )

    @law(SMALL)
    def test_quadratic_form(self, case):
        """log p(y | μ) = -½ Σ_k |Y - M|² / (D² σ²(k)) + const with σ² from `noise_variance`, where
        the likelihood declares `quadratic`: that is all the normal equations know of it.
        """
        part, (predicted, observed, views) = self.grown(case), self._draw(case)
        if not part.quadratic:
            pytest.skip("the likelihood declares quadratic = False")
        variance = _components(part, views)

        def expected(image: Tensor) -> Tensor:
            return (
                -0.5
                * (torch.fft.fft2(observed - image).abs().square() / variance).sum((1, 2))
                / case.box**2
            )

        nothing = torch.zeros_like(predicted)
        gain = part.log_prob(predicted, observed, views) - part.log_prob(nothing, observed, views)
        assert difference(gain, expected(predicted) - expected(nothing)) < ROUNDING

    @law(SMALL)
    def test_premultiplied_images(self, case):
        """For y' = C y, log_prob_premultiplied and log p(y | C PV) differ by a constant of the
        data, so they have one gradient.
        """
        part, (projection, observed, views) = self.grown(case), self._draw(case)
        if not part.premultiplied:
            pytest.skip("the likelihood declares premultiplied = False")
        c = _filter(case.box)
        multiplied = _apply(c, observed)

        def both(p: Tensor) -> tuple[Tensor, Tensor]:
            predicted = _apply(c, p)
            return part.log_prob(predicted, observed, views), part.log_prob_premultiplied(
                p, predicted, multiplied, views
            )

        p = projection.clone().requires_grad_()
        plain, special = both(p)
        assert special.shape == (case.rows,)
        assert difference(gradient(special, p), gradient(plain, p)) < ROUNDING
        plain0, special0 = both(torch.zeros_like(projection))
        assert difference(special - special0, plain - plain0) < ROUNDING


def _components(part: Likelihood, views: Views) -> Tensor:
    """σ² "B D D" of the components of torch.fft.fft2; the plane's corners, beyond the last shell,
    continue it.
    """
    box = part.scene.box
    return part.noise_variance(views)[:, grids.noise_shells(box)]


def _directions(case: scenes.Case, count: int) -> Tensor:
    """Random images "n D D" of unit norm, unrelated to those of the case."""
    g = torch.Generator().manual_seed(case.seed + 3)
    images = torch.randn(count, case.box, case.box, generator=g, dtype=torch.float64)
    return images / images.flatten(1).norm(dim=1)[:, None, None]


def _score(part: Likelihood, truth: Tensor, drawn: Tensor, views: Views) -> Tensor:
    """∂ log p(y_n | μ)/∂μ "N D D" of each sample."""
    predicted = truth.expand_as(drawn).clone().requires_grad_()
    return gradient(part.log_prob(predicted, drawn, views), predicted)


def _mean(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and its standard error over the rows of "N K"."""
    return values.mean(0), values.std(0) / math.sqrt(len(values))


def _filter(box: int) -> Tensor:
    """A real, even, astigmatic filter "D D" of torch.fft.fft2, of either sign like a CTF."""
    k = torch.fft.fftfreq(box, dtype=torch.float64)
    c = torch.cos(20 * (k[:, None] ** 2 + 0.5 * k**2 + 0.4 * k[:, None] * k))
    return 0.5 * (
        c + c.flip(0, 1).roll((1, 1), (0, 1))
    )  # even on the Nyquist lines of even boxes too


def _apply(c: Tensor, images: Tensor) -> Tensor:
    return torch.fft.ifft2(torch.fft.fft2(images) * c).real
