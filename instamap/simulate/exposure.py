"""What makes an image of a projection, besides contrast transfer: noise, its level, and a contrast
and background of each image's own.
"""

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from instamap.errors import OptionError
from instamap.geometry import grids

NOISES = ("white", "coloured")
KNEE = 0.15
# of coloured noise: where it has fallen by half, as a share of Nyquist, and what it falls to
FLOOR = 0.25


@dataclass(frozen=True)
class Exposure:
    """y = a g x + b + noise of variance 1, with a ~ N(1, scale²) and b ~ N(0, offset²) for each
    image, and g, the same for all, such that the pixels of g x have the variance `snr`.

    noise: white, or coloured, whose power spectrum falls with frequency (`spectrum`). Raises
    OptionError for values that cannot be.
    """

    snr: float = 0.1
    noise: str = "white"
    scale: float = 0.0
    offset: float = 0.0

    def __post_init__(self):
        if not (self.snr > 0 and math.isfinite(self.snr)):
            raise OptionError(f"snr is {self.snr}; it must be above 0")
        if self.noise not in NOISES:
            raise OptionError(f"noise is '{self.noise}'; choose {' or '.join(NOISES)}")
        for name, value in (("scale", self.scale), ("offset", self.offset)):
            if not (value >= 0 and math.isfinite(value)):
                raise OptionError(
                    f"{name} is {value}; it is a standard deviation and must be at least 0"
                )

    def spectrum(self, box: int) -> Tensor:
        """Variance "D//2+1" of the noise in each Fourier shell, of an unfiltered image's pixels; 1
        on average over all components.

        Coloured: P(s) ∝ 0.25 + 1/(1 + (s / 0.15 Nyquist)²), in the corners of the plane what it is
        at Nyquist.
        """
        shell = torch.arange(box // 2 + 1, dtype=torch.float64)
        power = (
            torch.ones_like(shell)
            if self.noise == "white"
            else FLOOR + 1 / (1 + (2 * shell / box / KNEE).square())
        )
        return power / power[grids.noise_shells(box)].mean()

    def draw(self, count: int, box: int, generator: torch.Generator) -> Tensor:
        """Noise "n D D" of that spectrum (float32)."""
        noise = torch.randn(count, box, box, generator=generator)
        if self.noise == "white":
            return noise
        deviation = self.spectrum(box)[grids.noise_shells(box)[:, : box // 2 + 1]].sqrt().float()
        return torch.fft.irfft2(torch.fft.rfft2(noise) * deviation, s=(box, box))

    def contrast(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """a "n" and b "n" (float64) of each image."""

        def normal():
            return torch.randn(count, generator=generator, dtype=torch.float64)

        return 1 + self.scale * normal(), self.offset * normal()

    def record(self, box: int) -> dict:
        """As plain values; noise_spectrum is that of `spectrum`."""
        return asdict(self) | {
            "noise_spectrum": [round(value, 6) for value in self.spectrum(box).tolist()]
        }
