"""Coordinate networks: a fixed encoding of the position, then a multilayer perceptron."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from instamap.parts import Representation
from instamap.plugin.options import RepresentationOptions, option
from instamap.representations.decoder import POINTS_AT_ONCE, decoder
from instamap.scene import Scene

PLASTIC_NUMBER = 1.2207440846057596  # g, the root of g⁴ = g + 1
BALL_POINTS = 8192  # in the cube; about half of them lie in the ball


@dataclass(frozen=True)
class NetworkOptions(RepresentationOptions):
    """Options of all coordinate networks."""

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

    Options: Any = NetworkOptions
    unit: Tensor

    def __init__(self, options: NetworkOptions, scene: Scene) -> None:
        super().__init__(options, scene)
        features = self.encode(_points_of_unit_ball())
        unit = features.square().mean().rsqrt()
        self.register_buffer("unit", unit, persistent=False)
        self.network = decoder(
            features.shape[1],
            options.width,
            options.depth,
        )
        hidden = list(self.network.children())[:-1]
        for layer in hidden:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    @abstractmethod
    def encode(self, t: Tensor) -> Tensor:
        """Features "n F" of points "n 3" in [-1, 1]³."""

    def forward(self, x: Tensor) -> Tensor:
        """The field "*n" at points "*n 3"."""
        half_edge = 0.5 * self.scene.box * self.scene.pixel_size
        t = x.reshape(-1, 3) / half_edge
        values = []
        for chunk in t.split(POINTS_AT_ONCE):
            features = self.unit * self.encode(chunk)
            values.append(self.network(features))
        return torch.cat(values).reshape(x.shape[:-1])


@dataclass(frozen=True)
class OctaveOptions(NetworkOptions):
    """Options of networks whose encoding has waves of several octaves."""

    frequencies: int | None = option(
        None,
        "octaves of the encoding; none means up to the Nyquist frequency of the box",
        low=1,
        high=20,
    )


class Frequency(Network):
    """sin 2^j π t and cos 2^j π t of each axis for j = 0 .. n-1. Source: Mildenhall et al., ECCV
    2020, eq. 4.
    """

    @dataclass(frozen=True)
    class Options(OctaveOptions):
        """Those of all encodings by octaves."""

    def __init__(self, options: Options, scene: Scene) -> None:
        self.octaves = options.frequencies or octaves(scene)
        super().__init__(options, scene)

    def encode(self, t: Tensor) -> Tensor:
        """Sines, then cosines, "n 6J" of J octaves."""
        half_waves = math.pi * t[:, None]
        phases = half_waves * _powers_of_two(self.octaves, t)
        phase = phases.flatten(1)
        return torch.cat([phase.sin(), phase.cos()], 1)


class TriangleWave(Network):
    """Triangle waves of each axis: 4 |v - floor v - ½| - 1 with v = 2^j (t + 1) / 4 for j = 0 ..
    n-1, as tiny-cuda-nn documents them.

    The first falls from 1 to -1 across the box; without it, t could not be told from -t.
    """

    @dataclass(frozen=True)
    class Options(OctaveOptions):
        learning_rate: float = option(1e-1, "step size of Adam for this part", low=0.0)

    def __init__(self, options: Options, scene: Scene) -> None:
        self.octaves = options.frequencies or octaves(scene) + 1
        super().__init__(options, scene)

    def encode(self, t: Tensor) -> Tensor:
        """Waves "n 3J" of J octaves."""
        quarter = 0.25 * (t[:, None] + 1)
        waves = quarter * _powers_of_two(self.octaves, t)
        v = waves.flatten(1)
        from_middle = v - v.floor() - 0.5
        return 4 * from_middle.abs() - 1


class OneBlob(Network):
    """The shares of a kernel about u = (t + 1) / 2 that fall into n bins of [0, 1], for each axis.

    In units v of a bin's width the kernel is

    - quartic: 15/16 (1 - v²)² for |v| < 1, up to v it has ½ + (15 v - 10 v³ + 3 v⁵) / 16, as
      tiny-cuda-nn documents it;
    - gaussian: the normal distribution with σ = 1, about three times as wide. Source: Müller et
      al., ACM Trans. Graph. 38, 145 (2019), section 4.3.

    The part of a kernel beyond the box is lost; nothing comes back at the other end.
    """

    @dataclass(frozen=True)
    class Options(NetworkOptions):
        bins: int | None = option(None, "of each axis; none means one a pixel", low=2, high=512)
        kernel: Literal["quartic", "gaussian"] = option(
            "quartic", "what is spread over the bins, with a bin's width as radius or as σ"
        )

    def __init__(self, options: Options, scene: Scene) -> None:
        self.bins = options.bins or scene.box
        super().__init__(options, scene)

    def encode(self, t: Tensor) -> Tensor:
        """The kernel's share in each bin, "n 3 bins" as one axis."""
        edges = torch.linspace(
            0,
            1,
            self.bins + 1,
            dtype=t.dtype,
            device=t.device,
        )
        u = 0.5 * (t[..., None] + 1)
        v = (edges - u) * self.bins
        if self.options.kernel == "quartic":
            below = _quartic_integral(v)
        else:
            below = 0.5 * torch.erf(v / math.sqrt(2))
        return below.diff(dim=-1).flatten(1)


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
        """Harmonics "n degree²", by m and then by l, cosine before sine."""
        x, y, z = t.unbind(-1)
        degree = self.options.degree
        real = torch.ones_like(x)  # real part of (x + iy)^m
        imaginary = torch.zeros_like(x)
        features = []
        for m in range(degree):
            parts = [real, imaginary] if m else [real]
            for level, legendre in enumerate(_legendre(z, m, degree), m):
                factor = _normalisation(level, m)
                features += [factor * legendre * part for part in parts]
            next_real = real * x - imaginary * y
            imaginary = imaginary * x + real * y
            real = next_real
        return torch.stack(features, -1)


