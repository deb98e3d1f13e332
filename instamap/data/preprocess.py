"""What is done to images before use: cropped, scaled down, their background normalised."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from instamap.errors import OptionError
from instamap.geometry import grids

MIN_BOX = 8  # pixels along an edge
# where RELION's background begins unless it is told otherwise, as a share of the edge
BACKGROUND_RADIUS = 0.375
# a standard deviation of less than this share of the largest value is what float32 leaves of a
# plane
_FLATNESS = 1e-6


@dataclass(frozen=True)
class Preprocess:
    """What is done to every image, in this order. The origin stays at pixel D // 2 and shifts in Å
    stay what they are.

    crop: edge of the middle that is kept, in pixels. box: edge after Fourier cropping; pixels grow
    by crop/box. normalise: the plane that fits the background best is subtracted, and the rest
    divided by its standard deviation in the background. background: Å; what is farther than this
    from the origin is background (None: 0.375 of the edge). invert: dark protein becomes white.
    Raises OptionError for values that cannot be.
    """

    crop: int | None = None
    box: int | None = None
    normalise: bool = False
    background: float | None = None
    invert: bool = False

    def __post_init__(self) -> None:
        for name, low in (("crop", MIN_BOX), ("box", MIN_BOX), ("background", 0.0)):
            value = getattr(self, name)
            if value is None:
                continue
            allowed = math.isfinite(value) and value >= low and value > 0
            if not allowed:
                wanted = f"at least {low} pixels" if low else "a radius in Å above 0"
                raise OptionError(f"{name} is {value}; it must be {wanted}")
        if self.background is not None and not self.normalise:
            raise OptionError(
                f"background is {self.background:g} Å, but nothing is normalised; add --normalise"
                " or leave it out"
            )

    def __bool__(self) -> bool:
        """Whether anything is done."""
        return self != NOTHING

    def __str__(self) -> str:
        steps = []
        if self.crop:
            steps.append(f"cropped to {self.crop} px")
        if self.box:
            steps.append(f"scaled to {self.box} px")
        if self.normalise:
            beyond = "" if self.background is None else f" beyond {self.background:g} Å"
            steps.append(f"background{beyond} normalised")
        if self.invert:
            steps.append("contrast inverted")
        return ", ".join(steps) or "none"

    def record(self) -> dict[str, Any]:
        """What differs from doing nothing, as plain values."""
        fields = asdict(self)
        return {name: value for name, value in fields.items() if value not in (None, False)}


NOTHING = Preprocess()


class Preprocessor:
    """A `Preprocess` for images of `box` pixels of `pixel_size` Å: images "B D D" [y, x] to images
    "B d d".

    edge: pixels after cropping. box, pixel_size: of the outcome; pixels grew by edge/box. Raises
    OptionError where images are too small.
    """

    def __init__(self, steps: Preprocess, box: int, pixel_size: float) -> None:
        self.steps = steps
        wide = f"the images are {box} pixels wide"
        self.edge = _at_most("crop", steps.crop, box, wide)
        once_cropped = " once cropped" if steps.crop else ""
        wide = f"the images are {self.edge} pixels wide{once_cropped}"
        self.box = _at_most("box", steps.box, self.edge, wide)
        self.pixel_size = pixel_size * self.edge / self.box
        self._matrix = None if self.box == self.edge else fourier_crop(self.edge, self.box)
        self._background = self._outside() if steps.normalise else None

    def _outside(self) -> Tensor:
        """Where pixels "D D" are background."""
        half = self.box / 2 * self.pixel_size
        radius = self.steps.background
        if radius is None:
            radius = 2 * BACKGROUND_RADIUS * half
        if radius > half:
            raise OptionError(
                f"background is {radius:g} Å, but the images reach {half:g} Å from their middle;"
                " give at most that"
            )
        centres = grids.pixel_centres(self.box, self.pixel_size, dtype=torch.float64)
        return centres.norm(dim=-1) > radius

    def __call__(self, images: Tensor) -> Tensor:
        """In the images' dtype; not a number where the background is flat."""
        images = grids.crop(images, self.edge)
        if self._matrix is not None:
            # one product an image: its value depends on no other image
            matrix = self._matrix.to(images).expand(len(images), -1, -1)
            rows = torch.bmm(matrix, images)
            images = torch.bmm(rows, matrix.mT)
        if self._background is not None:
            images = normalise(images, self._background)
        return -images if self.steps.invert else images


def fourier_crop(edge: int, box: int) -> Tensor:
    """The matrix M "box edge" (float64) with which M I Mᵀ is image I "edge edge" of only those
    Fourier components that `box` pixels hold.

    M[m, n] = 1/edge Σ_k w(k) exp(2πi k [(m - box // 2)/box - (n - edge // 2)/edge]) over |k| <=
    box/2, with w = 1 but for ½ at ±box/2, the two components that become one: a mean, as what
    remains of them must be real. Values are kept, so the mean is; of white noise the share ((box -
    ½ [box is even])/edge)² of the variance remains.
    """
    k = torch.arange(-(box // 2), box // 2 + 1, dtype=torch.float64)
    weight = torch.where(2 * k.abs() == box, 0.5, 1.0)

    def phase(size: int) -> Tensor:
        positions = grids.axis(size, 1 / size, dtype=torch.float64)
        return 2 * math.pi * positions[:, None] * k

    before = phase(edge)
    after = phase(box)
    cosines = after.cos() * weight @ before.cos().mT
    sines = after.sin() * weight @ before.sin().mT
    return (cosines + sines) / edge


def normalise(images: Tensor, background: Tensor) -> Tensor:
    """Images "B D D" less the plane a + b x + c y that fits them best where `background` "D D" is
    true, over the standard deviation there.

    So the mean there is 0 and the variance 1. Not a number where nothing but a plane is there. As
    RELION's normalisation does, dust aside.
    """
    centres = grids.pixel_centres(images.shape[-1], 1.0, dtype=torch.float64)
    ones = torch.ones_like(centres[..., :1])
    basis = torch.cat([ones, centres], -1)
    values = images.double()
    outside = values[:, background]
    coefficients = outside @ torch.linalg.pinv(basis[background]).mT
    plane = torch.einsum("bi,yxi->byx", coefficients, basis)
    rest = values - plane
    deviation = rest[:, background].square().mean(1).sqrt()
    largest = outside.abs().amax(1)
    deviation = torch.where(deviation > _FLATNESS * largest, deviation, torch.nan)
    normalised = rest / deviation[:, None, None]
    return normalised.to(images.dtype)


def _at_most(name: str, wanted: int | None, most: int, reason: str) -> int:
    if wanted is not None and wanted > most:
        raise OptionError(f"{name} is {wanted}, but {reason}; give at most {most}")
    return wanted or most
