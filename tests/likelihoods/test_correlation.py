"""Correlation and BioEM likelihoods against numerical integration of their own models, and in the
fit of an empty map.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special, stats

from instamap.errors import CompositionError, OptionError
from instamap.likelihoods.correlation import log_normaliser
from instamap.plugin.choice import choose
from instamap.plugin.options import to_dict
from instamap.plugin.registry import default
from instamap.scene import Scene, Views
from instamap.testing import LikelihoodLaws

SENSORS = [
    ("correlation", []),
    ("half-correlation", []),
    *[("bioem", [f"form={form}"]) for form in ("n-mu", "saddle", "n-mu-prior")],
]
SIGMA = 1.3


def _scene(box, sigma=SIGMA):
    return Scene(
        box=box,
        pixel_size=2.0,
        noise_variance=torch.full((1, box // 2 + 1), sigma**2, dtype=torch.float64),
    )


def _part(name, items, scene):
    return (
        default()
        .get("likelihood", name)
        .load()(choose("likelihood", name, items).options, scene)
        .double()
    )


def _pair(box, seed, strength=0.5):
    """A prediction, an observation that holds it, and the view of one image."""
    g = torch.Generator().manual_seed(seed)
    predicted = torch.randn(1, box, box, generator=g, dtype=torch.float64)
    observed = (
        1.4 * strength * predicted
        + 0.3
        + SIGMA * torch.randn(1, box, box, generator=g, dtype=torch.float64)
    )
    return strength * predicted, observed, Views.of(torch.eye(3, dtype=torch.float64)[None])


class TestBioemWithPrior(LikelihoodLaws):
    """The one form of BioEM with samples."""

    name = "bioem"
    options = {"form": "n-mu-prior", "spread": 0.3}
    invariances = ("offset",)


class TestMaskedCorrelation(LikelihoodLaws):
    """Of pixels in a disc."""

    name = "half-correlation"
    invariances = ("offset",)

    def make(self, scene):
        return (
            default()
            .get("likelihood", "half-correlation")
            .load()(
                choose(
                    "likelihood",
                    "half-correlation",
                    [f"radius={0.4 * scene.box * scene.pixel_size}"],
                ).options,
                scene,
            )
        )


def _offset_out(n, p, o, a, sigma):
    """log ∫ Π N(y_i; a μ_i + b, σ²) db, by quadrature, for each of the scales a."""
    mean = np.array([(o - x * p).mean() for x in np.atleast_1d(a)])
    b = np.linspace(-1, 1, 401) * 12 * sigma / math.sqrt(n)
    found = []
    for x, m in zip(np.atleast_1d(a), mean, strict=True):
        rest = o - x * p - m
        log = (
            -0.5 * n * np.log(2 * np.pi * sigma**2)
            - 0.5 * (np.square(rest).sum() + n * b**2) / sigma**2
        )
        found.append(log.max() + math.log(integrate.simpson(np.exp(log - log.max()), x=b)))
    return np.array(found)


@given(seed=st.integers(0, 100), scale=st.sampled_from(["positive", "any"]), masked=st.booleans())
def test_flat_scale_and_offset_are_integrated_out(seed, scale, masked):
    predicted, observed, views = _pair(6, seed)
    part = _part(
        "bioem", ["form=n-mu", f"scale={scale}", *(["radius=4.5"] if masked else [])], _scene(6)
    )
    inside = part.disc.inside.numpy()
    assert part.disc.count == inside.sum() < 36 if masked else part.disc.count == 36
    p = predicted[0].numpy()[inside]
    o = observed[0].numpy()[inside]
    at = np.linspace(0 if scale == "positive" else -8, 12, 1201)
    values = _offset_out(len(p), p, o, at, SIGMA)
    expected = values.max() + math.log(integrate.simpson(np.exp(values - values.max()), x=at))
    assert float(part.log_prob(predicted, observed, views)) == pytest.approx(expected, abs=1e-4)


@given(seed=st.integers(0, 100), spread=st.floats(0.1, 3.0), masked=st.booleans())
def test_a_gaussian_prior_on_the_scale_is_integrated_out(seed, spread, masked):
    predicted, observed, views = _pair(6, seed)
    part = _part(
        "bioem",
        ["form=n-mu-prior", f"spread={spread}", *(["radius=4.5"] if masked else [])],
        _scene(6),
    )
    inside = part.disc.inside.numpy()
    assert inside.sum() < 36 if masked else inside.all()
    p = predicted[0].numpy()[inside]
    o = observed[0].numpy()[inside]
    at = np.linspace(1 - 10 * spread, 1 + 10 * spread, 1601)
    values = _offset_out(len(p), p, o, at, SIGMA) + stats.norm.logpdf(at, 1, spread)
    expected = values.max() + math.log(integrate.simpson(np.exp(values - values.max()), x=at))
    assert float(part.log_prob(predicted, observed, views)) == pytest.approx(expected, abs=1e-4)


def _noise_out(n, p, o, scales):
    """log ∫∫∫ Π N(y_i; a μ_i + b, σ²) db da dσ over the scales: by quadrature in a and σ, of b in
    closed form.
    """
    rest = np.array([np.square((o - a * p) - (o - a * p).mean()).sum() for a in scales])
    x = np.linspace(0.3 * SIGMA, 4 * SIGMA, 2001)[:, None]
    log = -0.5 * (n - 1) * np.log(2 * np.pi * x**2) - 0.5 * math.log(n) - 0.5 * rest / x**2
    return log.max() + math.log(
        integrate.simpson(integrate.simpson(np.exp(log - log.max()), x=scales), x=x[:, 0])
    )


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize(
    ("scale", "agreement"), [("any", 2.0), ("positive", 2.0), ("positive", 0.3), ("positive", -1.0)]
)
def test_the_saddle_point_errs_by_one_over_the_number_of_pixels(scale, agreement, masked):
    """agreement: C / σ√S, which says how much of the integral over all scales the positive ones
    have (0.98, 0.62, 0.16).
    """
    errors = []
    for box in (8, 16, 32):
        predicted, observed, views = _pair(box, 3)
        part = _part(
            "bioem",
            ["form=saddle", f"scale={scale}", *([f"radius={0.8 * box}"] if masked else [])],
            _scene(box),
        )
        inside = part.disc.inside
        assert part.disc.count < 0.7 * box**2 if masked else inside.all()
        p, o = (x[:, inside] - x[:, inside].mean() for x in (predicted, observed))
        o = o - p * (o * p).sum() / p.square().sum()
        o = o + agreement * (o.square().mean()).sqrt() * p / p.norm()
        observed[:, inside] = o + 0.3
        at = 10 * float(o.square().mean().sqrt() / p.norm())
        scales = np.linspace(0.0 if scale == "positive" else -at, at, 1001)
        expected = _noise_out(part.disc.count, p[0].numpy(), o[0].numpy(), scales)
        errors.append(abs(float(part.log_prob(predicted, observed, views)) - expected))
    assert errors[0] < 0.1
    assert errors[1] < 0.35 * errors[0] and errors[2] < 0.35 * errors[1]  # a quarter each time


def _log_sphere(dimensions, concentration):
    """log ∫ exp(κ r) over the unit sphere, by quadrature over r."""
    area = (
        math.log(2)
        + 0.5 * (dimensions - 1) * math.log(math.pi)
        - special.gammaln((dimensions - 1) / 2)
    )  # of the sphere of one less
    at = np.linspace(-1, 1, 40001)[1:-1]
    log = concentration * at + 0.5 * (dimensions - 3) * np.log1p(-(at**2))
    return area + log.max() + math.log(integrate.simpson(np.exp(log - log.max()), x=at))


@given(dimensions=st.integers(60, 400), concentration=st.floats(0.0, 500.0))
def test_the_normaliser_is_that_of_von_mises_and_fisher(dimensions, concentration):
    found = float(log_normaliser(torch.tensor([concentration**2], dtype=torch.float64), dimensions))
    assert found == pytest.approx(_log_sphere(dimensions, concentration), abs=2e-6)


@given(seed=st.integers(0, 100), snr=st.floats(0.01, 1.0), masked=st.booleans())
def test_correlations_are_a_density_of_the_pixels_that_count(seed, snr, masked):
    """log p(ŷ | μ) with the sphere's integral by quadrature; N is the number of pixels within the
    radius.
    """
    predicted, observed, views = _pair(12, seed)
    radius = ["radius=9.5"] if masked else []
    part = _part("correlation", [f"snr={snr}", *radius], _scene(12))
    inside = part.disc.inside.numpy()
    n = int(inside.sum())
    assert 61 < n < 100 if masked else n == 144
    p = predicted[0].numpy()[inside]
    o = observed[0].numpy()[inside]
    r = np.corrcoef(p, o)[0, 1]
    contrast = np.sqrt(np.square(p - p.mean()).sum())
    half = _part("half-correlation", radius, _scene(12))
    for one, kappa in ((part, n * math.sqrt(snr)), (half, math.sqrt(n) * contrast / SIGMA)):
        found = float(one.log_prob(predicted, observed, views))
        assert found == pytest.approx(kappa * r - _log_sphere(n - 1, kappa), abs=1e-5), one.name


@given(seed=st.integers(0, 100), factor=st.floats(0.1, 10.0), offset=st.floats(-5.0, 5.0))
def test_what_does_not_matter(seed, factor, offset):
    predicted, observed, views = _pair(12, seed)
    scene = _scene(12)
    for name, scale in (("correlation", factor), ("half-correlation", 1.0)):
        part = _part(name, [], scene)
        value = float(part.log_prob(predicted, observed, views))
        assert float(part.log_prob(predicted, factor * observed + offset, views)) == pytest.approx(
            value, rel=1e-6
        )
        assert float(part.log_prob(scale * predicted + offset, observed, views)) == pytest.approx(
            value, rel=1e-6
        )
    half = _part("half-correlation", [], scene)
    assert (
        abs(
            float(
                half.log_prob(2 * predicted, observed, views)
                - half.log_prob(predicted, observed, views)
            )
        )
        > 1e-3
    )


def test_half_correlation_is_gaussian_noise_for_weak_signals():
    predicted, observed, views = _pair(48, 1, strength=0.05)
    seen = (observed - observed.mean()) / (observed - observed.mean()).square().mean().sqrt()
    p = (predicted - predicted.mean()) / SIGMA
    gain = (p * seen).sum() - 0.5 * p.square().sum()
    part = _part("half-correlation", [], _scene(48))
    found = part.log_prob(predicted, observed, views) - part.log_prob(
        0 * predicted, observed, views
    )
    assert float(found) == pytest.approx(float(gain), abs=0.02)


@pytest.mark.parametrize(("name", "items"), SENSORS)
def test_pixels_outside_the_disc_play_no_part(name, items):
    predicted, observed, views = _pair(16, 2)
    part = _part(name, [*items, "radius=12"], _scene(16))
    outside = ~part.disc.inside
    assert 0 < int(outside.sum()) < 256
    value = part.log_prob(predicted, observed, views)
    changed = observed.clone()
    changed[:, outside] = 1e3
    assert torch.equal(part.log_prob(predicted, changed, views), value)
    assert not torch.equal(part.log_prob(predicted, observed + 0.1 * predicted, views), value)
    if (
        name != "half-correlation"
        # an offset of all images, also with a disc: the fault of counting pixels not summed
    ):
        assert float(part.log_prob(predicted, observed + 100, views)) == pytest.approx(
            float(value), rel=1e-6
        )


@pytest.mark.parametrize(("name", "items"), SENSORS)
def test_a_fit_leaves_the_empty_map(name, items):
    g = torch.Generator().manual_seed(0)
    truth = torch.randn(12, 12, generator=g, dtype=torch.float64)
    observed = truth + SIGMA * torch.randn(40, 12, 12, generator=g, dtype=torch.float64)
    views = Views.of(torch.eye(3, dtype=torch.float64).expand(40, 3, 3))
    part = _part(name, items, _scene(12))
    predicted = torch.zeros(12, 12, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([predicted], lr=0.05)
    start = float(part.log_prob(predicted.expand(40, -1, -1), observed, views).sum().detach())
    for _ in range(150):
        optimiser.zero_grad()
        (-part.log_prob(predicted.expand(40, -1, -1), observed, views).mean()).backward()
        optimiser.step()
    found = predicted.detach()
    agreement = torch.corrcoef(torch.stack([found.flatten(), truth.flatten()]))[0, 1]
    assert float(part.log_prob(found.expand(40, -1, -1), observed, views).sum()) > start
    assert agreement > 0.8  # and with the right sign


def test_a_disc_without_pixels_is_refused():
    with pytest.raises(
        CompositionError, match=r"radius 1 Å leaves 1 of 256 pixels; give at least 4 Å"
    ):
        _part("bioem", ["radius=1"], _scene(16))
    for name in ("correlation", "half-correlation", "bioem"):
        with pytest.raises(CompositionError, match=f"likelihood '{name}' knows no noise level"):
            _part(name, [], Scene(box=16, pixel_size=2.0))


@pytest.mark.parametrize(
    ("items", "said"),
    [
        (
            ["spread=0.5"],
            (
                "option 'spread' of Bioem is 0.5, but form 'n-mu' has a flat prior .*leave it out,"
                " or choose form=n-mu-prior"
            ),
        ),
        (
            ["form=saddle", "spread=2"],
            "option 'spread' of Bioem is 2, but form 'saddle' has a flat prior",
        ),
        (
            ["form=n-mu-prior", "scale=any"],
            "option 'scale' of Bioem is 'any', but form 'n-mu-prior' has a prior .*leave scale out",
        ),
    ],
)
def test_options_without_effect_are_refused(items, said):
    with pytest.raises(OptionError, match=said):
        choose("likelihood", "bioem", items)
    with pytest.raises(OptionError, match=said):  # as run.toml has them
        choose(
            "likelihood",
            "bioem",
            {k: float(v) if k == "spread" else v for k, v in (item.split("=") for item in items)},
        )


@pytest.mark.parametrize("form", ["n-mu", "saddle", "n-mu-prior"])
def test_what_run_toml_keeps_of_every_form_is_read_again(form):
    options = choose("likelihood", "bioem", [f"form={form}", "radius=20"]).options
    assert choose("likelihood", "bioem", to_dict(options)).options == options
