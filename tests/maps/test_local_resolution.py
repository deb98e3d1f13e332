"""Local resolution: closed forms, regions of known resolution, and what noise alone gives."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.half_maps import halves, low_passed, white

from instamap.errors import OptionError
from instamap.maps import local_resolution as local
from instamap.maps.local_resolution import LocalResolution

BOX = 64
PIXEL = 1.5


def ones(bands: local.Bands, points: int) -> LocalResolution:
    """Perfect agreement everywhere."""
    count = bands.last
    curves = torch.ones(count, points, points, points)
    flat = torch.zeros(count)
    return LocalResolution(bands, curves, flat, flat, flat, curves[0], bands.window)


@given(band=st.integers(0, 20), share=st.floats(0, 1))
def test_bands_add_up_to_one(band, share):
    bands = local.Bands(window=20.0, spacing=0.025, first=1, last=21)
    frequency = torch.tensor([(band + share) * bands.spacing], dtype=torch.float64)
    total = sum(float(bands.profile(frequency, index)) for index in range(22))
    assert total == pytest.approx(1, abs=1e-9)


def test_equal_maps_agree_everywhere_to_the_last_band():
    volume = white(BOX, 1)
    bands = local.choose_bands(BOX, PIXEL, 4.0)
    found = local.estimate(volume, volume, PIXEL, bands)
    assert torch.allclose(found.curves, torch.ones(()), atol=1e-4)
    last = 1 / bands.frequency(bands.last)
    assert torch.allclose(found.resolution, torch.tensor(last, dtype=found.resolution.dtype))


def test_opposite_maps_agree_nowhere():
    volume = white(BOX, 1)
    found = local.estimate(volume, -volume, PIXEL, local.choose_bands(BOX, PIXEL, 4.0))
    assert float(found.curves.max()) < -0.999
    assert found.without_signal() == 1


@pytest.mark.parametrize("ratio", [0.3, 1.0, 4.0])
def test_of_white_signals_the_curve_is_that_of_their_ratio(ratio):
    """FSC = S / (S + N), in each band and, on average, around each place."""
    one, other = halves(math.sqrt(ratio) * white(BOX, 7), 1.0)
    found = local.estimate(one, other, PIXEL, local.choose_bands(BOX, PIXEL, 4.0))
    judged = found.curves[found.bands.first - 1 :].mean((1, 2, 3))
    deviation = found.components[found.bands.first - 1 :].rsqrt()
    windows = len(white(BOX, 7)) * PIXEL / found.bands.window
    # the scatter of the mean over all windows of the box
    tolerance = 4 * deviation / windows**1.5 + 0.02
    assert ((judged - ratio / (1 + ratio)).abs() < tolerance).all()


def expected_frequency(end: float, bands: local.Bands) -> float:
    """Where the curve of a signal as strong as the noise that ends at `end` (1/Å) is read.

    A band agrees by FSC = f / (1 + f), where f is the share of its power below the end.
    """
    values = []
    for band in range(bands.first, bands.last + 1):
        frequency = bands.spacing * (band + torch.linspace(-1, 1, 4001, dtype=torch.float64))
        power = bands.profile(frequency, band).square() * frequency.square()
        share = float(power[frequency <= end].sum() / power.sum())
        values.append(share / (1 + share))
    index = next(index for index, value in enumerate(values) if value < 0.143)
    fraction = (values[index - 1] - 0.143) / (values[index - 1] - values[index])
    return bands.frequency(bands.first + index - 1) + fraction * bands.spacing


@pytest.mark.parametrize("resolutions", [(4.0, 8.0), (5.0, 12.0)])
def test_two_regions_have_each_their_own_resolution(resolutions):
    """Signals that end at two known frequencies, left and right of the middle of a periodic box."""
    fine, coarse = resolutions
    box = 96
    signal = white(box, 3)
    position = 2 * math.pi * torch.arange(box, dtype=torch.float64) / box
    share = torch.sigmoid(12 * torch.sin(position))  # 1 in the left half, 0 in the right one
    left = low_passed(signal, 1 / fine, PIXEL)
    right = low_passed(signal, 1 / coarse, PIXEL)
    one, other = halves(share * left + (1 - share) * right, 1.0)
    bands = local.choose_bands(box, PIXEL, fine, window=20.0)
    found = local.estimate(one, other, PIXEL, bands)
    frequency = 1 / found.resolution
    for place, end in ((box // 4, 1 / fine), (3 * box // 4, 1 / coarse)):
        expected = expected_frequency(end, bands)
        assert abs(expected - end) < bands.spacing
        error = (frequency[:, :, place] - expected) / bands.spacing
        assert abs(float(error.median())) < 0.2
        assert float(error.abs().flatten().sort().values[int(0.9 * error.numel())]) < 0.6


def test_noise_has_no_resolution_anywhere_but_by_the_chance_that_is_said():
    """Over many maps of noise the null holds in each band: its spread, and how often it is
    exceeded.
    """
    bands = local.choose_bands(BOX, PIXEL, 3.5)
    curves = []
    false = []
    for seed in range(12):
        found = local.estimate(white(BOX, 2 * seed), white(BOX, 2 * seed + 1), PIXEL, bands)
        curves.append(found.curves)
        false.append(1 - found.without_signal())
    together = torch.stack(curves, 1)[bands.first - 1 :].flatten(1)
    spread = together.square().mean(1).sqrt()
    expected = found.components[bands.first - 1 :].rsqrt()
    # 12 maps hold about 50 windows each
    assert ((spread / expected - 1).abs() < 0.15).all()
    chance = found.chance[bands.first - 1 :, None]
    exceeded = (together > chance).double().mean(1)
    assert float(exceeded.mean()) == pytest.approx(local.NOISE_RATE, rel=0.5)
    assert sum(false) / len(false) < 3 * local.NOISE_RATE


@pytest.mark.parametrize("components", [3.0, 10.0, 40.0, 400.0])
def test_the_null_is_that_of_a_correlation(components):
    """c² has mean 1 / n, and for large n the quantile is that of a Gaussian."""
    stats = pytest.importorskip("scipy.stats", reason="scipy is the judge of distributions")
    ours = local.noise_quantile(components, 0.01)
    shape = (components - 1) / 2
    theirs = 2 * stats.beta.ppf(0.99, shape, shape) - 1
    assert ours == pytest.approx(theirs, abs=2e-3)


def test_independent_components_grow_with_the_square_of_frequency():
    bands = local.choose_bands(256, 1.0, 3.0)
    counts = [local.independent_components(bands, band) for band in (5, 10, 20)]
    assert counts[1] / counts[0] == pytest.approx(4, rel=0.03)
    assert counts[2] / counts[1] == pytest.approx(4, rel=0.03)


@given(
    box=st.integers(32, 512),
    pixel_size=st.floats(0.4, 12),
    finest=st.floats(2.2, 10),
)
def test_bands_are_few_whatever_the_map(box, pixel_size, finest):
    resolution = finest * pixel_size
    bands = local.choose_bands(box, pixel_size, resolution)
    # 7 resolutions a window, 3/2 bands each, as far as half a resolution
    assert 1 <= bands.first <= bands.last <= 21
    assert bands.frequency(bands.last) <= 1 / (2 * pixel_size) * (1 + 1e-6)
    assert local.independent_components(bands, bands.first) >= local.MIN_COMPONENTS


def test_where_all_agrees_the_filtered_map_is_the_map_to_the_last_band():
    volume = white(48, 5)
    bands = local.choose_bands(48, PIXEL, 5.0, window=24.0)
    filtered = local.filter_map(volume, ones(bands, 9), PIXEL)
    transform = torch.fft.rfftn(filtered.double())
    expected = torch.fft.rfftn(volume)
    axis = torch.fft.fftfreq(48, PIXEL, dtype=torch.float64)
    half = torch.fft.rfftfreq(48, PIXEL, dtype=torch.float64)
    squares = axis[:, None, None] ** 2 + axis[:, None] ** 2 + half**2
    # the plane at Nyquist belongs to both signs of a component, and is left out
    kept = squares.sqrt() <= bands.frequency(bands.last - 1)
    error = (transform - expected)[kept].abs().max() / expected.abs().mean()
    assert float(error) < 1e-4


def test_where_nothing_agrees_only_the_coarsest_is_left():
    one, other = white(48, 5), white(48, 6)
    bands = local.choose_bands(48, PIXEL, 5.0, window=24.0)
    found = local.estimate(one, other, PIXEL, bands)
    filtered = local.filter_map(one, found, PIXEL)
    finest = bands.frequency(bands.first + 2)
    rest = filtered.double() - low_passed(filtered.double(), finest, PIXEL)
    assert float(rest.square().mean()) < 0.01 * float(one.square().mean())


@pytest.mark.parametrize("window", [2.0, 97.0, float("nan")])
def test_a_window_that_does_not_fit_is_refused(window):
    with pytest.raises(OptionError, match="window of .* does not fit a map of 64 voxels"):
        local.choose_bands(BOX, PIXEL, 4.0, window)


def test_a_window_without_components_is_refused():
    with pytest.raises(OptionError, match="too small to tell signal from noise"):
        local.choose_bands(BOX, PIXEL, 4.0, 3.2)
