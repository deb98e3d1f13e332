"""The images' values, measured while images are read anyway: level, noise, scale, outliers.

Whether an image is wild is judged by the median of all: the fits weigh images by their noise, and
one that is many times stronger than the others would outweigh them.
"""

from typing import Protocol

import torch
from torch import Tensor

from instamap.data.checks.finding import Finding, named
from instamap.errors import DataError
from instamap.geometry import grids

MIN_IMAGES = 5  # of fewer nothing is said
SURVEYED = 2000  # images, at most, that are measured first
BACKGROUNDS = 500  # of these, about as many as have their level and noise measured
SMALLEST_SCALE = 1e-6  # of the images' noise; what lies beyond is lost in float32
LARGEST_SCALE = 1e6
HIGH_LEVEL = 1.0  # background of the median image, either way, in standard deviations of the noise
COMMON_LEVEL = 0.5  # the same in all images, likewise
UNEVEN_NOISE = 10.0  # ratio of the noise's deviations, between images at 5 % and at 95 %
WILD_ENERGY = 10.0  # times the median of all images
WILD_PEAK = 5.0  # likewise
OUTWEIGHING = 0.5  # energy of wild images over that of all others: no map comes of it
PIXELS_AT_ONCE = 1 << 21  # that are read
SMALLEST_NORM = 1e-15  # beyond these, squares are lost in single precision
LARGEST_NORM = 1e15


class ImageReader(Protocol):
    """What images are read from: `Particles`."""

    @property
    def path(self) -> object:
        """The file."""

    @property
    def count(self) -> int:
        """Its rows."""

    @property
    def box(self) -> int:
        """Pixels along an image's edge."""

    @property
    def premultiplied(self) -> bool:
        """Whether the images were multiplied by their CTF."""

    def images(self, rows: Tensor) -> Tensor:
        """Images "B D D" of rows "B"."""


