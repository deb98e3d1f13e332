"""Postprocessing: from two half maps to a resolution that can be trusted, everywhere and along each
direction, and to a sharpened map.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from instamap.data import formats
from instamap.errors import DataError, OptionError
from instamap.geometry import symmetry
from instamap.maps import directional_fsc, fsc, local_resolution, mrc, sharpening
from instamap.maps import mask as masks
from instamap.maps.detector_mtf import DetectorMtf
from instamap.maps.directional_fsc import DirectionalFsc
from instamap.maps.fsc import MaskCorrection
from instamap.maps.local_resolution import LocalResolution
from instamap.maps.sharpening import GuinierFit
from instamap.progress import SILENT, Progress
from instamap.report import (
    card,
    directional_fsc_plot,
    fsc_plot,
    guinier_plot,
    local_resolution_plot,
    slices,
)
from instamap.report.section import paragraphs, table
from instamap.workflows.read_mtf import read_mtf

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GOLD_STANDARD = fsc.RESOLUTION_THRESHOLDS[-1]
RANDOM_SEED = 20130135
"""Seed of the random phases: the same question has the same answer. Not 0, from which people
simulate the very noise whose phases are to be replaced.
"""
FOUND_MASK = "mask.mrc"
LOCAL_SHARES = (0.1, 0.5, 0.9)  # of the voxels in the mask, whose local resolution is recorded


@dataclass(frozen=True)
class PostprocessSettings:
    """What can be chosen.

    mask: a file. auto_mask: a mask that is found around the particle. b_factor: Å², negative to
    sharpen; None for that of the Guinier plot, whose line goes from `fit_from` to `fit_to` Å (None:
    the resolution at 0.143). low_pass: Å beyond which nothing of the sharpened map is left. window:
    Å within which local resolution is judged, None for 7 resolutions. local: whether it is.
    particles: the file whose views say how each direction was covered. point_group: of the
    particle.
    """

    half1: Path
    half2: Path
    mask: Path | None = None
    auto_mask: bool = False
    b_factor: float | None = None
    fit_from: float = 10.0
    fit_to: float | None = None
    mtf: Path | None = None
    mtf_angpix: float | None = None
    low_pass: float | None = None
    window: float | None = None
    local: bool = True
    particles: Path | None = None
    point_group: str = "C1"

    def __post_init__(self) -> None:
        if self.mask is not None and self.auto_mask:
            raise OptionError(
                f"mask '{self.mask}' is given and --auto-mask finds another; leave one out"
            )
        if self.mtf_angpix is not None and self.mtf is None:
            raise OptionError(
                f"--mtf-angpix is {self.mtf_angpix:g} Å, but there is no --mtf; give both"
            )
        for name in ("fit_from", "fit_to", "mtf_angpix", "low_pass", "window"):
            value = vars(self)[name]
            if value is not None and not value > 0:
                flag = name.replace("_", "-")
                raise OptionError(f"--{flag} is {value:g} Å; give a length above 0")

    @property
    def mask_name(self) -> str | None:
        """The file of the mask, or that of the one that was found."""
        if self.auto_mask:
            return FOUND_MASK
        return None if self.mask is None else str(self.mask)

    @property
    def inputs(self) -> list[Path]:
        """The files that are read."""
        optional = [path for path in (self.mask, self.mtf, self.particles) if path is not None]
        return [self.half1, self.half2, *optional]


@dataclass(frozen=True)
class HalfMaps:
    """Two half maps "D D D" of `pixel_size` Å, where they are (`mrc.Origin`), and the mask."""

    one: Tensor
    other: Tensor
    pixel_size: float
    origin: mrc.Origin
    mask: Tensor | None

    @property
    def box(self) -> int:
        """Voxels along an edge."""
        return len(self.one)

    @property
    def mean(self) -> Tensor:
        """The map of all particles, "D D D"."""
        return 0.5 * (self.one + self.other)

    def resolution(self, curve: Tensor, threshold: float = GOLD_STANDARD) -> float:
        """Å where an FSC curve "D//2+1" of the maps falls to `threshold`."""
        return fsc.resolution(curve, self.box, self.pixel_size, threshold)


@dataclass(frozen=True)
class Sharpened:
    """A map "D D D" with its B-factor (Å²) undone and each shell weighted by its FSC.

    unweighted "D D D": without these weights. fit: of the Guinier plot, None where there is none.
    amplitudes "D//2+1": mean |F| of the original map, of it without the detector's MTF where that
    is known, of the weighted and the sharpened one.
    """

    volume: Tensor
    unweighted: Tensor
    b_factor: float
    fit: GuinierFit | None
    amplitudes: dict[str, Tensor]


@dataclass(frozen=True)
class PostprocessResult:
    """What two half maps say.

    curves "D//2+1" by name, the last of them that by which the resolution is read. correction: of
    the mask, if there is one. filtered "D D D": to the local resolution. sampling "V": how often
    each direction was seen. messages: what a person should know.
    """

    settings: PostprocessSettings
    half_maps: HalfMaps
    curves: dict[str, Tensor]
    correction: MaskCorrection | None
    sharpened: Sharpened
    directional: DirectionalFsc
    local: LocalResolution | None = None
    filtered: Tensor | None = None
    sampling: Tensor | None = None
    messages: Sequence[str] = field(default_factory=tuple)

    @property
    def curve(self) -> Tensor:
        """The FSC "D//2+1" by which the resolution is read."""
        return list(self.curves.values())[-1]

    def resolution(self, threshold: float = GOLD_STANDARD) -> float:
        """Å where the curve falls to `threshold`."""
        return self.half_maps.resolution(self.curve, threshold)

    def directions(self) -> Tensor:
        """Å "V" of each direction, at 0.143."""
        return self.directional.resolutions(self.half_maps.box, self.half_maps.pixel_size)

    def local_quantiles(self) -> list[float]:
        """Å that a tenth, half and nine tenths of the voxels in the mask are better than."""
        if self.local is None:
            return []
        values = self.local.resolution
        mask = self.half_maps.mask
        inside = values.flatten() if mask is None else values[mask > 0.5]
        ordered = inside.sort().values
        last = len(ordered) - 1
        return [float(ordered[round(share * last)]) for share in LOCAL_SHARES]

    @property
    def verdict(self) -> str:
        """The resolution, in words."""
        return f"resolution {self.resolution():.2f} Å (0.143), {self.resolution(0.5):.2f} Å (0.5)"

    def summary(self) -> list[list[str]]:
        """What was found: pairs of a name and words."""
        directions = self.directions()
        rows = [
            ["resolution", self.verdict.removeprefix("resolution ")],
            [
                "along directions",
                f"{float(directions.min()):.2f} to {float(directions.max()):.2f} Å",
            ],
            ["B-factor", f"{self.sharpened.b_factor:.1f} Å²"],
        ]
        if self.local is not None:
            best, median, worst = self.local_quantiles()
            words = f"{best:.2f} to {worst:.2f} Å, half of it within {median:.2f} Å"
            rows.append(["local resolution", words])
            noise = self.local.without_signal(self.half_maps.mask)
            window = self.local.bands.window
            words = f"{noise:.1%} of places are not told from noise, in a window of {window:.0f} Å"
            rows.append(["without signal", words])
        if self.sampling is not None:
            low = float(self.sampling.min())
            high = float(self.sampling.max())
            words = f"directions were seen {low:.2f} to {high:.2f} times as often as with"
            rows.append(["views", f"{words} uniform views"])
        return rows

    def plot_fsc(self) -> "Figure":
        """The FSC curves as a matplotlib figure."""
        return fsc_plot.drawn(self.curves, self.half_maps.box, self.half_maps.pixel_size)

    def plot_guinier(self) -> "Figure":
        """The Guinier plot as a matplotlib figure: ln |F| over 1/d², and the B-factor's line."""
        half_maps = self.half_maps
        sharpened = self.sharpened
        amplitudes = sharpened.amplitudes
        return guinier_plot.drawn(amplitudes, sharpened.fit, half_maps.box, half_maps.pixel_size)

    def plot_directions(self) -> "Figure":
        """The resolution along each direction as a matplotlib figure."""
        return directional_fsc_plot.drawn(self.directions(), self.sampling)

    def plot_local_resolution(self) -> "Figure":
        """Local resolution as a matplotlib figure. Raises DataError where it was not looked for."""
        if self.local is None:
            raise DataError(
                "this result has no local resolution, as it was not looked for; repeat it with"
                " local=True"
            )
        mask = self.half_maps.mask
        return local_resolution_plot.drawn(self.local, self.sharpened.volume, mask)

    def plot_slices(self) -> "Figure":
        """Central slices and projections of the sharpened map as a matplotlib figure."""
        return slices.drawn(self.sharpened.volume, self.half_maps.pixel_size)

    @property
    def _facts(self) -> str:
        half_maps = self.half_maps
        mask = "in a mask" if half_maps.mask is not None else "without a mask"
        return f"two half maps of {half_maps.box} px of {half_maps.pixel_size:.4g} Å, {mask}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.verdict}; {self._facts}>"

    def _repr_html_(self) -> str:
        """What a notebook shows of it."""
        facts = f"{type(self).__name__}: {self._facts}"
        more = table([], self.summary(), "Postprocessing") + paragraphs(self.messages)
        return card.card(self.verdict, facts, self.sharpened.volume, more)

    def record(self) -> dict[str, Any]:
        """The numbers, by name, as JSON can hold them."""
        directions = self.directions()
        half_maps = self.half_maps
        values: dict[str, Any] = {
            "half1": str(self.settings.half1),
            "half2": str(self.settings.half2),
            "mask": self.settings.mask_name,
            "box": half_maps.box,
            "pixel_size": half_maps.pixel_size,
            "resolution": _rounded(self.resolution()),
            "resolution_0.5": _rounded(self.resolution(0.5)),
            "b_factor": _rounded(self.sharpened.b_factor),
            "mtf": None if self.settings.mtf is None else str(self.settings.mtf),
            "directions": {
                "best": _rounded(directions.min()),
                "median": _rounded(directions.median()),
                "worst": _rounded(directions.max()),
            },
            "messages": list(self.messages),
        }
        if self.correction is not None:
            values["random_phases_from_shell"] = self.correction.shell
        if self.local is not None:
            values["local_resolution"] = self._local_record(self.local)
        if self.sampling is not None:
            values["views"] = {
                "least_seen_direction": _rounded(self.sampling.min()),
                "most_seen_direction": _rounded(self.sampling.max()),
                "sampling_factor": _rounded(directional_fsc.sampling_factor(self.sampling)),
            }
        return values

    def _local_record(self, local: LocalResolution) -> dict[str, Any]:
        """What was found around voxels, and what noise alone gives."""
        best, median, worst = self.local_quantiles()
        bands = local.bands
        judged = range(bands.first, bands.last + 1)
        chance = local.chance[bands.first - 1 :]
        return {
            "window": _rounded(bands.window),
            "tenth": _rounded(best),
            "median": _rounded(median),
            "nine_tenths": _rounded(worst),
            "lowest": _rounded(local.lowest),
            "without_signal": _rounded(local.without_signal(self.half_maps.mask)),
            "frequencies": [_rounded(bands.frequency(band)) for band in judged],
            "fsc_of_noise": [_rounded(value) for value in chance],
        }


