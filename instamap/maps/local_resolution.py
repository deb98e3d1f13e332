"""Local resolution: how far two half maps agree around each place, what noise alone gives there,
and a map that is filtered to it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from instamap.errors import OptionError
from instamap.maps.fsc import RESOLUTION_THRESHOLDS
from instamap.progress import SILENT, Progress

RESOLUTIONS_PER_WINDOW = 7.0
"""Width of the window in units of the map's resolution, where nothing else is said (Cardone et al.,
J. Struct. Biol. 184, 226 (2013), choose several).
"""

BAND_SPACING = 2 / 3
"""Distance of two bands, times the width of the window. Narrower bands blur places more than the
window does, wider ones blur frequencies.
"""

FINEST_SHARE = 0.5
"""Share of the map's resolution (Å) beyond which no place is looked for; or of a seventh of the
window, where that is less.
"""

MIN_COMPONENTS = 36
"""Independent components that a window must hold in a band for it to be judged at all."""

NOISE_RATE = 0.01
"""Probability with which noise alone reaches `LocalResolution.chance`."""

WINDOW_CUT = 1e-4
"""Transform of the window beyond which it counts as zero."""

EMPTY_SHARE = 1e-3
"""Power in a window, as a share of the highest in the map, below which it is empty."""

SIGMA_PER_WIDTH = 1 / math.sqrt(8 * math.log(2))  # of a Gaussian's full width at half maximum
QUADRATURE_POINTS = 400  # of integrals over distance and frequency
CORRELATION_POINTS = 4000  # of the integral over correlations, from -1 to 1


@dataclass(frozen=True)
class Bands:
    """Overlapping bands of spatial frequency, one a `spacing` (1/Å), which add up to one.

    Band k is cos²(π/2 (s/spacing - k)) within one spacing of k spacing, band 0 the half at the
    origin. window: full width at half maximum in Å of the Gaussian within which a place is judged;
    with the reach of the bands themselves, half as much again. first: the first band that is
    judged. last: the last one.
    """

    window: float
    spacing: float
    first: int
    last: int

    def frequency(self, band: int) -> float:
        """The middle of a band in 1/Å."""
        return band * self.spacing

    def profile(self, frequency: Tensor, band: int) -> Tensor:
        """The band, from 0 to 1, at frequencies "*" (1/Å)."""
        offset = (frequency / self.spacing - band).abs().clamp(max=1)
        wave = torch.cos(math.pi / 2 * offset)
        return wave.square()


@dataclass(frozen=True)
class LocalResolution:
    """Resolution around each voxel of a map, and the curves from which it was read.

    curves "K M M M": FSC in bands 1 to K around M points along each axis, i D / M voxels from the
    first voxel. components "K": independent components of a band in a window. chance "K": the FSC
    that pure noise reaches with a probability of `NOISE_RATE`. threshold "K": `chance`, or 0.143
    where that is more. resolution "D D D" in Å: where the curve first falls below it, `lowest`
    where no band is above.
    """

    bands: Bands
    curves: Tensor
    components: Tensor
    chance: Tensor
    threshold: Tensor
    resolution: Tensor
    lowest: float

    def without_signal(self, mask: Tensor | None = None) -> float:
        """The share of voxels, inside `mask` "D D D" > 0.5, around which there is only noise."""
        unresolved = self.resolution >= self.lowest * (1 - 1e-6)
        if mask is not None:
            unresolved = unresolved[mask > 0.5]
        return float(unresolved.double().mean())


def choose_bands(
    box: int,
    pixel_size: float,
    resolution: float,
    window: float | None = None,
) -> Bands:
    """The bands in which maps of `resolution` Å are judged, as far as half of it or Nyquist.

    window: in Å; 7 resolutions where it is None, at most half of the box. Raises OptionError for a
    window that is larger than the map, or in which no band can be judged.
    """
    if window is None:
        window = min(RESOLUTIONS_PER_WINDOW * resolution, box * pixel_size / 2)
    if not 2 * pixel_size < window <= box * pixel_size:
        raise OptionError(
            f"window of {window:g} Å does not fit a map of {box} voxels of {pixel_size:g} Å; give"
            f" one above {2 * pixel_size:g} Å and of at most {box * pixel_size:g} Å"
        )
    spacing = BAND_SPACING / window
    nyquist = 1 / (2 * pixel_size)
    finest = FINEST_SHARE * min(resolution, window / RESOLUTIONS_PER_WINDOW)
    highest = min(nyquist, 1 / finest)
    last = math.floor(highest / spacing + 1e-6)
    bands = Bands(window, spacing, 1, last)
    for band in range(1, last + 1):
        if independent_components(bands, band) >= MIN_COMPONENTS:
            return Bands(window, spacing, band, last)
    raise OptionError(
        f"window of {window:g} Å is too small to tell signal from noise at any resolution up to"
        f" {1 / highest:.3g} Å; give a larger one"
    )


def independent_components(bands: Bands, band: int) -> float:
    """Independent components of white noise, filtered to a band, within the window.

    1 / ∫ (w∗w)(x) ρ(x)² dx, with w the window of integral one, w∗w a Gaussian √2 as wide, and ρ the
    noise's autocorrelation, ∫ h(s)² s² sinc(2 s |x|) ds / ∫ h(s)² s² ds. By 1 / √ of it a
    correlation of noise scatters.
    """
    steps = torch.arange(QUADRATURE_POINTS, dtype=torch.float64) + 0.5
    share = steps / QUADRATURE_POINTS
    frequency = bands.spacing * (band - 1 + 2 * share)
    power = bands.profile(frequency, band).square() * frequency.square()
    sigma = math.sqrt(2) * SIGMA_PER_WIDTH * bands.window
    distance = 6 * sigma * share
    waves = torch.sinc(2 * distance[:, None] * frequency)
    autocorrelation = (waves * power).sum(1) / power.sum()
    gaussian = torch.exp(-0.5 * (distance / sigma).square()) * distance.square()
    mean_square = (gaussian * autocorrelation.square()).sum() / gaussian.sum()
    return 1 / float(mean_square)


def noise_quantile(components: float, probability: float) -> float:
    """The correlation that noise of so many independent components exceeds with `probability`.

    Its density is proportional to (1 - c²)^((components - 3) / 2), for components of at least 3.
    """
    steps = torch.arange(CORRELATION_POINTS, dtype=torch.float64) + 0.5
    correlation = -1 + 2 * steps / CORRELATION_POINTS
    exponent = (max(components, 3.0) - 3) / 2
    density = (1 - correlation.square()) ** exponent
    reached = density.cumsum(0) / density.sum()
    index = int(torch.searchsorted(reached, 1 - probability))
    return float(correlation[min(index, CORRELATION_POINTS - 1)])


def estimate(
    a: Tensor,
    b: Tensor,
    pixel_size: float,
    bands: Bands,
    progress: Progress = SILENT,
) -> LocalResolution:
    """How far half maps `a` and `b` "D D D" agree around each voxel.

    Both are filtered to one band after the other, A and B, and around x

        FSC(x) = Σ w A B / √(Σ w A² Σ w B²),    w = a Gaussian around x,

    whose sums are convolutions, on lattices just fine enough for band and window. Since bands are
    cut out before windows are, strong coarse components do not leak into weak fine ones as they do
    where the windowed map is transformed; a window has no edge that both maps could share. What is
    finer than the last band is not looked at.
    """
    box = len(a)
    transform_a = _transform(a)
    transform_b = _transform(b)
    reach = _window_reach(box * pixel_size, bands.window)
    window = _window_transform(reach, box * pixel_size, bands.window)
    curves = []
    for band in range(1, bands.last + 1):
        size = _fast_size(2 * _highest_component(bands, band, box, pixel_size) + reach + 1)
        filtered_a = _filtered(transform_a, box, pixel_size, bands, band, size)
        filtered_b = _filtered(transform_b, box, pixel_size, bands, band, size)
        cross = _smoothed(filtered_a * filtered_b, window, reach)
        power_a = _smoothed(filtered_a.square(), window, reach)
        power_b = _smoothed(filtered_b.square(), window, reach)
        curves.append(_correlation(cross, power_a, power_b))
        progress.counted("bands of local resolution", band, bands.last)
    components = [independent_components(bands, band) for band in range(1, bands.last + 1)]
    chance = [noise_quantile(count, NOISE_RATE) for count in components]
    return _read(
        torch.stack(curves),
        torch.tensor(components),
        torch.tensor(chance),
        bands,
        box,
    )


def filter_map(
    volume: Tensor,
    local: LocalResolution,
    pixel_size: float,
    progress: Progress = SILENT,
) -> Tensor:
    """The map "D D D" with each band weighted by √(2 FSC / (1 + FSC)) of its surroundings.

    Nothing is left of a band where it, or a coarser one, is not above its threshold; bands that are
    too coarse to be judged stay as they are.
    """
    box = len(volume)
    bands = local.bands
    transform = _transform(volume)
    total = torch.zeros(volume.shape)
    alive = torch.ones_like(local.curves[0])
    for band in range(bands.last + 1):
        filtered = _filtered(transform, box, pixel_size, bands, band, box)
        if band >= bands.first:
            curve = local.curves[band - 1]
            alive = alive * (curve >= local.threshold[band - 1])
            positive = curve.clamp(min=0)
            weight = alive * (2 * positive / (1 + positive)).sqrt()
            filtered *= _interpolated(weight, box)
        total += filtered
        progress.counted("bands of the locally filtered map", band + 1, bands.last + 1)
    return total


def _read(
    curves: Tensor,
    components: Tensor,
    chance: Tensor,
    bands: Bands,
    box: int,
) -> LocalResolution:
    """The resolution where each of the curves "K M M M" first falls below its threshold; linear in
    frequency between bands.
    """
    gold = RESOLUTION_THRESHOLDS[-1]
    threshold = chance.clamp(min=gold)
    excess = curves - threshold[:, None, None, None]
    judged = excess[bands.first - 1 :]
    first_frequency = bands.frequency(bands.first)
    reached = torch.full_like(judged[0], first_frequency)
    alive = judged[0] >= 0
    for index in range(1, len(judged)):
        here = judged[index - 1]
        there = judged[index]
        below = there < 0
        drop = (here - there).clamp(min=1e-9)
        share = torch.where(below, here / drop, 1.0)
        step = bands.frequency(bands.first + index - 1) + share * bands.spacing
        reached = torch.where(alive, step, reached)
        alive = alive & ~below
    frequency = _interpolated(reached, box)
    return LocalResolution(
        bands=bands,
        curves=curves,
        components=components,
        chance=chance,
        threshold=threshold,
        resolution=1 / frequency,
        lowest=1 / first_frequency,
    )


def _correlation(cross: Tensor, power_a: Tensor, power_b: Tensor) -> Tensor:
    """cross / √(power_a power_b), and 0 where either map is empty."""
    full_a = power_a > EMPTY_SHARE * power_a.max()
    full_b = power_b > EMPTY_SHARE * power_b.max()
    full = full_a & full_b
    norm = (power_a * power_b).clamp(min=0).sqrt()
    safe_norm = norm.where(full, torch.ones_like(norm))
    value = cross / safe_norm
    return torch.where(full, value.clamp(-1, 1), 0.0)


def _transform(volume: Tensor) -> Tensor:
    return torch.fft.rfftn(volume.detach().float())


def _highest_component(bands: Bands, band: int, box: int, pixel_size: float) -> int:
    """The last component along an axis that a band lets through."""
    upper = (band + 1) * bands.spacing * box * pixel_size
    return min(math.ceil(upper), (box - 1) // 2)


def _filtered(
    transform: Tensor,
    box: int,
    pixel_size: float,
    bands: Bands,
    band: int,
    size: int,
) -> Tensor:
    """The map of a `transform`, filtered to a band, on a lattice of `size` points along an axis."""
    reach = _highest_component(bands, band, box, pixel_size)
    rows = _rows(reach, transform.device)
    inner = transform[rows][:, rows][..., : reach + 1]
    frequency = _frequencies(reach, box * pixel_size).to(transform.device)
    inner = inner * bands.profile(frequency, band)
    return _on_lattice(inner, reach, size) * (size / box) ** 3


def _on_lattice(inner: Tensor, reach: int, size: int) -> Tensor:
    """The real values "size size size" of the components up to `reach` along each axis."""
    rows = _rows(reach, inner.device)
    spectrum = inner.new_zeros(size, size, size // 2 + 1)
    spectrum[rows[:, None], rows, : reach + 1] = inner
    return torch.fft.irfftn(spectrum, s=(size, size, size))


def _smoothed(values: Tensor, window: Tensor, reach: int) -> Tensor:
    """Mean of `values` "n n n" in the window around "M M M" points, M = 2 reach + 1."""
    size = len(values)
    spectrum = torch.fft.rfftn(values)
    rows = _rows(reach, values.device)
    inner = spectrum[rows][:, rows][..., : reach + 1] * window
    points = 2 * reach + 1
    return _on_lattice(inner, reach, points) * (points / size) ** 3


def _window_reach(edge: float, window: float) -> int:
    """The last component along an axis of the window's transform, in a map of `edge` Å."""
    sigma = SIGMA_PER_WIDTH * window
    cut = math.sqrt(-math.log(WINDOW_CUT) / 2) / (math.pi * sigma)
    return math.ceil(cut * edge)


