"""Other readings of the same images: which convention explains held-out images best.

Each alternative changes one thing of how images are understood, such as the sign of the shifts. A
quick map of one half of the images is judged by the other half and the other way round, under each.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from instamap.fourier.ctf import ctf
from instamap.maps import mask
from instamap.progress import SILENT, Progress
from instamap.scene import Optics, Views
from instamap.statistics import initial_map
from instamap.statistics.accumulator import Accumulator
from instamap.statistics.statistics import Statistics

IMAGES_AT_ONCE = 256
SOLVER_STEPS = 6
BANDS = 8  # of frequency
MIN_GAIN = 20.0  # nats by which an alternative must be likelier
MIN_SHARE = 0.003  # likewise, of what the likelier one explains
# likewise, once another was found: what it leaves may be mended by what is not broken
MIN_FURTHER_SHARE = 0.1
# likewise, of alternatives that may also win by having fewer zeros, or matter little
MIN_SHARES = {
    "defocus": 0.03,
    "no-ctf": 0.03,
    "phase-flipped": 0.03,
    "ctf-sign": 0.03,
    "astigmatism": 0.01,
}
LOWEST_DEFOCUS = 1000.0  # Å, of the median image, whose CTF is worth judging

TransferKind = Literal["given", "absolute", "none"]


@dataclass(frozen=True)
class Reading:
    """Images "n D D" as they are understood.

    noise_variance "n D//2+1". transfer: the CTF as given; its absolute value, as in phase-flipped
    images; or none. symmetry "S 3 3": of the density.
    """

    images: Tensor
    views: Views
    noise_variance: Tensor
    pixel_size: float
    premultiplied: bool
    transfer: TransferKind = "given"
    symmetry: Tensor | None = None

    def statistics(self, rows: Tensor) -> Statistics:
        """The statistics of some images, understood like this."""
        accumulator = Accumulator(
            self.images.shape[-1],
            self.pixel_size,
            symmetry=self.symmetry,
            premultiplied=self.premultiplied,
        )
        for some in rows.split(IMAGES_AT_ONCE):
            accumulator.add(
                self.images[some],
                self.views[some],
                noise_variance=self.noise_variance[some],
                ctf=self._transfer(some),
            )
        return accumulator.finish()

    def _transfer(self, rows: Tensor) -> Tensor | None:
        if self.views.optics is None or self.transfer == "none":
            return None
        found = ctf(self.views.optics[rows], self.images.shape[-1], self.pixel_size).float()
        return found.abs() if self.transfer == "absolute" else found


@dataclass(frozen=True)
class Alternative:
    """A change of one thing in how images are understood.

    code: of the finding. aspect: alternatives of one aspect exclude one another. amount: how much
    is changed, where that can be said in a number.
    """

    code: str
    aspect: str
    change: Callable[[Reading], Reading]
    amount: float = 0.0


@dataclass(frozen=True)
class Judgement:
    """An alternative that is likelier than the reading before it, by so many nats of held-out
    images. images: how many there were.
    """

    alternative: Alternative
    nats: float
    images: int


def explained(reading: Reading) -> tuple[float, float]:
    """Nats of held-out images that a quick map of the others explains, each half by the other."""
    rows = torch.arange(len(reading.images))
    one, two = (reading.statistics(rows[start::2]) for start in (0, 1))
    return _explained(one, two), _explained(two, one)


def _explained(fitted: Statistics, held_out: Statistics) -> float:
    """The nats that a map explains when each of its bands of frequency has the factor that suits
    the held-out images best: so what is noise in it does not matter under any reading.
    """
    box = fitted.cube.box
    radius = (box // 2 - 0.5) * fitted.pixel_size
    sphere = mask.sphere(box, fitted.pixel_size, radius, 0.0)
    bands = _bands(initial_map.solve(fitted, sphere, SOLVER_STEPS))
    curved = torch.stack([held_out.apply(band) for band in bands]).flatten(1).double()
    flat = bands.flatten(1).double()
    curvature = flat @ curved.mT
    projection = flat @ held_out.b.flatten().double()
    scale = curvature.diagonal().clamp(min=torch.finfo(torch.float64).tiny).rsqrt()
    curvature = curvature * scale[:, None] * scale
    projection = projection * scale
    factors = torch.linalg.lstsq(curvature, projection).solution.clamp(min=0)
    return float(factors @ projection - 0.5 * factors @ curvature @ factors)


def _bands(volume: Tensor) -> Tensor:
    """A map's parts "M N N N" in bands of frequency, which add up to it within Nyquist."""
    box = len(volume)
    along = torch.fft.fftfreq(box)
    half = torch.fft.rfftfreq(box)
    square = along[:, None, None] ** 2 + along[:, None] ** 2 + half**2
    band = (square.sqrt() * 2 * BANDS).long()
    spectrum = torch.fft.rfftn(volume)
    parts = [
        torch.fft.irfftn(spectrum * (band == number), s=volume.shape) for number in range(BANDS)
    ]
    return torch.stack(parts)