def postprocess(
    settings: PostprocessSettings,
    progress: Progress = SILENT,
) -> PostprocessResult:
    """Resolution, sharpening, local and directional resolution of two half maps.

    Raises DataError for maps and masks that cannot be read or do not belong together, OptionError
    for a window that does not fit.
    """
    sampling = _sampling(settings)
    mtf = None if settings.mtf is None else read_mtf(settings.mtf)
    half_maps = _read(settings)
    one = half_maps.one
    other = half_maps.other
    mask = half_maps.mask
    curves = {"whole": fsc.fsc(one, other)}
    correction = None
    if mask is not None:
        generator = torch.Generator().manual_seed(RANDOM_SEED)
        correction = fsc.correct_for_mask(one, other, mask, generator=generator)
        curves["masked"] = correction.masked
        curves["random phases"] = correction.random
        curves["corrected"] = correction.corrected
    curve = list(curves.values())[-1]
    resolution = half_maps.resolution(curve)
    sharpened = _sharpen(settings, half_maps, curve, mtf)
    result = PostprocessResult(
        settings=settings,
        half_maps=half_maps,
        curves=curves,
        correction=correction,
        sharpened=sharpened,
        directional=directional_fsc.directional_fsc(one, other, mask),
        sampling=sampling,
        messages=_messages(settings, half_maps, curves, sharpened),
    )
    if not settings.local:
        return result
    pixel_size = half_maps.pixel_size
    bands = local_resolution.choose_bands(
        half_maps.box,
        pixel_size,
        resolution,
        settings.window,
    )
    local = local_resolution.estimate(one, other, pixel_size, bands, progress)
    filtered = local_resolution.filter_map(sharpened.unweighted, local, pixel_size, progress)
    return replace(result, local=local, filtered=filtered)