def _window_transform(reach: int, edge: float, window: float) -> Tensor:
    """exp(-2π² σ² s²) "M M reach+1" of a Gaussian window."""
    sigma = SIGMA_PER_WIDTH * window
    exponent = -2 * (math.pi * sigma * _frequencies(reach, edge)).square()
    return torch.exp(exponent)


def _frequencies(reach: int, edge: float) -> Tensor:
    """|s| in 1/Å of the components up to `reach` along each axis, "M M reach+1"."""
    full = _rows(reach, torch.device("cpu")).float()
    half = torch.arange(reach + 1, dtype=torch.float32)
    square_z = full[:, None, None].square()
    square_y = full[:, None].square()
    square = square_z + square_y + half.square()
    return square.sqrt() / edge


def _rows(reach: int, device: torch.device) -> Tensor:
    """Indices of the components 0 to `reach` and -`reach` to -1."""
    positive = torch.arange(reach + 1, device=device)
    negative = torch.arange(-reach, 0, device=device)
    return torch.cat([positive, negative])


def _interpolated(values: Tensor, box: int) -> Tensor:
    """Values "M M M" at the points i box / M, linearly between them, at every voxel "box box
    box".
    """
    wrapped = values
    for axis in range(3):
        first = wrapped.narrow(axis, 0, 1)
        wrapped = torch.cat([wrapped, first], axis)
    fine = functional.interpolate(
        wrapped[None, None],
        size=(box + 1,) * 3,
        mode="trilinear",
        align_corners=True,
    )
    return fine[0, 0, :box, :box, :box]


def _fast_size(least: int) -> int:
    """The smallest even size from `least` on that has no prime factors above 5."""
    return next(size for size in _even_sizes(least) if _is_smooth(size))


def _even_sizes(least: int) -> Iterator[int]:
    size = least + least % 2
    while True:
        yield size
        size += 2


def _is_smooth(size: int) -> bool:
    for factor in (2, 3, 5):
        while size % factor == 0:
            size //= factor
    return size == 1
