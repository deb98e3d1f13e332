"""Fourier shell correlation: how far two maps agree, as curves and as a table."""

import csv
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from instamap.errors import DataError
from instamap.files import replacing

RESOLUTION_THRESHOLDS = (0.5, 0.143)
"""FSC at which a map's resolution is read: against a perfect map, and between half maps (Rosenthal
& Henderson 2003).
"""

MIN_KNOWN_PHASE_FSC = 0.8
"""Unmasked FSC down to which phases are left alone (Chen et al. 2013)."""

MIN_DIRECT_SIGMAS = 3.0
"""Standard deviations of chance by which two direct inversions must agree, for a division by their
agreement to mean anything.
"""

MIN_DIRECT_FSC = 0.05
"""FSC by which two direct inversions must agree at least: of a few per cent, edges of masks and
other common faults may be the cause.
"""

MIN_FIRST_COMPONENTS = 36
"""Independent components, at least, by which the first shells are judged together: then chance may
reach MIN_DIRECT_SIGMAS / √36 = 0.5.
"""

EMPTY_POWER_SHARE = 1e-28
"""Share of the total power below which a shell holds nothing but the FFT's rounding, in float64."""

BINS_PER_VOXEL = 8
"""Bins of distances in a mask's autocorrelation."""

COMPONENTS_AT_ONCE = 1 << 21
"""Of a transform that are worked on together, to save memory."""