def _read(settings: PostprocessSettings) -> HalfMaps:
    """The half maps and the mask. Raises DataError where they do not belong together."""
    half1 = mrc.read(settings.half1)
    half2 = mrc.read(settings.half2)
    fsc.same_frame(half1, half2, (str(settings.half1), str(settings.half2)))
    one, pixel_size = half1
    other = half2[0]
    for path, volume in ((settings.half1, one), (settings.half2, other)):
        if not bool((volume != volume[0, 0, 0]).any()):
            raise DataError(f"map '{path}' is {volume[0, 0, 0]:g} everywhere; give a half map")
    if torch.equal(one, other):
        raise DataError(
            f"maps '{settings.half1}' and '{settings.half2}' are the same; give two half maps"
        )
    mask = None
    if settings.mask is not None:
        mask = masks.load(settings.mask, len(one), pixel_size)
    elif settings.auto_mask:
        mask = masks.from_map(0.5 * (one + other), pixel_size)
    origin = mrc.read_origin(settings.half1)
    return HalfMaps(one, other, pixel_size, origin, mask)


def _sharpen(
    settings: PostprocessSettings,
    half_maps: HalfMaps,
    curve: Tensor,
    mtf: DetectorMtf | None,
) -> Sharpened:
    """The mean of the half maps without the detector's `mtf`, sharpened and weighted by their FSC
    `curve` "D//2+1".
    """
    mean = half_maps.mean
    box = half_maps.box
    pixel_size = half_maps.pixel_size
    amplitudes = {"original": sharpening.mean_amplitudes(mean)}
    if mtf is not None:
        mean = mtf.divide(mean, pixel_size, settings.mtf_angpix or pixel_size)
        amplitudes["MTF corrected"] = sharpening.mean_amplitudes(mean)
    weights = sharpening.fsc_weights(curve)
    weighted = sharpening.sharpen(mean, pixel_size, 0.0, weights=weights)
    amplitude = sharpening.mean_amplitudes(weighted)
    fit = None
    b_factor = settings.b_factor or 0.0
    if settings.b_factor is None:
        low = settings.fit_from
        high = settings.fit_to or half_maps.resolution(curve)
        fit = sharpening.fit_guinier(amplitude, box, pixel_size, low=low, high=high)
        b_factor = min(0.0, fit.b_factor) if fit is not None else 0.0
    unweighted = sharpening.sharpen(mean, pixel_size, b_factor, cutoff=settings.low_pass)
    volume = sharpening.sharpen(unweighted, pixel_size, 0.0, weights=weights)
    amplitudes["weighted"] = amplitude
    amplitudes["sharpened"] = sharpening.mean_amplitudes(volume)
    return Sharpened(volume.float(), unweighted.float(), b_factor, fit, amplitudes)


