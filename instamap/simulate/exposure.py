"""What makes an image of a projection, besides contrast transfer: noise, its level, and a contrast
and background of each image's own.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from instamap.errors import OptionError
from instamap.geometry import grids

NOISE_KINDS = ("white", "coloured")

COLOURED_NOISE_KNEE = 0.15
"""Where coloured noise has fallen by half, as a share of Nyquist."""

COLOURED_NOISE_FLOOR = 0.25
"""What coloured noise falls to."""


@dataclass(frozen=True)
class Exposure:
    """An image y of a projection x: y = a g x + b + noise of variance 1.

    a ~ N(1, scale²) and b ~ N(0, offset²) for each image, and g, the same for all, such that the
    pixels of g x have the variance `snr`. noise: white, or coloured, whose power spectrum falls
    with frequency (`spectrum`). Raises OptionError for values that cannot be.
    """

    snr: float = 0.1
    noise: str = "white"
    scale: float = 0.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        if not (self.snr > 0 and math.isfinite(self.snr)):
            raise OptionError(f"snr is {self.snr}; it must be above 0")
        if self.noise not in NOISE_KINDS:
            raise OptionError(f"noise is '{self.noise}'; choose {' or '.join(NOISE_KINDS)}")
        _check_deviation("scale", self.scale)
        _check_deviation("offset", self.offset)

    def spectrum(self, box: int) -> Tensor:
        """Variance "D//2+1" of the noise in each Fourier shell, of an unfiltered image's pixels.

        1 on average over all components. Coloured: P(s) ∝ 0.25 + 1/(1 + (s / 0.15 Nyquist)²), in
        the corners of the plane what it is at Nyquist.
        """
        shell = torch.arange(box // 2 + 1, dtype=torch.float64)
        if self.noise == "white":
            power = torch.ones_like(shell)
        else:
            from_knee = 2 * shell / box / COLOURED_NOISE_KNEE
            power = COLOURED_NOISE_FLOOR + 1 / (1 + from_knee.square())
        shell_of_component = grids.noise_shells(box)
        return power / power[shell_of_component].mean()

    def draw(
        self,
        count: int,
        box: int,
        generator: torch.Generator,
    ) -> Tensor:
        """Noise "n D D" of that spectrum (float32)."""
        white = draw_white(count, box, generator)
        return self.filtered(white)

    def filtered(self, white: Tensor) -> Tensor:
        """White noise "n D D" with that spectrum."""
        if self.noise == "white":
            return white
        box = white.shape[-1]
        shell_of_component = grids.noise_shells(box)[:, : box // 2 + 1]
        variance = self.spectrum(box)[shell_of_component]
        deviation = variance.sqrt().float()
        transform = torch.fft.rfft2(white)
        return torch.fft.irfft2(transform * deviation, s=(box, box))

    def contrast(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """a "n" and b "n" (float64) of each image."""
        of_contrast = torch.randn(
            count,
            generator=generator,
            dtype=torch.float64,
        )
        of_background = torch.randn(
            count,
            generator=generator,
            dtype=torch.float64,
        )
        return 1 + self.scale * of_contrast, self.offset * of_background

    def record(self, box: int) -> dict[str, Any]:
        """The exposure as plain values; noise_spectrum is that of `spectrum`."""
        spectrum = [round(value, 6) for value in self.spectrum(box).tolist()]
        return asdict(self) | {"noise_spectrum": spectrum}


def draw_white(count: int, box: int, generator: torch.Generator) -> Tensor:
    """White noise "n D D" of variance 1 (float32)."""
    return torch.randn(
        count,
        box,
        box,
        generator=generator,
    )


def _check_deviation(name: str, value: float) -> None:
    if not (value >= 0 and math.isfinite(value)):
        raise OptionError(f"{name} is {value}; it is a standard deviation and must be at least 0")
