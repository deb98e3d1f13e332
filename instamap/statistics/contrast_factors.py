"""How strong each image's signal is: a factor a of its projection, image = a C PV + noise.

Of a map V that does not hold the image's own noise, an image says

    log p(a) = a h - ½ a² G + const,    h = ⟨C PV, y⟩ / σ²,    G = ⟨C PV, C PV⟩ / σ²,

so that h has the mean a G and the variance G. With factors normally distributed about μ (what part
of the image the map explains on the average) with variance s²,

    h ~ N(μ G, G + s² G²),    E[a | h] = (h + μ/s²) / (G + 1/s²),    Var[a | h] = 1 / (G + 1/s²).

μ and s are those under which the images are likeliest (empirical Bayes). Factors are told relative
to μ: the map then has the mean contrast.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.scene import ContrastFactors
from instamap.statistics.particle_images import ParticleImages

MAX_RELATIVE_SPREAD = 2.0  # of factors, in their mean: search for s ends there
BISECTIONS = 50  # of an interval of variances: to its last digit
LEAST_CURVATURE = 1e-12  # of an image by which is divided


@dataclass(frozen=True)
class ImageContrasts:
    """What some images say of their factors by one map: h "n" and G "n" (float64)."""

    slope: Tensor
    curvature: Tensor

    def __len__(self) -> int:
        return len(self.slope)

    @staticmethod
    def of(particles: ParticleImages, volume: Tensor) -> "ImageContrasts":
        """What particles say by a map "N N N"."""
        gram, h = particles.normal_equations(volume[None])
        return ImageContrasts(h[:, 0], gram[:, 0, 0])


@dataclass(frozen=True)
class FactorPrior:
    """The distribution of factors: their mean μ and variance s², for one map."""

    mean: float
    variance: float

    @property
    def spread(self) -> float:
        """The standard deviation of factors relative to their mean."""
        return math.sqrt(self.variance) / self.mean if self.mean > 0 else 0.0

    def log_marginal(self, images: ImageContrasts) -> Tensor:
        """log p "n" of each image in nats, up to a constant that no prior changes."""
        curvature = images.curvature.clamp(min=LEAST_CURVATURE)
        widening = 1 + self.variance * curvature
        residual = images.slope - self.mean * curvature
        square = residual.square() / (curvature * widening)
        return -0.5 * (square + widening.log())

    def factors(self, images: ImageContrasts) -> ContrastFactors:
        """The factors' posterior mean and mean square, relative to μ. None is negative: particles
        are not white on black here and black on white there.
        """
        if not self.variance > 0:
            ones = torch.ones_like(images.slope)
            return ContrastFactors(ones, ones)
        precision = images.curvature + 1 / self.variance
        mean = (images.slope + self.mean / self.variance) / precision
        mean = mean.clamp(min=0.0) / self.mean
        square = mean.square() + 1 / (precision * self.mean**2)
        return ContrastFactors(mean, square)


def fit_prior(images: ImageContrasts) -> FactorPrior:
    """The prior under which the images are likeliest; without variance where they do not differ."""
    mean = _likeliest_mean(images, 0.0)
    if not mean > 0:
        return FactorPrior(mean, 0.0)
    low = 0.0
    high = (MAX_RELATIVE_SPREAD * mean) ** 2
    if not _slope_of_likelihood(images, low) > 0:
        return FactorPrior(mean, 0.0)
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        if _slope_of_likelihood(images, middle) > 0:
            low = middle
        else:
            high = middle
    variance = 0.5 * (low + high)
    return FactorPrior(_likeliest_mean(images, variance), variance)


def same_factor(images: ImageContrasts) -> FactorPrior:
    """The prior of one factor for all images under which they are likeliest."""
    return FactorPrior(_likeliest_mean(images, 0.0), 0.0)


def mean_of_spread(images: ImageContrasts, spread: float) -> FactorPrior:
    """The prior with a known relative spread under whose mean the images are likeliest."""
    mean = _likeliest_mean(images, 0.0)
    mean = _likeliest_mean(images, (spread * mean) ** 2)
    return FactorPrior(mean, (spread * mean) ** 2)


def _likeliest_mean(images: ImageContrasts, variance: float) -> float:
    """The μ under which images are likeliest, s² being known."""
    widening = 1 + variance * images.curvature
    slope = images.slope / widening
    curvature = images.curvature / widening
    return float(slope.sum() / curvature.sum().clamp(min=LEAST_CURVATURE))


def _slope_of_likelihood(images: ImageContrasts, variance: float) -> float:
    """The derivative of the images' log p by s², at the likeliest μ."""
    mean = _likeliest_mean(images, variance)
    widening = 1 + variance * images.curvature
    residual = (images.slope - mean * images.curvature) / widening
    terms = residual.square() - images.curvature / widening
    return float(0.5 * terms.sum())