class ImageValues:
    """What was measured of each image "n" (float64, not a number where it was not read).

    level, deviation: mean and standard deviation outside the inscribed circle. amplitude: root mean
    square. peak: the largest pixel, either way.
    """

    def __init__(self, count: int, box: int) -> None:
        unknown = torch.full((count,), torch.nan, dtype=torch.float64)
        centres = grids.pixel_centres(box, 1.0, dtype=torch.float64)
        self._outside = (centres.norm(dim=-1) > box / 2).flatten().nonzero()[:, 0]
        self._step = max(1, min(count, SURVEYED) // BACKGROUNDS)
        self.level = unknown.clone()
        self.deviation = unknown.clone()
        self.amplitude = unknown.clone()
        self.peak = unknown.clone()

    @property
    def measured(self) -> Tensor:
        """Rows "m" of the images that were measured."""
        return (~self.peak.isnan()).nonzero()[:, 0]

    def add(self, rows: Tensor, images: Tensor, *, background: bool) -> None:
        """Measures images "B D D" of rows "B"; level and noise only where that is asked, and of
        some.
        """
        pixels = images.flatten(1)
        if background:
            corners = pixels[:: self._step, self._outside].double()
            self.level[rows[:: self._step]] = corners.mean(1)
            self.deviation[rows[:: self._step]] = corners.std(1)
        self.amplitude[rows] = _norm(pixels) / pixels.shape[1] ** 0.5
        lowest = pixels.amin(1)
        highest = pixels.amax(1)  # both apart: together they are not vectorised
        self.peak[rows] = torch.maximum(-lowest, highest).double()


def _norm(pixels: Tensor) -> Tensor:
    """Norms "n" (float64) of rows "n P", ten times faster than in double precision where squares
    are numbers of single precision.
    """
    norm = torch.linalg.vector_norm(pixels, dim=1).double()
    lost = ~((norm > SMALLEST_NORM) & (norm < LARGEST_NORM))
    if lost.any():
        exact = torch.linalg.vector_norm(pixels[lost], dim=1, dtype=torch.float64)
        norm[lost] = exact
    return norm


class Inspector:
    """Measures images of a set while they are read, and says what is wrong with them."""

    def __init__(self, particles: ImageReader) -> None:
        self.particles = particles
        self.values = ImageValues(particles.count, particles.box)
        self._told: set[int] = set()
        self._left_out = torch.zeros(particles.count, dtype=torch.bool)
        self._reference: tuple[float, float] | None = None

    def inspect(self, rows: Tensor, images: Tensor) -> None:
        """Measures images "B D D" of `rows` "B" that were read, once each.

        After the first findings, raises DataError for wild ones that outweigh all others, with the
        rows of all of them.
        """
        new = self.values.peak[rows].isnan()
        if not new.any():
            return
        is_survey = self._reference is None
        if not new.all():
            rows, images = rows[new], images[new]
        self.values.add(rows, images, background=is_survey)
        if self._reference is not None and self._outweigh():
            self.scan()
            raise DataError(str(self._wild_finding(self.wild())))

    def scan(self) -> None:
        """Reads and measures all images that have not been."""
        reference = self._reference
        self._reference = None
        unread = self.values.peak.isnan().nonzero()[:, 0]
        for rows in unread.split(max(1, PIXELS_AT_ONCE // self.particles.box**2)):
            self.particles.images(rows)
        self._reference = reference

    def leave_out(self, rows: Tensor) -> None:
        """Says nothing of these rows, which no fit sees."""
        self._told.update(rows.tolist())
        self._left_out[rows] = True

    def findings_so_far(self) -> list[Finding]:
        """What is wrong with the images that have been measured, by which others are judged then.

        Where wild images outweigh all others, all images are measured to name all of them.
        """
        if len(self.values.measured) < MIN_IMAGES:
            return []
        if self._outweigh():
            self.scan()
        self._reference = self._medians()
        return [*self._scale(), *self._level(), *self._noise(), *self.later()]

    def later(self) -> list[Finding]:
        """The wild images of which nothing was said yet."""
        rows = [row for row in self.wild().tolist() if row not in self._told]
        if not rows or self._reference is None:
            return []
        self._told.update(rows)
        return [self._wild_finding(torch.tensor(rows))]

    def wild(self) -> Tensor:
        """Rows "m" of the measured images that are far stronger than the median, all over or in a
        pixel.
        """
        if len(self.values.measured) < MIN_IMAGES:
            return torch.zeros(0, dtype=torch.long)
        amplitude, peak = self._reference or self._medians()
        is_strong = self.values.amplitude > WILD_ENERGY**0.5 * amplitude
        has_peak = self.values.peak > WILD_PEAK * peak
        return (is_strong | has_peak).nonzero()[:, 0]

    def _medians(self) -> tuple[float, float]:
        """Of the amplitude and of the peak."""
        known = self.values.measured
        return (
            float(self.values.amplitude[known].median()),
            float(self.values.peak[known].median()),
        )

    def _outweigh(self) -> bool:
        """Whether wild images outweigh all others."""
        rows = self.wild()
        rows = rows[~self._left_out[rows]]
        amplitude, _ = self._reference or self._medians()
        energy = self.values.amplitude[rows].square().sum()
        others = amplitude**2 * (self.particles.count - len(rows))
        return len(rows) > 0 and bool(energy > OUTWEIGHING * others)

    def _wild_finding(self, rows: Tensor) -> Finding:
        amplitude, peak = self._reference or self._medians()
        strongest = float(self.values.amplitude[rows].max()) / amplitude
        highest = float(self.values.peak[rows].max()) / peak
        is_wrong = self._outweigh()
        verb = "outweigh all others" if is_wrong else "are wild"
        value = (
            f"{len(rows)} of {self.particles.count} images of '{self.particles.path}' {verb},"
            f" {named(rows)}: amplitude up to {strongest:.3g} times and pixels up to"
            f" {highest:.3g} times those of the median image"
        )
        remedy = "remove these rows, or leave them out with --exclude-outliers"
        return Finding("outliers", value, remedy, is_wrong)

    def _scale(self) -> list[Finding]:
        known = self.values.measured
        deviation = float(self.values.deviation[known].nanmedian())
        if SMALLEST_SCALE <= deviation <= LARGEST_SCALE or deviation == 0:
            return []
        value = (
            f"images of '{self.particles.path}' have a scale of {deviation:.3g} (standard deviation"
            f" of the noise), outside {SMALLEST_SCALE:g} to {LARGEST_SCALE:g}, where numbers of"
            " single precision do not suffice"
        )
        return [Finding("scale", value, self._normalise(), is_wrong=True)]

    def _normalise(self) -> str:
        if self.particles.premultiplied:
            return "multiply them by a factor that brings it near 1"
        return "add --normalise"

    def _level(self) -> list[Finding]:
        known = self.values.measured
        level = self.values.level[known] / self.values.deviation[known]
        level = level[level.isfinite()]
        if not len(level):
            return []
        common = float(level.median())
        usual = float(level.abs().median())
        if abs(common) <= COMMON_LEVEL and usual <= HIGH_LEVEL:
            return []
        is_common = abs(common) > COMMON_LEVEL
        amount = f"{common:+.3g}" if is_common else f"{usual:.3g} either way"
        value = (
            f"the background of the images of '{self.particles.path}' is not levelled: it is"
            f" {amount} standard deviations of the noise from 0"
        )
        remedy = "add --normalise"
        if self.particles.premultiplied:
            remedy = "level them before they are multiplied by the CTF"
        return [Finding("background", value, remedy)]

    def _noise(self) -> list[Finding]:
        known = self.values.measured
        deviation = self.values.deviation[known]
        deviation = deviation[deviation.isfinite()]
        low, high = deviation.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
        if not low > 0 or high <= UNEVEN_NOISE * low:
            return []
        value = (
            f"the noise of the images of '{self.particles.path}' differs from {low:.3g} to"
            f" {high:.3g} (standard deviations of one image in twenty)"
        )
        return [Finding("uneven-noise", value, self._normalise())]
