"""The linear subspace of maps in which particles differ: probabilistic principal components, by EM
on block normal equations.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.statistics.particle_statistics import ParticleStatistics
from instamap.statistics.solve import conjugate_gradients

SAMPLE = 3000  # particles, at most, that the subspace is fitted to
CHANCE = 0.01  # probability, at most, that a dimension is taken for one that is not there
ROUNDS = 4  # of EM after each new dimension
STEPS = 3  # of conjugate gradients in each round, from the last maps
BIRTH = 0.3  # size of a new component, relative to the mean map's
SMOOTH = 1.5  # voxels: σ of the blur of the noise that it starts as


@dataclass(frozen=True)
class Subspace:
    """Maps "q+1 N N N": the mean V₀ and V₁ ... V_q, by falling size, of V(z) = V₀ + Σ z_j V_j with
    z normal of unit variance.

    held_out: for each number of dimensions tried, from 0, log p of the held-out particles beyond V₀
    alone, in nats per particle.
    """

    maps: Tensor
    held_out: list[float]


def posterior(gram: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean "m q" and covariance "m q q" of z of each particle, from the normal equations of q+1
    maps, and log p "m" with z integrated out.
    """
    precision = torch.eye(h.shape[1] - 1, dtype=h.dtype) + gram[:, 1:, 1:]
    right = h[:, 1:] - gram[:, 0, 1:]
    covariance = torch.linalg.inv(precision)
    mean = (covariance @ right[..., None])[..., 0]
    return (
        mean,
        covariance,
        h[:, 0] - 0.5 * gram[:, 0, 0] + 0.5 * (right * mean).sum(1) - 0.5 * torch.logdet(precision),
    )


def fit(
    coarse: ParticleStatistics,
    judge: ParticleStatistics,
    mean: Tensor,
    window: Tensor,
    limit: int,
    generator: torch.Generator,
) -> Subspace:
    """Dimensions are added one by one, up to `limit`, as long as the held-out particles `judge`
    become likelier by more than chance.
    """
    kept = mean[None]
    held_out = [0.0]
    alone = posterior(*judge.normal_equations(mean[None]))[2]
    coarse = coarse.select(torch.randperm(coarse.count, generator=generator)[:SAMPLE])
    for _ in range(limit):
        maps = grown(coarse, kept, window, generator)
        held_out.append(float((posterior(*judge.normal_equations(maps))[2] - alone).mean()))
        if (held_out[-1] - max(held_out[:-1])) * judge.count < math.log(limit / CHANCE):
            break
        kept = maps
    return Subspace(_principal(kept), held_out)


def grown(
    coarse: ParticleStatistics, maps: Tensor, window: Tensor, generator: torch.Generator
) -> Tensor:
    """Maps "q+2 N N N" of a subspace with one dimension more than that of `maps`."""
    maps = torch.cat([maps, _noise(maps[0], window, generator)[None]])
    for _ in range(ROUNDS):
        maps = _round(coarse, maps, window)
    return maps


def coordinates(coarse: ParticleStatistics, maps: Tensor) -> Tensor:
    """Posterior means "m q" of the particles in the subspace of maps "q+1 N N N"."""
    return posterior(*coarse.normal_equations(maps))[0]


def _round(coarse: ParticleStatistics, maps: Tensor, window: Tensor) -> Tensor:
    """E: moments of z. M: Σ_k K_jk V_k = b_j with K_jk of weights E[z_j z_k], b_j of E[z_j], z_0 =
    1.
    """
    mean, covariance, _ = posterior(*coarse.normal_equations(maps))
    first = torch.cat([torch.ones(len(mean), 1, dtype=mean.dtype), mean], 1)
    second = torch.nn.functional.pad(covariance, (1, 0, 1, 0)) + first[:, :, None] * first[:, None]
    count = len(maps)
    b = []
    kernels = {}
    for j in range(count):
        for k in range(j, count):
            found = coarse.statistics(
                second[:, j, k], first[:, k] if j == 0 else torch.zeros_like(first[:, 0])
            )
            kernels[j, k] = kernels[k, j] = found.kernel
            b += [found.b] if j == 0 else []
    return _solve(
        maps,
        torch.stack(b),
        torch.stack([torch.stack([kernels[j, k] for k in range(count)]) for j in range(count)]),
        window,
    )


def _solve(maps: Tensor, b: Tensor, kernels: Tensor, window: Tensor) -> Tensor:
    """Some steps of conjugate gradients on the block normal equations."""
    n = maps.shape[-1]

    def apply(x: Tensor) -> Tensor:
        spectrum = torch.fft.rfftn(x, s=(2 * n,) * 3, dim=(1, 2, 3))
        spectrum = torch.einsum("jkzyx,kzyx->jzyx", kernels.to(spectrum.dtype), spectrum)
        return window * torch.fft.irfftn(spectrum, s=(2 * n,) * 3, dim=(1, 2, 3))[:, :n, :n, :n]

    return conjugate_gradients(apply, maps, window * b - apply(maps), STEPS)


def _noise(mean: Tensor, window: Tensor, generator: torch.Generator) -> Tensor:
    """Where a new dimension starts: smooth noise inside the mask."""
    n = len(mean)
    f = torch.fft.fftfreq(n).square()
    low = torch.exp(-2 * (math.pi * SMOOTH) ** 2 * (f[:, None, None] + f[:, None] + f))
    noise = torch.fft.ifftn(torch.fft.fftn(torch.randn(mean.shape, generator=generator)) * low).real
    return noise / noise.std() * (BIRTH * mean.std()) * window


def _principal(maps: Tensor) -> Tensor:
    """The same subspace and prior with orthogonal components."""
    gram = torch.einsum("jzyx,kzyx->jk", maps[1:], maps[1:])
    _, turn = torch.linalg.eigh(gram)
    return torch.cat([maps[:1], torch.einsum("jk,jzyx->kzyx", turn.flip(1), maps[1:])])
