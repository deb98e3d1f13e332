"""Gaussian noise of images whose scale and offset are unknown: both are integrated out."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from instamap.errors import OptionError
from instamap.likelihoods.disc import Disc, DiscOptions
from instamap.likelihoods.white_noise import pixel_deviation, standard_normal
from instamap.parts import Likelihood
from instamap.plugin.options import option
from instamap.scene import Scene, Views

# In standard deviations of the noise: predictions of less contrast count as flat, so that a fit can
# begin with an empty map.
MIN_CONTRAST = 1e-4


class Bioem(Likelihood):
    """y = a μ + b + σ ε over the N pixels that count, with a flat prior on the offset b. With S =
    ‖μ - mean‖², Y = ‖y - mean‖², C = ⟨μ - mean, y - mean⟩ and the residual R = Y - C²/S,

    - n-mu: flat prior on a ≥ 0, σ² known:
      -½ (N - 2) log 2πσ² - ½ log N S - R/2σ² + log Φ(C / σ√S);
    - saddle: the same, and σ integrated over a flat prior by its saddle point σ² = R/(N - 2), at
      which Φ is taken too;
    - n-mu-prior: a ~ N(1, spread²), σ² known, with A = S/σ² + 1/spread² and B = C/σ² + 1/spread²:
      -½ (N - 1) log 2πσ² - ½ log N - ½ log(spread² A) - ½ Y/σ² + ½ B²/A - ½/spread².

    Φ is the normal distribution function: a negative a would make images of an inverted density as
    probable (`scale` any allows it, and leaves log Φ out). Densities of y in nats; flat priors have
    density one. They have no sample: those are drawn at a = 1, b = 0. Source: Cossio & Hummer, J.
    Struct. Biol. 184, 427 (2013), SI equations 4 and 10, there for a of either sign.
    """

    @dataclass(frozen=True)
    class Options(DiscOptions):
        form: Literal["n-mu", "saddle", "n-mu-prior"] = option(
            "n-mu", "integrated out: scale and offset; the noise too; a scale near 1"
        )
        scale: Literal["positive", "any"] = option(
            "positive", "scales of a flat prior: those that keep the contrast, or all"
        )
        spread: float = option(
            1.0, "standard deviation of the scale about 1, in form n-mu-prior", low=1e-3, high=1e3
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.form == "n-mu-prior" and self.scale == "any":
                raise OptionError(
                    "option 'scale' of Bioem is 'any', but form 'n-mu-prior' has a prior on the"
                    " scale, of any sign; leave scale out"
                )
            if self.form != "n-mu-prior" and self.spread != 1.0:
                raise OptionError(
                    f"option 'spread' of Bioem is {self.spread:g}, but form '{self.form}' has a"
                    " flat prior on the scale, without a spread; leave it out, or choose"
                    " form=n-mu-prior"
                )

    sigma: Tensor

    def __init__(self, options: Options, scene: Scene) -> None:
        super().__init__(options, scene)
        self.disc = Disc(options.radius, scene)
        self.proper = options.form == "n-mu-prior"
        sigma = pixel_deviation(scene, "bioem")
        self.register_buffer("sigma", sigma, persistent=False)

    def log_prob(
        self,
        predicted: Tensor,
        observed: Tensor,
        views: Views,
    ) -> Tensor:
        """log p "B", with scale and offset integrated out."""
        n = self.disc.count
        sigma = self.sigma[views.group]
        prediction = self.disc.centred(predicted)
        observation = self.disc.centred(observed)
        s = prediction.square().sum(1)
        y = observation.square().sum(1)
        c = (prediction * observation).sum(1)
        if self.options.form == "n-mu-prior":
            return _with_prior(n, s, y, c, sigma, self.options.spread)
        flat = n * (MIN_CONTRAST * sigma) ** 2
        s = s + flat
        y = y + flat
        residual = y - c**2 / s
        if self.options.form == "saddle":
            sigma = (residual / (n - 2)).sqrt()
            value = _at_saddle_point(n, sigma)
        else:
            value = _with_known_noise(n, residual, sigma)
        if self.options.scale == "any":
            return value - 0.5 * torch.log(n * s)
        positive = torch.special.log_ndtr(c / (sigma * s.sqrt()))
        return value - 0.5 * torch.log(n * s) + positive

    def sample(
        self,
        predicted: Tensor,
        views: Views,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The prediction, scaled where scales have a prior, and white noise, "B D D"."""
        if self.options.form == "n-mu-prior":
            each = (len(predicted), 1, 1)
            normal = standard_normal(each, predicted, generator)
            scale = 1 + self.options.spread * normal
            predicted = predicted * scale
        white = standard_normal(predicted.shape, predicted, generator)
        sigma = self.sigma[views.group][:, None, None]
        return predicted + white * sigma.to(predicted)


def _at_saddle_point(n: int, sigma: Tensor) -> Tensor:
    """Logarithm of the density with the noise integrated out, by its saddle point σ "B"."""
    exponent = -0.5 * (n - 2) * (torch.log(2 * math.pi * sigma**2) + 1)
    width = math.pi * sigma**2 / (n - 2)
    return exponent + 0.5 * torch.log(width)


def _with_known_noise(n: int, residual: Tensor, sigma: Tensor) -> Tensor:
    """Logarithm of the density of residuals R "B" of noise σ "B"."""
    variance = sigma**2
    normaliser = -0.5 * (n - 2) * torch.log(2 * math.pi * variance)
    return normaliser - 0.5 * residual / variance


def _with_prior(
    n: int,
    s: Tensor,
    y: Tensor,
    c: Tensor,
    sigma: Tensor,
    spread: float,
) -> Tensor:
    """log p "B" of form n-mu-prior, from the sums S, Y and C of `Bioem`."""
    variance = sigma**2
    precision = spread**-2
    a = s / variance + precision
    b = c / variance + precision
    normaliser = -0.5 * (n - 1) * torch.log(2 * math.pi * variance)
    without_scale = normaliser - 0.5 * math.log(n) - 0.5 * y / variance
    fixed = without_scale - 0.5 * precision
    return fixed - 0.5 * torch.log(spread**2 * a) + 0.5 * b**2 / a
