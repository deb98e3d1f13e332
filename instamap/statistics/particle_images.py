"""What the images of many particles are asked, whether they are in one process or in several: what
they say of maps, and sums of their statistics.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from instamap.statistics.statistics import Statistics

BASIS_MAPS = 16  # that stand for more of them: images are held against a basis
PARTICLES_AT_ONCE = 2048  # that are held against all conformations
LEAST_WEIGHT = 1e-12  # of all particles together, by which a sum is divided


class ParticleImages(ABC):
    """Images of particles, in maps of `box` voxels an edge of `pixel_size` Å.

    particle "n": the number, from 0, of the particle that an image shows; images of one particle
    share its coordinates. weight "m" (float64): factors of the particles' log p in all sums over
    particles; None for 1. nuisance "Q N N N": maps that each particle has beside any other, in
    amounts that nobody asks for, normally distributed with unit variance; None for none.
    """

    box: int
    pixel_size: float
    particle: Tensor
    weight: Tensor | None
    nuisance: Tensor | None

    @property
    def count(self) -> int:
        """The number of particles."""
        return int(self.particle.max()) + 1

    def unit_weights(self) -> Tensor:
        """The weights "m" with which all particles count alike."""
        return torch.ones(self.count, dtype=torch.float64)

    @property
    def effective_count(self) -> float:
        """How many particles that count alike would say as much: see `effective_count`."""
        return float(self.count) if self.weight is None else effective_count(self.weight)

    def mean(self, values: Tensor) -> float:
        """The mean of values "m" of the particles, each by its weight; 0 where none counts."""
        if self.weight is None:
            return float(values.mean())
        return float(self.weight @ values.double() / self.weight.sum().clamp(min=LEAST_WEIGHT))

    @abstractmethod
    def select(self, particles: Tensor) -> "ParticleImages":
        """Some particles alone, by their numbers, in the order that they have."""

    def in_chunks(self, size: int = PARTICLES_AT_ONCE) -> "Sequence[ParticleImages]":
        """The same particles in their order, at most so many at a time in each process."""
        if self.count <= size:
            return [self]
        return [self.select(some) for some in torch.arange(self.count).split(size)]

    @abstractmethod
    def with_nuisance(self, nuisance: Tensor) -> "ParticleImages":
        """The same images beside other maps "Q N N N" that nobody asks for."""

    @abstractmethod
    def with_added(self, maps: Tensor, amount: Tensor) -> "ParticleImages":
        """The images as if more were there: of each particle the sum of maps "R N N N" in the
        amounts "m R" (float32).
        """

    @torch.no_grad()
    def normal_equations(self, maps: Tensor, basis: int = BASIS_MAPS) -> tuple[Tensor, Tensor]:
        """For maps V_c "C N N N" the G "m C C" and h "m C" (float64) of each particle: log p(Σ c_c
        V_c) = h·c - ½ c·G c + const.

        basis: the number of maps, at most, that the images are held against. The amounts of the
        nuisance are integrated out.
        """
        if len(maps) > basis:
            return self._by_basis(maps, basis)
        if self.nuisance is not None:
            return self._beside(maps, self.nuisance)
        return self.equations_of(maps)

    @abstractmethod
    def equations_of(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """G "m C C" and h "m C" (float64) of the maps "C N N N" themselves."""

    def _beside(self, maps: Tensor, nuisance: Tensor) -> tuple[Tensor, Tensor]:
        """The normal equations of maps once the amounts a of a nuisance are integrated out.

        With G and h of both in blocks, G' = G_cc - G_ca (1 + G_aa)⁻¹ G_ac and h' = h_c - G_ca (1 +
        G_aa)⁻¹ h_a, up to a constant of each particle.
        """
        count = len(maps)
        both = torch.cat([maps, nuisance])
        gram, h = self.equations_of(both)
        unit = torch.eye(len(nuisance), dtype=gram.dtype)
        precision = unit + gram[:, count:, count:]
        cross = gram[:, count:, :count]
        solved = torch.linalg.solve(precision, cross).mT
        explained = solved @ h[:, count:, None]
        return gram[:, :count, :count] - solved @ cross, h[:, :count] - explained[..., 0]

    def _by_basis(self, maps: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The normal equations of many maps, from those of the few that span nearly all of them."""
        flat = maps.flatten(1)
        u, s, v = torch.linalg.svd(flat, full_matrices=False)
        mix = u[:, :count] * s[:count]
        mix = mix.double()
        basis = v[:count]
        basis = basis.view(count, *maps.shape[1:])
        gram, h = self.normal_equations(basis, count)
        return mix @ gram @ mix.T, h @ mix.T

    @abstractmethod
    def statistics(self, share: Tensor) -> Statistics:
        """The statistics of all images with weights "m" of their particles beside their own, which
        may be negative.
        """

    @abstractmethod
    def weighted_sums(self, data: Tensor, power: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors b "A N N N" of all images with weights "m A" of their particles, and kernels "B
        N+1 2N 2N" with others "m B": what `statistics` gives, for many weights at once.

        A kernel costs a third of what it does by itself: an image's place on the grid is found once
        for all.
        """


def effective_count(weight: Tensor) -> float:
    """The number of particles that count alike and whose mean is as uncertain as that of particles
    with weights "m": (Σ w)² / Σ w² (Kish, Survey Sampling, 1965). A common factor changes nothing.
    """
    square = weight.double().square().sum().clamp(min=LEAST_WEIGHT)
    return float(weight.double().sum() ** 2 / square)
