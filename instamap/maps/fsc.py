"""Fourier shell correlation: how far two maps agree, as numbers, as a table and as a picture."""

import csv
import math
from pathlib import Path

import torch
from torch import Tensor

from instamap.errors import DataError
from instamap.files import replacing
from instamap.geometry import grids

THRESHOLDS = (0.5, 0.143)  # against a perfect map; between half maps (Rosenthal & Henderson 2003)
AGREEMENT = 0.8  # unmasked FSC down to which phases are left alone (Chen et al. 2013)
# by how many standard deviations of chance two direct inversions must agree, for a division by that
# to mean anything
SIGMAS = 3.0
# and by how much at least: of a few per cent, edges of masks and other common faults may be the
# cause
LEAST = 0.05
# independent components, at least, by which the first shells are judged, together: then chance may
# reach SIGMAS / √36 = 0.5
LOW = 36
# share of the total power below which a shell holds nothing but the FFT's rounding, in float64
EMPTY = 1e-28


def fsc(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Re Σ A B* / sqrt(Σ|A|² Σ|B|²) over each Fourier shell: "D//2+1" in float64, for maps "D D D"
    times `mask` "D D D".

    Shells are those of `grids.shells` (rounded radius). A shell without power in either map has 0.
    Harauz & van Heel (1986).
    """
    fa, fb = (_transform(m if mask is None else m * mask.to(m)) for m in (a, b))
    box = len(a)
    cross = _per_shell(fa.real * fb.real + fa.imag * fb.imag, box)
    power_a, power_b = (_per_shell(f.real**2 + f.imag**2, box) for f in (fa, fb))
    full = (power_a > EMPTY * power_a.sum()) & (power_b > EMPTY * power_b.sum())
    return torch.where(
        full, cross / (power_a * power_b).sqrt().where(full, torch.ones_like(cross)), 0.0
    )


def _transform(map: Tensor) -> Tensor:
    return torch.fft.rfftn(map.detach().double())


def _shells(box: int, device) -> Tensor:
    """Shell "D D D//2+1" of each component of rfftn."""
    return grids.shells(box, 3)[..., : box // 2 + 1].to(device)


def _per_shell(values: Tensor, box: int) -> Tensor:
    """Sums "D//2+1" of real `values` "D D D//2+1" over the shells of the whole FFT; its corners are
    left out.
    """
    twice = values.new_full(
        (box // 2 + 1,), 2.0
    )  # rfftn leaves out the conjugates, except of the planes that are their own
    twice[0] = 1.0
    if box % 2 == 0:
        twice[-1] = 1.0
    sums = torch.bincount(_shells(box, values.device).flatten(), (values * twice).flatten())
    return sums[: box // 2 + 1]


def levelled(map: Tensor, mask: Tensor) -> Tensor:
    """The map "D D D" in float64, inside `mask` "D D D", less the level that it has at the mask's
    edge.

    A field is free to have any level where the mask is open and is zero elsewhere: two fields of
    nothing then share the mask's shape, with an FSC of up to 1 at every shell. The level is the one
    at the edge and not the mean of all, since a molecule is brighter than its surroundings: without
    its mean it would end in a step, the same in both halves, that reaches far beyond what they
    agree on (a map that ends at shell 13 of 32, in its automatic mask: FSC of 0.26 at shell 17
    without the edge's level, 0.28 as it was, 0.58 without the mean). A map that is zero wherever
    the mask is has been multiplied by it, and is not again.
    """
    return _flat(map, mask)[1]


def _flat(map: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The map less its level, where it had one, and that times the mask."""
    window = mask.to(map.device, torch.float64)
    map = map.detach().double()
    masked = bool((window <= 0).any()) and not bool(map[window <= 0].any())
    near = torch.nn.functional.pad(window[None, None], (1,) * 6, mode="replicate")
    edge = window * (1 - torch.nn.functional.avg_pool3d(near, 3, 1)[0, 0]).clamp(min=0)
    if not float(edge.sum()) > 1e-9 * float(window.sum()):
        edge = window  # a mask without edge
    inside = map if masked else map * window
    level = (edge * inside * window).sum() / (edge * window.square()).sum()
    return map - level * (window if masked else 1.0), inside - level * window


def independent(mask: Tensor) -> Tensor:
    """How many independent components "D//2+1" each shell has of white noise inside `mask` "D D D":
    by 1 / √ of it an FSC scatters about 0.

    N² / Σ |ρ(k - k')|² over pairs of the N components of a shell, with ρ the mask's own correlation
    of components, the normalised transform of mask²; without a mask N.
    """
    shell = torch.arange(len(mask) // 2 + 1)
    return _independent(mask, shell, shell)


def _independent(mask: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The same "S" of all components in the shells low..high "S", taken together.

    The sum is over positions instead: of the autocorrelation of mask², which is averaged over
    directions, times the square of the transform of the shells, 4π (sin Ku - Ku cos Ku) / u³
    between two radii K, with u = 2π |x| / D.
    """
    window = mask.detach().double().cpu().square()
    box = len(mask)
    spread = torch.fft.irfftn(torch.fft.rfftn(window).abs().square(), s=window.shape)
    axis = torch.fft.fftfreq(box, 1 / box, dtype=torch.float64)
    distance = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0).flatten()
    nearby = (8 * distance).round().long()
    weight = torch.bincount(nearby, spread.flatten())
    u = torch.bincount(nearby, distance) / torch.bincount(nearby).clamp(min=1)
    u = (2 * math.pi / box * u).clamp(min=1e-3)

    def ball(k):
        return 4 * math.pi * (torch.sin(k * u) - k * u * torch.cos(k * u)) / u**3

    def radii(k, by):
        return (k.double()[:, None] + by).clamp(min=0)

    shells = ball(radii(high, 0.5)) - ball(radii(low, -0.5))
    volume = 4 / 3 * math.pi * (radii(high, 0.5) ** 3 - radii(low, -0.5) ** 3)[:, 0]
    return volume**2 * window.sum() ** 2 / (shells.square() * weight).sum(1)


def cross(
    one: Tensor, two: Tensor, raw_one: Tensor, raw_two: Tensor, mask: Tensor
) -> dict[str, Tensor]:
    """What half maps `one` and `two` "D D D" owe to the data: FSC curves "D//2+1" inside `mask`,
    all of maps that are `levelled`.

    raw_one, raw_two: direct inversions of the same halves, which no prior has touched. direct: of
    raw_one with raw_two. cross: mean of one with raw_two, and two with raw_one. unbiased: cross² /
    direct, see below.

    raw_two is truth and noise that `one` has not seen. So cross = c_ht c_rt, with c_ht the
    correlation of a half map with the truth and c_rt that of an inversion, and direct = c_rt²: the
    ratio is c_ht², the FSC that half maps would have if they shared nothing but the truth. What a
    prior puts into both, they share with neither inversion. Both curves are means over the
    components of three shells; the first shells are judged together, as many as it takes for `LOW`
    independent components. Where direct is below `LEAST`, or `SIGMAS` standard deviations of
    chance, the ratio is 0 from there on: the data can't tell. At that limit it errs by about half
    of its value and is by a ninth too large (Jensen's inequality); both fall as direct grows. A
    cross below zero gives 0.
    """
    maps = [levelled(map, mask) for map in (one, two, raw_one, raw_two)]
    direct = fsc(maps[2], maps[3])
    crossed = 0.5 * (fsc(maps[0], maps[3]) + fsc(maps[1], maps[2]))
    return {"direct": direct, "cross": crossed, "unbiased": _ratio(crossed, direct, mask)}


def _ratio(crossed: Tensor, direct: Tensor, mask: Tensor) -> Tensor:
    """crossed² / direct, up to the first shell where `direct` is chance."""
    found = torch.zeros_like(direct)
    last = len(direct) - 1
    shell = torch.arange(1, last + 1)
    together = (_independent(mask, torch.ones_like(shell), shell) >= LOW).nonzero()
    start = int(shell[together[0, 0]]) if len(together) else last
    low = torch.where(shell > start, shell - 1, 1)
    high = torch.where(shell > start, shell + 1, start).clamp(max=last)
    chance = SIGMAS / _independent(mask, low, high).sqrt()
    size = torch.bincount(grids.shells(len(mask), 3).flatten())[: last + 1].to(direct)
    for at, first, end, limit in zip(
        shell.tolist(), low.tolist(), high.tolist(), chance.tolist(), strict=True
    ):
        part = size[first : end + 1] / size[first : end + 1].sum()
        above, below = (float((part * curve[first : end + 1]).sum()) for curve in (crossed, direct))
        if below < max(LEAST, limit):
            break
        found[at] = max(0.0, above) ** 2 / below
    found[0] = found[1]
    return found.clamp(max=1)


def resolution(curve: Tensor, box: int, pixel_size: float, threshold: float) -> float:
    """Å at which `curve` "D//2+1" first falls below `threshold`, linear in frequency between
    shells.

    The last shell's where it never falls (Nyquist, for an even box), the box's edge where it starts
    below.
    """
    below = (~(curve[1:] >= threshold)).nonzero()
    if not len(below):
        return box * pixel_size / (len(curve) - 1)
    shell = int(below[0]) + 1
    if shell == 1:
        return box * pixel_size
    above = float(curve[shell - 1])
    under = float(curve[shell])
    return box * pixel_size / (shell - 1 + (above - threshold) / (above - under))


def auc(curve: Tensor) -> float:
    """Mean of the curve over the shells from 1 to the last: 1 for equal maps, about 0 for unrelated
    ones.
    """
    return float(curve[1:].mean())


def phase_randomised(
    a: Tensor,
    b: Tensor,
    mask: Tensor,
    shell: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """FSC "D//2+1" of `levelled` maps inside `mask`, less the agreement that the mask itself brings
    about.

    (FSC_masked - FSC_random) / (1 - FSC_random) from `shell` + 2 on, FSC_masked before; FSC_random
    is that of the masked maps after their phases were made random from `shell` on. shell: None
    means where the FSC without mask falls below 0.8. Chen et al., Ultramicroscopy 135, 24-35
    (2013).
    """
    (a, inside_a), (b, inside_b) = _flat(a, mask), _flat(b, mask)
    masked = fsc(inside_a, inside_b)
    if shell is None:
        low = (fsc(a, b)[1:] < AGREEMENT).nonzero()
        shell = int(low[0]) + 1 if len(low) else len(masked)
    random = fsc(_randomise(a, shell, generator), _randomise(b, shell, generator), mask)
    rest = 1 - random
    known = rest > 1e-6  # otherwise the mask explains everything, and nothing is known of the maps
    corrected = torch.where(
        known, (masked - random) / rest.where(known, torch.ones_like(rest)), 0.0
    ).clamp(-1, 1)
    return torch.where(
        torch.arange(len(masked), device=masked.device) < shell + 2, masked, corrected
    )


def _randomise(map: Tensor, shell: int, generator: torch.Generator | None) -> Tensor:
    """The map with random phases from `shell` on: those of white noise, so that it stays real and
    keeps every amplitude.
    """
    device = map.device if generator is None else generator.device
    noise = _transform(
        torch.randn(map.shape, generator=generator, device=device, dtype=torch.float64)
    ).to(map.device)
    wave = _transform(map)
    wave = torch.where(_shells(len(map), map.device) < shell, wave, wave.abs() * torch.sgn(noise))
    return torch.fft.irfftn(wave, s=map.shape)


def write_csv(path: str | Path, curves: dict[str, Tensor], box: int, pixel_size: float) -> None:
    """Write curves "D//2+1" as columns beside shell, spatial frequency (1/Å) and resolution (Å).
    Raises OutputError.
    """
    with replacing(path) as sibling, sibling.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["shell", "spatial_frequency", "resolution", *curves])
        for shell, row in enumerate(zip(*[c.tolist() for c in curves.values()], strict=True)):
            frequency = shell / (box * pixel_size)
            table.writerow(
                [
                    shell,
                    f"{frequency:.6g}",
                    f"{1 / frequency:.6g}" if shell else "inf",
                    *[f"{v:.6f}" for v in row],
                ]
            )


def plot(path: str | Path, curves: dict[str, Tensor], box: int, pixel_size: float) -> None:
    """Write a PNG of named curves "D//2+1" over spatial frequency, with their resolutions at 0.143
    and 0.5. Raises OutputError.
    """
    from matplotlib.figure import Figure  # slow to import, and fits that draw nothing need not wait

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        frequency = torch.arange(len(curve)) / (box * pixel_size)
        half, gold = (resolution(curve, box, pixel_size, t) for t in THRESHOLDS)
        axes.plot(
            frequency.tolist(),
            curve.tolist(),
            linewidth=1.6,
            label=f"{name}: {gold:.2f} Å (0.143), {half:.2f} Å (0.5)",
        )
    for threshold in THRESHOLDS:
        axes.axhline(threshold, color="0.55", linestyle="--", linewidth=0.8, zorder=0)
        axes.annotate(
            f"{threshold:g}",
            (1, threshold),
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color="0.4",
        )
    _frame(axes, box, pixel_size, min(0.0, *[float(c.min()) for c in curves.values()]))
    figure.legend(
        loc="outside upper left", frameon=False, fontsize=9
    )  # inside, curves run through it
    with replacing(path) as sibling:
        figure.savefig(sibling, format="png", dpi=160)


def _frame(axes, box: int, pixel_size: float, lowest: float) -> None:
    last = (box // 2) / (box * pixel_size)
    ticks = [last * i / 6 for i in range(1, 7)]
    axes.set_xticks([0, *ticks], ["∞", *[f"{1 / t:.3g}" for t in ticks]])
    axes.set_xlim(0, last)
    axes.set_ylim(max(-1.05, min(-0.05, lowest - 0.05)), 1.03)
    axes.set_xlabel("spatial frequency, as resolution (Å)")
    axes.set_ylabel("Fourier shell correlation")
    axes.axhline(0, color="0.3", linewidth=0.8, zorder=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def same_frame(a: tuple[Tensor, float], b: tuple[Tensor, float], names: tuple[str, str]) -> None:
    """Refuse two maps (with pixel sizes) that cannot be compared. Raises DataError with both sizes."""
    (first, size_a), (second, size_b) = a, b
    if first.shape != second.shape:
        raise DataError(
            f"map '{names[0]}' has a box of {len(first)}, '{names[1]}' of {len(second)}; they must"
            " be equal"
        )
    if not math.isclose(size_a, size_b, rel_tol=0.01):
        raise DataError(
            f"map '{names[0]}' has pixels of {size_a:g} Å, '{names[1]}' of {size_b:g} Å; they must"
            " be equal"
        )