def fsc(
    a: Tensor,
    b: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """Re Σ A B* / sqrt(Σ|A|² Σ|B|²) over each Fourier shell: "D//2+1" in float64.

    a, b: maps "D D D", which are multiplied by `mask` "D D D". Shells are those of `grids.shells`
    (rounded radius). A shell without power in either map has 0. Harauz & van Heel (1986).
    """
    return _correlation(_masked_transform(a, mask), _masked_transform(b, mask))


def _correlation(transform_a: Tensor, transform_b: Tensor) -> Tensor:
    """The FSC of two maps' transforms "D D D//2+1"."""
    box = len(transform_a)

    def products(planes: slice) -> list[Tensor]:
        a = transform_a[planes]
        b = transform_b[planes]
        real = a.real * b.real
        product = real + a.imag * b.imag
        return [product, a.real**2 + a.imag**2, b.real**2 + b.imag**2]

    cross, power_a, power_b = _sums_per_shell(products, box, transform_a.device)
    full_a = power_a > EMPTY_POWER_SHARE * power_a.sum()
    full_b = power_b > EMPTY_POWER_SHARE * power_b.sum()
    full = full_a & full_b
    norm = (power_a * power_b).sqrt()
    safe_norm = norm.where(full, torch.ones_like(cross))
    return torch.where(
        full,
        cross / safe_norm,
        0.0,
    )


def _masked_transform(volume: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return _transform(volume)
    return _transform(volume * mask.to(volume))


def _transform(volume: Tensor) -> Tensor:
    return torch.fft.rfftn(volume.detach().double())


def _planes_at_once(box: int) -> Iterator[slice]:
    """Slices of the planes of rfftn that are worked on together."""
    count = max(1, COMPONENTS_AT_ONCE // (box * (box // 2 + 1)))
    for start in range(0, box, count):
        yield slice(start, start + count)


def _shells(box: int, device: torch.device, planes: slice) -> Tensor:
    """Shell "P D D//2+1" of each component of some planes of rfftn."""
    along = torch.fft.fftfreq(box, 1 / box, dtype=torch.float64, device=device)
    square = along.square()
    depth = square[planes, None, None]
    radius = (depth + square[:, None] + square[: box // 2 + 1]).sqrt_()
    return radius.round_().long()


def _sums_per_shell(
    values: Callable[[slice], list[Tensor]], box: int, device: torch.device
) -> list[Tensor]:
    """Sums "D//2+1" over the shells of the whole FFT of each of the real `values` "P D D//2+1",
    which are asked for a few planes at once.

    Its corners are left out.
    """
    count = box // 2 + 1
    # rfftn leaves out the conjugates, except of the planes that are their own
    multiplicity = torch.full((count,), 2.0, dtype=torch.float64, device=device)
    multiplicity[0] = 1.0
    if box % 2 == 0:
        multiplicity[-1] = 1.0
    parts = []
    for planes in _planes_at_once(box):
        shell = _shells(box, device, planes).flatten()
        weighted = [(one * multiplicity).flatten() for one in values(planes)]
        sums = [torch.bincount(shell, one, minlength=count)[:count] for one in weighted]
        parts.append(torch.stack(sums))
    return list(torch.stack(parts).sum(0))


def levelled(volume: Tensor, mask: Tensor) -> Tensor:
    """The map "D D D" in float64, inside `mask` "D D D", less its level at the mask's edge.

    A field is free to have any level where the mask is open and is zero elsewhere: two fields of
    nothing then share the mask's shape, with an FSC of up to 1 at every shell. The level is the one
    at the edge and not the mean of all, since a molecule is brighter than its surroundings: without
    its mean it would end in a step, the same in both halves, that reaches far beyond what they
    agree on (a map that ends at shell 13 of 32, in its automatic mask: FSC of 0.26 at shell 17
    without the edge's level, 0.28 as it was, 0.58 without the mean). A map that is zero wherever
    the mask is has been multiplied by it, and is not again.
    """
    _, inside = _Level(mask, volume.device).taken_off(volume)
    return inside


class _Level:
    """The level of maps at the edge of a mask "D D D", which is looked at once for all of them."""

    def __init__(self, mask: Tensor, device: torch.device) -> None:
        self.window = mask.to(device, torch.float64)
        self.closed = self.window <= 0
        self.has_closed = bool(self.closed.any())
        edge = _edge(self.window)
        self.weights = edge * self.window
        self.norm = (self.weights * self.window).sum()

    def taken_off(self, volume: Tensor) -> tuple[Tensor, Tensor]:
        """The map less its level, where it had one, and that times the mask."""
        volume = volume.detach().double()
        is_masked = self.has_closed and not bool(volume[self.closed].any())
        inside = volume if is_masked else volume * self.window
        level = (self.weights * inside).sum() / self.norm
        if is_masked:
            inside = inside - level * self.window
            return inside, inside
        return volume - level, inside - level * self.window


def _edge(window: Tensor) -> Tensor:
    """Weights "D D D" of the voxels at a mask's edge; the mask itself where it has none."""
    padded = torch.nn.functional.pad(
        window[None, None],
        (1,) * 6,
        mode="replicate",
    )
    smooth = torch.nn.functional.avg_pool3d(
        padded,
        3,
        1,
    )
    outside_share = 1 - smooth[0, 0]
    edge = window * outside_share.clamp(min=0)
    total = float(window.sum())
    if float(edge.sum()) > 1e-9 * total:
        return edge
    return window


def independent_components(mask: Tensor) -> Tensor:
    """Independent components "D//2+1" of white noise inside `mask` "D D D", in each shell.

    By 1 / √ of it an FSC scatters about 0. N² / Σ |ρ(k - k')|² over pairs of the N components of a
    shell, with ρ the mask's own correlation of components, the normalised transform of mask²;
    without a mask N.
    """
    shell = torch.arange(len(mask) // 2 + 1)
    return _independent_between(mask, shell, shell)


def _independent_between(
    mask: Tensor,
    low: Tensor,
    high: Tensor,
) -> Tensor:
    """Independent components "S" of all shells from `low` to `high` "S", taken together.

    The sum is over positions instead: of the autocorrelation of mask², which is averaged over
    directions, times the square of the transform of the shells, 4π (sin Ku - Ku cos Ku) / u³
    between two radii K, with u = 2π |x| / D.
    """
    window = mask.detach().double().cpu().square()
    box = len(mask)
    power = torch.fft.rfftn(window).abs().square()
    autocorrelation = torch.fft.irfftn(power, s=window.shape)
    distance = _distances(box)
    distance_bin = (BINS_PER_VOXEL * distance).round().long()
    weight = torch.bincount(distance_bin, autocorrelation.flatten())
    count = torch.bincount(distance_bin).clamp(min=1)
    mean_distance = torch.bincount(distance_bin, distance) / count
    u = 2 * math.pi / box * mean_distance
    u = u.clamp(min=1e-3)
    inner = low.double()[:, None] - 0.5
    outer = high.double()[:, None] + 0.5
    inner = inner.clamp(min=0)
    outer = outer.clamp(min=0)
    shells = _ball_transform(outer, u) - _ball_transform(inner, u)
    cubes = outer**3 - inner**3
    volume = 4 / 3 * math.pi * cubes[:, 0]
    pairs = shells.square() * weight
    total = window.sum()
    return volume**2 * total**2 / pairs.sum(1)


def _distances(box: int) -> Tensor:
    """Distance "D³" in voxels of each shift from none, the shorter way around."""
    axis = torch.fft.fftfreq(
        box,
        1 / box,
        dtype=torch.float64,
    )
    square = axis.square()
    distance = square[:, None, None] + square[:, None] + square
    return distance.sqrt_().flatten()


def _ball_transform(radius: Tensor, u: Tensor) -> Tensor:
    """The Fourier transform "S U" of balls of `radius` "S 1" at u "U"."""
    ku = radius * u
    sine = torch.sin(ku)
    cosine = torch.cos(ku)
    return 4 * math.pi * (sine - ku * cosine) / u**3


def cross(
    one: Tensor,
    two: Tensor,
    raw_one: Tensor,
    raw_two: Tensor,
    mask: Tensor,
) -> dict[str, Tensor]:
    """What half maps `one` and `two` "D D D" owe to the data: FSC curves "D//2+1" inside `mask`.

    All are of maps that are `levelled`. raw_one, raw_two: direct inversions of the same halves,
    which no prior has touched. direct: of raw_one with raw_two. cross: mean of one with raw_two,
    and two with raw_one. unbiased: cross² / direct, see below.

    raw_two is truth and noise that `one` has not seen. So cross = c_ht c_rt, with c_ht the
    correlation of a half map with the truth and c_rt that of an inversion, and direct = c_rt²: the
    ratio is c_ht², the FSC that half maps would have if they shared nothing but the truth. What a
    prior puts into both, they share with neither inversion. Both curves are means over the
    components of three shells; the first shells are judged together, as many as it takes for
    `MIN_FIRST_COMPONENTS` independent components. Where direct is below `MIN_DIRECT_FSC`, or
    `MIN_DIRECT_SIGMAS` standard deviations of chance, the ratio is 0 from there on: the data can't
    tell. At that limit it errs by about half of its value and is by a ninth too large (Jensen's
    inequality); both fall as direct grows. A cross below zero gives 0.
    """
    level = _Level(mask, one.device)

    def transform(volume: Tensor) -> Tensor:
        _, inside = level.taken_off(volume)
        return _transform(inside)

    raw_transforms = [transform(raw) for raw in (raw_one, raw_two)]
    direct = _correlation(*raw_transforms)
    one_crossed = _correlation(transform(one), raw_transforms[1])
    two_crossed = _correlation(transform(two), raw_transforms[0])
    crossed = 0.5 * (one_crossed + two_crossed)
    del raw_transforms  # which are as large as what follows
    unbiased = _unbiased(crossed, direct, mask)
    return {"direct": direct, "cross": crossed, "unbiased": unbiased}


def _unbiased(
    crossed: Tensor,
    direct: Tensor,
    mask: Tensor,
) -> Tensor:
    """crossed² / direct, up to the first shell where `direct` is chance."""
    unbiased = torch.zeros_like(direct)
    last = len(direct) - 1
    shell, low, high = _averaged_shells(mask, last)
    components = _independent_between(mask, low, high)
    chance = MIN_DIRECT_SIGMAS / components.sqrt()
    box = len(mask)
    one = torch.ones((), dtype=torch.float64, device=direct.device)

    def ones(planes: slice) -> list[Tensor]:
        count = len(range(box)[planes])
        return [one.expand(count, box, box // 2 + 1)]

    (size,) = _sums_per_shell(ones, box, direct.device)
    spans = zip(
        shell.tolist(),
        low.tolist(),
        high.tolist(),
        chance.tolist(),
        strict=True,
    )
    for index, first, final, limit in spans:
        span = slice(first, final + 1)
        sizes = size[span]
        share = sizes / sizes.sum()
        mean_direct = float((share * direct[span]).sum())
        if mean_direct < max(MIN_DIRECT_FSC, limit):
            break
        mean_crossed = float((share * crossed[span]).sum())
        positive = max(0.0, mean_crossed)
        unbiased[index] = positive**2 / mean_direct
    unbiased[0] = unbiased[1]
    return unbiased.clamp(max=1)


def _averaged_shells(mask: Tensor, last: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each shell from 1 to `last`, and the first and the last of those that are judged with it."""
    shell = torch.arange(1, last + 1)
    from_first = _independent_between(
        mask,
        torch.ones_like(shell),
        shell,
    )
    enough = (from_first >= MIN_FIRST_COMPONENTS).nonzero()
    start = last
    if len(enough):
        start = int(shell[enough[0, 0]])
    beyond = shell > start
    low = torch.where(
        beyond,
        shell - 1,
        1,
    )
    high = torch.where(
        beyond,
        shell + 1,
        start,
    )
    return shell, low, high.clamp(max=last)


def resolution(
    curve: Tensor,
    box: int,
    pixel_size: float,
    threshold: float,
) -> float:
    """Å at which `curve` "D//2+1" first falls below `threshold`.

    It is linear in frequency between shells; the last shell's where the curve never falls (Nyquist,
    for an even box), the box's edge where it starts below.
    """
    below = (~(curve[1:] >= threshold)).nonzero()
    edge = box * pixel_size
    if not len(below):
        return edge / (len(curve) - 1)
    shell = int(below[0]) + 1
    if shell == 1:
        return edge
    value_above = float(curve[shell - 1])
    value_below = float(curve[shell])
    fraction = (value_above - threshold) / (value_above - value_below)
    return edge / (shell - 1 + fraction)


def auc(curve: Tensor) -> float:
    """Mean of the curve over the shells from 1 to the last: 1 for equal maps, about 0 for unrelated
    ones.
    """
    return float(curve[1:].mean())


@dataclass(frozen=True)
class MaskCorrection:
    """How far a mask alone makes two maps agree: FSC curves "D//2+1".

    shell: from which on phases are random. masked: of the maps inside the mask. random: of the
    same with random phases. corrected: masked, less what random phases bring about.
    """

    shell: int
    masked: Tensor
    random: Tensor
    corrected: Tensor


def phase_randomised(
    a: Tensor,
    b: Tensor,
    mask: Tensor,
    shell: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """FSC "D//2+1" inside `mask`, less the agreement that the mask itself brings about.

    The last curve of `correct_for_mask`.
    """
    correction = correct_for_mask(a, b, mask, shell, generator)
    return correction.corrected


def correct_for_mask(
    a: Tensor,
    b: Tensor,
    mask: Tensor,
    shell: int | None = None,
    generator: torch.Generator | None = None,
) -> MaskCorrection:
    """FSC of maps "D D D" inside `mask` "D D D", and how much of it the mask brings about.

    The maps are `levelled`. (FSC_masked - FSC_random) / (1 - FSC_random) from `shell` + 2 on,
    FSC_masked before; FSC_random is that of the masked maps after their phases were made random
    from `shell` on. shell: None means where the FSC without mask falls below 0.8. Chen et al.,
    Ultramicroscopy 135, 24-35 (2013).
    """
    level = _Level(mask, a.device)
    level_a, inside_a = level.taken_off(a)
    level_b, inside_b = level.taken_off(b)
    del level
    masked = fsc(inside_a, inside_b)
    del inside_a, inside_b  # which are as large as what follows
    if shell is None:
        shell = _first_unknown_phase(
            level_a,
            level_b,
            len(masked),
        )
    random_a = _randomise(level_a, shell, generator)
    random_b = _randomise(level_b, shell, generator)
    random = fsc(random_a, random_b, mask)
    rest = 1 - random
    known = rest > 1e-6  # otherwise the mask explains everything, and nothing is known of the maps
    safe_rest = rest.where(known, torch.ones_like(rest))
    corrected = torch.where(
        known,
        (masked - random) / safe_rest,
        0.0,
    )
    shells = torch.arange(len(masked), device=masked.device)
    corrected = torch.where(
        shells < shell + 2,
        masked,
        corrected.clamp(-1, 1),
    )
    return MaskCorrection(shell, masked, random, corrected)


def _first_unknown_phase(
    a: Tensor,
    b: Tensor,
    count: int,
) -> int:
    """The first shell in which two maps agree too little; `count` where there is none."""
    unmasked = fsc(a, b)[1:]
    low = (unmasked < MIN_KNOWN_PHASE_FSC).nonzero()
    return int(low[0]) + 1 if len(low) else count


def _randomise(
    volume: Tensor,
    shell: int,
    generator: torch.Generator | None,
) -> Tensor:
    """The map with random phases from `shell` on.

    They are those of white noise, so that it stays real and keeps every amplitude.
    """
    device = volume.device if generator is None else generator.device
    white = torch.randn(
        volume.shape,
        generator=generator,
        device=device,
        dtype=torch.float64,
    )
    noise = _transform(white).to(volume.device)
    del white  # which is as large as the map
    transform = _transform(volume)
    box = len(volume)
    for planes in _planes_at_once(box):
        known = transform[planes]
        kept = _shells(box, volume.device, planes) < shell
        random = known.abs() * torch.sgn(noise[planes])
        transform[planes] = torch.where(
            kept,
            known,
            random,
        )
    del noise
    return torch.fft.irfftn(transform, s=volume.shape)


def write_csv(
    path: str | Path,
    curves: dict[str, Tensor],
    box: int,
    pixel_size: float,
) -> None:
    """Write curves "D//2+1" as columns of a table.

    They stand beside shell, spatial frequency (1/Å) and resolution (Å). Raises OutputError.
    """
    columns = [curve.tolist() for curve in curves.values()]
    with replacing(path) as sibling, sibling.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["shell", "spatial_frequency", "resolution", *curves])
        for shell, values in enumerate(zip(*columns, strict=True)):
            frequency = shell / (box * pixel_size)
            wavelength = f"{1 / frequency:.6g}" if shell else "inf"
            cells = [f"{value:.6f}" for value in values]
            table.writerow([shell, f"{frequency:.6g}", wavelength, *cells])


def same_frame(
    a: tuple[Tensor, float],
    b: tuple[Tensor, float],
    names: tuple[str, str],
) -> None:
    """Refuse two maps, each with its pixel size, that cannot be compared. Raises DataError."""
    volume_a, size_a = a
    volume_b, size_b = b
    name_a, name_b = names
    if volume_a.shape != volume_b.shape:
        raise DataError(
            f"map '{name_a}' has a box of {len(volume_a)}, '{name_b}' of {len(volume_b)}; they must"
            " be equal"
        )
    if not math.isclose(size_a, size_b, rel_tol=0.01):
        raise DataError(
            f"map '{name_a}' has pixels of {size_a:g} Å, '{name_b}' of {size_b:g} Å; they must"
            " be equal"
        )