def _normalisation(level: int, m: int) -> float:
    """The factor of Y_lm that makes it of norm one on the sphere, both signs of m as one."""
    density = (2 * level + 1) / (4 * math.pi)
    ratio = density * math.factorial(level - m) / math.factorial(level + m)
    signs = 2 if m else 1
    return math.sqrt(ratio * signs)


def _quartic_integral(v: Tensor) -> Tensor:
    """∫₀ᵛ 15/16 (1 - w²)² dw over |w| < 1: from -½ to ½."""
    inside = v.clamp(-1, 1)
    square = inside**2
    polynomial = 15 - square * (10 - 3 * inside**2)
    return inside * polynomial / 16


def _legendre(z: Tensor, m: int, degree: int) -> list[Tensor]:
    """P_l^m(z) / (1 - z²)^(m/2) for l = m .. degree - 1, by the recurrence in l."""
    odd = range(1, 2 * m, 2)
    first = float(math.prod(odd))
    values = [torch.full_like(z, first)]
    for level in range(m + 1, degree):
        before: Tensor | float = 0.0
        if level > m + 1:
            before = (level + m - 1) * values[-2]
        raised = (2 * level - 1) * z * values[-1]
        values.append((raised - before) / (level - m))
    return values


def octaves(scene: Scene) -> int:
    """How many there are from a wavelength of the box's edge, halving, to one of two pixels."""
    halvings = math.log2(scene.box / 2)
    return max(1, round(halvings) + 1)


def _points_of_unit_ball() -> Tensor:
    """Points "n 3" of the unit ball, always the same, evenly spread and in no step with any
    feature: multiples of powers of 1/g modulo the cube, with g⁴ = g + 1. Source: Roberts, The
    unreasonable effectiveness of quasirandom sequences (2018).
    """
    exponents = torch.arange(1.0, 4.0, dtype=torch.float64)
    steps = PLASTIC_NUMBER**-exponents
    index = torch.arange(
        1.0,
        BALL_POINTS + 1.0,
        dtype=torch.float64,
    )
    t = 2 * (index[:, None] * steps % 1) - 1
    inside = t.norm(dim=1) <= 1
    return t[inside].float()


def _powers_of_two(count: int, like: Tensor) -> Tensor:
    """2^j "count 1" for j = 0 .. count - 1."""
    exponents = torch.arange(
        count,
        dtype=like.dtype,
        device=like.device,
    )
    return 2.0 ** exponents[:, None]
