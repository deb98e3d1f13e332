"""The linear subspace of maps in which particles differ: probabilistic principal components, by EM
on block normal equations.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.fitting.loop import FALSE_POSITIVE_RATE
from instamap.statistics.particle_images import ParticleImages
from instamap.statistics.solve import conjugate_gradients

MAX_SAMPLE = 3000  # particles, at most, that the subspace is fitted to
ROUNDS = 4  # of EM after each new dimension
ONE_BY_ONE = 4  # dimensions up to which each is added by itself, and then two at a time
STEPS = 3  # of conjugate gradients in each round, from the last maps
INITIAL_SIZE = 0.3  # of a new component, relative to the mean map's
BLUR = 1.5  # voxels: σ of the blur of the noise that it starts as


@dataclass(frozen=True)
class Subspace:
    """Maps "q+1 N N N": the mean V₀ and V₁ ... V_q, by falling size, of V(z) = V₀ + Σ z_j V_j with
    z normal of unit variance.

    held_out: for each number of dimensions, from 0, log p of the held-out particles beyond V₀
    alone, in nats per particle; of two that were added at once both have what they gain together.
    """

    maps: Tensor
    held_out: list[float]


@dataclass(frozen=True)
class GaussianPosterior:
    """The mean "m q" and covariance "m q q" of z of each particle.

    log_prob "m": of the particle, z integrated out.
    """

    mean: Tensor
    covariance: Tensor
    log_prob: Tensor


def gaussian_posterior(gram: Tensor, h: Tensor) -> GaussianPosterior:
    """The posterior of z of each particle, from the normal equations of q+1 maps."""
    dimensions = h.shape[1] - 1
    unit = torch.eye(dimensions, dtype=h.dtype)
    precision = unit + gram[:, 1:, 1:]
    of_mean = gram[:, 0]
    right = h[:, 1:] - of_mean[:, 1:]
    covariance = torch.linalg.inv(precision)
    mean = covariance @ right[..., None]
    mean = mean[..., 0]
    mean_only = h[:, 0] - 0.5 * of_mean[:, 0]
    explained = 0.5 * (right * mean).sum(1)
    volume = 0.5 * torch.logdet(precision)
    return GaussianPosterior(mean, covariance, mean_only + explained - volume)


def infer(particles: ParticleImages, maps: Tensor) -> GaussianPosterior:
    """The posterior of the particles in the subspace of maps "q+1 N N N"."""
    gram, h = particles.normal_equations(maps)
    return gaussian_posterior(gram, h)


def coordinates(particles: ParticleImages, maps: Tensor) -> Tensor:
    """The posterior means "m q" of the particles in the subspace of maps "q+1 N N N"."""
    return infer(particles, maps).mean


def fit(
    particles: ParticleImages,
    validation: ParticleImages,
    mean: Tensor,
    window: Tensor,
    limit: int,
    generator: torch.Generator,
    moving: Tensor | None = None,
) -> Subspace:
    """The subspace about the map `mean`: dimensions are added, up to `limit`, as long as the
    held-out particles `validation` become likelier by more than chance.

    window "N N N": where the mean may be; moving "N N N": the components (None: likewise).
    """
    kept = mean[None]
    held_out = [0.0]
    mean_only = infer(validation, kept).log_prob
    order = torch.randperm(particles.count, generator=generator)
    sample = particles.select(order[:MAX_SAMPLE])
    chance = math.log(limit / FALSE_POSITIVE_RATE)
    while len(kept) <= limit:
        added = 1 if len(kept) <= ONE_BY_ONE else min(2, limit + 1 - len(kept))
        maps = grow(sample, kept, window, generator, added, moving)
        gain = infer(validation, maps).log_prob - mean_only
        mean_gain = validation.mean(gain)
        more = mean_gain - max(held_out)
        held_out += [mean_gain] * added
        if more * validation.effective_count < chance:
            break
        kept = maps
    return Subspace(_principal(kept), held_out)


def grow(
    particles: ParticleImages,
    maps: Tensor,
    window: Tensor,
    generator: torch.Generator,
    added: int = 1,
    moving: Tensor | None = None,
) -> Tensor:
    """Maps of a subspace with so many dimensions more than that of `maps` "q+1 N N N"."""
    if moving is None:
        moving = window
    new = [_noise(maps[0], moving, generator) for _ in range(added)]
    maps = torch.cat([maps, torch.stack(new)])
    windows = torch.stack([window, *[moving] * (len(maps) - 1)])
    for _ in range(ROUNDS):
        maps = _round(particles, maps, windows)
    return maps


def _round(
    particles: ParticleImages,
    maps: Tensor,
    windows: Tensor,
) -> Tensor:
    """The maps after a round of EM, each inside its window of "q+1 N N N": moments of z, then the
    maps given these, with z_0 = 1.
    """
    z = infer(particles, maps)
    ones = torch.ones_like(z.log_prob)
    first = torch.cat([ones[:, None], z.mean], 1)
    covariance = torch.nn.functional.pad(z.covariance, (1, 0, 1, 0))
    products = first[:, :, None] * first[:, None]
    return update_maps(particles, maps, first, covariance + products, windows)


def update_maps(
    particles: ParticleImages,
    maps: Tensor,
    first: Tensor,
    second: Tensor,
    windows: Tensor,
    steps: int = STEPS,
) -> Tensor:
    """The maps "C N N N" whose sums Σ_j a_j V_j make particles likeliest, from `maps` on, inside
    their windows "C N N N".

    first "m C": E[a_j] of each particle, with a_0 = 1; second "m C C": E[a_j a_k]. Σ_k K_jk V_k =
    b_j is solved with K_jk of weights E[a_j a_k] and b_j of E[a_j], by conjugate gradients.
    """
    rows, columns = torch.triu_indices(len(maps), len(maps))
    b, each = particles.weighted_sums(first, second[:, rows, columns])
    number = torch.zeros(len(maps), len(maps), dtype=torch.long)
    number[rows, columns] = torch.arange(len(rows))
    number[columns, rows] = torch.arange(len(rows))
    return _solve(maps, b, each[number], windows, steps)


def _solve(
    maps: Tensor,
    b: Tensor,
    kernels: Tensor,
    windows: Tensor,
    steps: int,
) -> Tensor:
    """The maps after some steps of conjugate gradients on the block normal equations, with kernels
    "C C N+1 2N 2N" as Statistics have them.
    """
    n = maps.shape[-1]
    padded = (2 * n,) * 3
    axes = (1, 2, 3)
    dtype = torch.promote_types(maps.dtype, torch.complex64)
    factors = kernels.permute(0, 1, 4, 3, 2).to(dtype).contiguous()

    def apply(volumes: Tensor) -> Tensor:
        spectrum = torch.fft.rfftn(volumes, s=padded, dim=axes)
        spectrum = torch.einsum("jkzyx,kzyx->jzyx", factors, spectrum)
        convolved = torch.fft.irfftn(spectrum, s=padded, dim=axes)
        cropped = convolved[:, :n, :n, :n]
        return windows * cropped

    residual = windows * b - apply(maps)
    return conjugate_gradients(apply, maps, residual, steps)


def _noise(
    mean: Tensor,
    window: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """The map that a new dimension starts as: smooth noise inside the mask."""
    f = torch.fft.fftfreq(len(mean)).square()
    in_plane = f[:, None, None] + f[:, None]
    square = in_plane + f
    decay = -2 * (math.pi * BLUR) ** 2
    blur = torch.exp(decay * square)
    white = torch.randn(mean.shape, generator=generator)
    spectrum = torch.fft.fftn(white)
    noise = torch.fft.ifftn(spectrum * blur).real
    size = INITIAL_SIZE * mean.std()
    return noise / noise.std() * size * window


def _principal(maps: Tensor) -> Tensor:
    """The same subspace and prior with orthogonal components."""
    components = maps[1:]
    gram = torch.einsum("jzyx,kzyx->jk", components, components)
    _, turn = torch.linalg.eigh(gram)
    turned = torch.einsum("jk,jzyx->kzyx", turn.flip(1), components)
    return torch.cat([maps[:1], turned])