def more_likely(
    reading: Reading,
    among: list[Alternative],
    most: int = 3,
    progress: Progress = SILENT,
) -> list[Judgement]:
    """The alternatives that are likelier beyond chance, the likeliest first, each judged with those
    before it taken on.
    """
    found: list[Judgement] = []
    left = among
    given = explained(reading)
    while left and len(found) < most:
        tried: list[tuple[float, tuple[float, float], Alternative]] = []
        for number, one in enumerate(left, 1):
            other = explained(one.change(reading))
            share = MIN_SHARES.get(one.code, MIN_SHARE)
            if _beyond_chance(other, given, max(share, MIN_FURTHER_SHARE if found else 0.0)):
                tried.append((sum(other), other, one))
            progress.counted(f"alternatives ({len(found) + 1})", number, len(left))
        if not tried:
            break
        _, best, alternative = max(tried, key=lambda one: one[0])
        found.append(Judgement(alternative, sum(best) - sum(given), len(reading.images)))
        reading = alternative.change(reading)
        given = best
        left = [one for one in left if one.aspect != alternative.aspect]
    return found


def taken_on(reading: Reading, judgements: list[Judgement]) -> Reading:
    """The reading with all that was found likelier."""
    for judgement in judgements:
        reading = judgement.alternative.change(reading)
    return reading


def _beyond_chance(other: tuple[float, float], given: tuple[float, float], share: float) -> bool:
    """Both halves agree, and it matters."""
    gains = [a - b for a, b in zip(other, given, strict=True)]
    return min(gains) > 0 and sum(gains) > MIN_GAIN + share * sum(other)


def alternatives(reading: Reading) -> list[Alternative]:
    """All that may have been mistaken."""
    found = [
        Alternative("shift-sign", "shift", lambda r: _with_origin(r, -r.views.origin)),
        Alternative("shift-axes", "shift", lambda r: _with_origin(r, r.views.origin.flip(-1))),
        Alternative("shift-ignored", "shift", lambda r: _with_origin(r, 0 * r.views.origin)),
        Alternative("transposed-poses", "pose", _transposed),
        Alternative("mirrored-images", "pose", _mirrored),
    ]
    for x in (-0.5, 0.0, 0.5):
        for y in (-0.5, 0.0, 0.5):
            if x or y:
                found.append(_centred(x, y))
    found += [_centred(-1.0, -1.0), _centred(1.0, 1.0)]
    if _has_ctf_to_judge(reading):
        found += [_pixel_size(factor) for factor in (0.92, 0.96, 0.98, 1.02, 1.04, 1.08)]
        found += [_defocus(factor) for factor in (0.5, 0.67, 0.8, 1.25, 1.5, 2.0)]
        found += [
            Alternative("ctf-sign", "ctf", lambda r: _with_defocus(r, -1.0)),
            Alternative("astigmatism", "ctf", _other_axis),
        ]
        found += [
            Alternative("phase-flipped", "ctf", lambda r: replace(r, transfer="absolute")),
            Alternative("no-ctf", "ctf", lambda r: replace(r, transfer="none")),
        ]
    return found


def _has_ctf_to_judge(reading: Reading) -> bool:
    """Of premultiplied images the CTF is part of the data, which then cannot judge it."""
    optics = reading.views.optics
    if optics is None or reading.premultiplied:
        return False
    return float(optics.defocus_u.abs().median()) > LOWEST_DEFOCUS


def _with_origin(reading: Reading, origin: Tensor) -> Reading:
    return replace(reading, views=replace(reading.views, origin=origin))


def _centred(x: float, y: float) -> Alternative:
    """The origin x and y pixels away."""

    def change(reading: Reading) -> Reading:
        offset = torch.tensor([x, y], dtype=reading.views.origin.dtype) * reading.pixel_size
        return _with_origin(reading, reading.views.origin + offset)

    return Alternative("centre", "centre", change, (x * x + y * y) ** 0.5)


def _transposed(reading: Reading) -> Reading:
    return replace(reading, views=replace(reading.views, rotation=reading.views.rotation.mT))


def _mirrored(reading: Reading) -> Reading:
    """Images whose lines are in the other order: the origin stays at pixel D // 2."""
    size = reading.images.shape[-1]
    images = reading.images.flip(-2)
    if size % 2 == 0:
        images = images.roll(1, -2)
    return replace(reading, images=images)


def _pixel_size(factor: float) -> Alternative:
    def change(reading: Reading) -> Reading:
        return replace(reading, pixel_size=reading.pixel_size * factor)

    return Alternative("pixel-size", "scale", change, factor)


def _defocus(factor: float) -> Alternative:
    return Alternative("defocus", "scale", lambda r: _with_defocus(r, factor), factor)


def _with_defocus(reading: Reading, factor: float) -> Reading:
    optics = reading.views.optics
    assert optics is not None
    changed = replace(
        optics, defocus_u=optics.defocus_u * factor, defocus_v=optics.defocus_v * factor
    )
    return _with_optics(reading, changed)


def _other_axis(reading: Reading) -> Reading:
    optics = reading.views.optics
    assert optics is not None
    changed = replace(optics, defocus_u=optics.defocus_v, defocus_v=optics.defocus_u)
    return _with_optics(reading, changed)


def _with_optics(reading: Reading, optics: Optics) -> Reading:
    return replace(reading, views=replace(reading.views, optics=optics))
