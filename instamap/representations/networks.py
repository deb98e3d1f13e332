"""Coordinate networks: a fixed encoding of the position, then a multilayer perceptron."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from instamap.parts import Representation
from instamap.plugin.options import RepresentationOptions, option
from instamap.representations.decoder import CHUNK, decoder
from instamap.scene import Scene


@dataclass(frozen=True)
class NetworkOptions(RepresentationOptions):
    """What all coordinate networks offer."""

    width: int = option(64, "units of a hidden layer", low=1)
    depth: int = option(2, "hidden layers", low=0, high=16)
    learning_rate: float = option(5e-2, "step size of Adam for this part", low=0.0)


class Network(Representation):
    """ρ(x) = MLP(encode(t) / c), t = x / half the box's edge in [-1, 1]³, with c the root mean
    square of the encoding in the unit ball.

    Hidden layers begin as He et al. (ICCV 2015) have it, which keeps the variance of what passes,
    of inputs of order one: hence c, without which one-blob and spherical harmonics, most of whose
    features are small at most points, learn three times as slowly.
    """

    Options = NetworkOptions

    def __init__(self, options: NetworkOptions, scene: Scene):
        super().__init__(options, scene)
        known = self.encode(_ball())
        self.register_buffer("unit", known.square().mean().rsqrt(), persistent=False)
        self.network = decoder(known.shape[1], options.width, options.depth)
        for layer in self.network[:-1:2]:
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    @abstractmethod
    def encode(self, t: Tensor) -> Tensor:
        """Features "n F" of points "n 3" in [-1, 1]³."""

    def forward(self, x: Tensor) -> Tensor:
        t = x.reshape(-1, 3) / (0.5 * self.scene.box * self.scene.pixel_size)
        return torch.cat(
            [self.network(self.unit * self.encode(part)) for part in t.split(CHUNK)]
        ).reshape(x.shape[:-1])


class Frequency(Network):
    """sin 2^j π t and cos 2^j π t of each axis for j = 0 .. n-1. Source: Mildenhall et al., ECCV
    2020, eq. 4.
    """

    @dataclass(frozen=True)
    class Options(NetworkOptions):
        frequencies: int | None = option(
            None,
            "octaves of the encoding; none means up to the Nyquist frequency of the box",
            low=1,
            high=20,
        )

    def __init__(self, options: Options, scene: Scene):
        self.octaves = options.frequencies or octaves(scene)
        super().__init__(options, scene)

    def encode(self, t: Tensor) -> Tensor:
        phase = (math.pi * t[:, None] * _powers(self.octaves, t)).flatten(1)
        return torch.cat([phase.sin(), phase.cos()], 1)


class TriangleWave(Network):
    """Triangle waves of each axis: 4 |v - floor v - ½| - 1 with v = 2^j (t + 1) / 4 for j = 0 ..
    n-1, as tiny-cuda-nn documents them.

    The first falls from 1 to -1 across the box; without it, t could not be told from -t.
    """

    @dataclass(frozen=True)
    class Options(NetworkOptions):
        frequencies: int | None = option(
            None,
            "octaves of the encoding; none means up to the Nyquist frequency of the box",
            low=1,
            high=20,
        )
        learning_rate: float = option(1e-1, "step size of Adam for this part", low=0.0)

    def __init__(self, options: Options, scene: Scene):
        self.octaves = options.frequencies or octaves(scene) + 1
        super().__init__(options, scene)

    def encode(self, t: Tensor) -> Tensor:
        v = (0.25 * (t[:, None] + 1) * _powers(self.octaves, t)).flatten(1)
        return 4 * (v - v.floor() - 0.5).abs() - 1


class OneBlob(Network):
    """For each axis n bins of [0, 1], u = (t + 1) / 2: what a kernel about u has in each of them.
    In units v of a bin's width it is

    quartic 15/16 (1 - v²)² for |v| < 1, up to v it has ½ + (15 v - 10 v³ + 3 v⁵) / 16, as
    tiny-cuda-nn documents it gaussian the normal distribution with σ = 1, about three times as
    wide: Müller et al., ACM Trans. Graph. 38, 145 (2019), section 4.3

    What a kernel has beyond the box is lost; nothing comes back at the other end.
    """

    @dataclass(frozen=True)
    class Options(NetworkOptions):
        bins: int | None = option(None, "of each axis; none means one a pixel", low=2, high=512)
        kernel: Literal["quartic", "gaussian"] = option(
            "quartic", "what is spread over the bins, with a bin's width as radius or as σ"
        )

    def __init__(self, options: Options, scene: Scene):
        self.bins = options.bins or scene.box
        super().__init__(options, scene)

    def encode(self, t: Tensor) -> Tensor:
        edges = torch.linspace(0, 1, self.bins + 1, dtype=t.dtype, device=t.device)
        v = (edges - 0.5 * (t[..., None] + 1)) * self.bins
        return (
            (_quartic(v) if self.options.kernel == "quartic" else 0.5 * torch.erf(v / math.sqrt(2)))
            .diff(dim=-1)
            .flatten(1)
        )


class SphericalHarmonics(Network):
    """The real spherical harmonics Y_lm for l below the degree, written as polynomials in x, y, z
    and taken at t itself.

    On the unit sphere they are the harmonics, without Condon and Shortley's sign; elsewhere in the
    box, where the paper uses them too, they are just polynomials of that degree: smooth, and blind
    to details finer than the box over the degree.
    """

    @dataclass(frozen=True)
    class Options(NetworkOptions):
        degree: int = option(8, "harmonics of l = 0 .. degree - 1", low=1, high=12)

    def encode(self, t: Tensor) -> Tensor:
        x, y, z = t.unbind(-1)
        features = []
        real = torch.ones_like(x)
        imaginary = torch.zeros_like(x)  # of (x + iy)^m
        for m in range(self.options.degree):
            for level, legendre in enumerate(_legendre(z, m, self.options.degree), m):
                size = math.sqrt(
                    (2 * level + 1)
                    / (4 * math.pi)
                    * math.factorial(level - m)
                    / math.factorial(level + m)
                    * (2 if m else 1)
                )
                features += [
                    size * legendre * part for part in ((real, imaginary) if m else (real,))
                ]
            real, imaginary = real * x - imaginary * y, imaginary * x + real * y
        return torch.stack(features, -1)


def _quartic(v: Tensor) -> Tensor:
    """∫₀ᵛ 15/16 (1 - w²)² dw over |w| < 1: from -½ to ½."""
    v = v.clamp(-1, 1)
    return v * (15 - v**2 * (10 - 3 * v**2)) / 16


def _legendre(z: Tensor, m: int, degree: int) -> list[Tensor]:
    """P_l^m(z) / (1 - z²)^(m/2) for l = m .. degree - 1, by the recurrence in l."""
    found = [torch.full_like(z, float(math.prod(range(1, 2 * m, 2))))]
    for level in range(m + 1, degree):
        before = (level + m - 1) * found[-2] if level > m + 1 else 0.0
        found.append(((2 * level - 1) * z * found[-1] - before) / (level - m))
    return found


def octaves(scene: Scene) -> int:
    """How many there are from a wavelength of the box's edge, halving, to one of two pixels."""
    return max(1, round(math.log2(scene.box / 2)) + 1)


def _ball() -> Tensor:
    """Points "n 3" of the unit ball, always the same, evenly spread and in no step with any
    feature: multiples of powers of 1/g modulo the cube, with g⁴ = g + 1. Source: Roberts, The
    unreasonable effectiveness of quasirandom sequences (2018).
    """
    powers = 1.2207440846057596 ** -torch.arange(1.0, 4.0, dtype=torch.float64)
    t = 2 * (torch.arange(1.0, 8193.0, dtype=torch.float64)[:, None] * powers % 1) - 1
    return t[t.norm(dim=1) <= 1].float()


def _powers(count: int, like: Tensor) -> Tensor:
    """2^j "count 1" for j = 0 .. count - 1."""
    return 2.0 ** torch.arange(count, dtype=like.dtype, device=like.device)[:, None]