def _messages(
    settings: PostprocessSettings,
    half_maps: HalfMaps,
    curves: dict[str, Tensor],
    sharpened: Sharpened,
) -> list[str]:
    """What a person should know of the numbers."""
    messages = []
    if half_maps.mask is None:
        messages.append(
            "no mask: the resolution is that of the whole box, solvent included; give --mask or"
            " --auto-mask"
        )
    else:
        whole = half_maps.resolution(curves["whole"])
        corrected = half_maps.resolution(curves["corrected"])
        if corrected > whole:
            messages.append(
                f"the mask makes the resolution worse, {corrected:.2f} Å instead of {whole:.2f} Å:"
                " it is too tight or too sharp; give a larger or softer one"
            )
    if settings.b_factor is None and sharpened.fit is None:
        messages.append(
            f"not sharpened: too few shells from {settings.fit_from:g} Å to the resolution for a"
            " Guinier plot; give --b-factor"
        )
    elif sharpened.fit is not None and sharpened.fit.b_factor > 0:
        messages.append(
            f"not sharpened: amplitudes rise with frequency (B-factor {sharpened.fit.b_factor:.0f}"
            " Å²), so the half maps are sharpened already, or noise"
        )
    return messages


def _sampling(settings: PostprocessSettings) -> Tensor | None:
    """How often the views of the particles saw each direction."""
    if settings.particles is None:
        return None
    table = formats.read(settings.particles)
    group = symmetry.point_group(settings.point_group)
    mates = torch.einsum("nij,sjk->nsik", table.rotation.double(), group)
    return directional_fsc.sampling(mates.flatten(0, 1))


def _rounded(value: float | Tensor) -> float:
    return round(float(value), 4)
