"""Particles whose images several processes have in memory, each a part of them."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from instamap.data.particles import Particles
from instamap.geometry.cube import Cube
from instamap.progress import Progress
from instamap.statistics.particle_images import PARTICLES_AT_ONCE, ParticleImages
from instamap.statistics.particle_statistics import ParticleStatistics
from instamap.statistics.statistics import Statistics
from instamap.workflows.shared_statistics import sent, total
from instamap.workflows.team import ImageSource, Member, Part, Task, Team


@dataclass(frozen=True)
class Read(Task):
    """Reads particles (see `ParticleStatistics.read`), each process those that it has by `owner`
    "m", and keeps them as parts of a number.
    """

    number: int
    source: ImageSource
    rows: Tensor
    variance: Tensor
    particle: Tensor
    weights: Tensor | None
    owner: Tensor
    device: str = "cpu"

    def carry_out(self, member: Member, progress: Progress) -> list[Tensor]:
        own = self.owner[self.particle] == member.rank
        found = None
        if own.any():
            found = ParticleStatistics.read(
                member.open(self.source),
                self.rows[own],
                self.variance,
                self.particle[own],
                None if self.weights is None else self.weights[own],
                member.device(self.device),
            )
        member.parts[self.number] = Part(self.owner, found)
        return []


@dataclass(frozen=True)
class Select(Task):
    """Keeps some particles "k" (their numbers) of parts as others, of the number `new`."""

    number: int
    new: int
    particles: Tensor

    def carry_out(self, member: Member, progress: Progress) -> list[Tensor]:
        part = member.parts[self.number]
        kept = torch.zeros(len(part.owner), dtype=torch.bool)
        kept[self.particles] = True
        of_own = kept[part.owner == member.rank].nonzero()[:, 0]
        found = None
        if part.statistics is not None and len(of_own):
            found = part.statistics.select(of_own)
        member.parts[self.new] = Part(part.owner[kept], found)
        return []


@dataclass(frozen=True)
class Add(Task):
    """Keeps parts, as if more were in their images, as others: see `ParticleImages.with_added`."""

    number: int
    new: int
    maps: Tensor
    amount: Tensor

    def carry_out(self, member: Member, progress: Progress) -> list[Tensor]:
        part = member.parts[self.number]
        found = part.statistics
        if found is not None:
            found = found.with_added(self.maps, self.amount[part.owner == member.rank])
        member.parts[self.new] = Part(part.owner, found)
        return []


@dataclass(frozen=True)
class Equations(Task):
    """Holds parts against maps: see `ParticleImages.equations_of`."""

    number: int
    maps: Tensor

    def carry_out(self, member: Member, progress: Progress) -> list[Tensor]:
        found = member.parts[self.number].statistics
        return [] if found is None else list(found.equations_of(self.maps))


@dataclass(frozen=True)
class Sum(Task):
    """Adds up parts with weights "m" of all particles: see `ParticleImages.statistics`."""

    number: int
    share: Tensor

    def carry_out(self, member: Member, progress: Progress) -> list[Tensor]:
        part = member.parts[self.number]
        if part.statistics is None:
            return []
        own = part.owner == member.rank
        return sent(part.statistics.statistics(self.share[own]))


@dataclass(frozen=True)
class WeightedSums(Task):
    """Adds up parts with many weights of all particles: see `ParticleImages.weighted_sums`."""

    number: int
    data: Tensor
    power: Tensor

    def carry_out(self, member: Member, progress: Progress) -> list[Tensor]:
        part = member.parts[self.number]
        if part.statistics is None:
            return []
        own = part.owner == member.rank
        return list(part.statistics.weighted_sums(self.data[own], self.power[own]))


class PartsNumber:
    """The number by which all processes know their parts; they forget them when it is gone."""

    def __init__(self, team: Team) -> None:
        self.value = team.new_number()
        weakref.finalize(self, team.release, self.value)


@dataclass(frozen=True)
class SharedParticles(ParticleImages):
    """Particles of which each process has those of its rank in `owner` "m"."""

    team: Team
    number: PartsNumber
    owner: Tensor
    box: int
    pixel_size: float
    particle: Tensor
    weight: Tensor | None = None
    nuisance: Tensor | None = None

    @staticmethod
    def read(
        team: Team,
        particles: Particles,
        rows: Tensor,
        variance: Tensor,
        particle: Tensor,
        weights: Tensor | None = None,
        device: str = "cpu",
    ) -> "SharedParticles":
        """The images `rows` "n" of particles "n" (see `ParticleStatistics.read`), of which each
        process reads an equal share.
        """
        _, number = particle.unique(return_inverse=True)
        pieces = torch.arange(int(number.max()) + 1).tensor_split(team.count)
        owner = torch.cat([torch.full((len(one),), rank) for rank, one in enumerate(pieces)])
        parts = PartsNumber(team)
        source = ImageSource.of(particles)
        team.ask(Read(parts.value, source, rows, variance, number, weights, owner, device))
        weight = None
        if weights is not None:
            weight = torch.bincount(number, weights.double()) / torch.bincount(number)
        box = particles.box
        return SharedParticles(team, parts, owner, box, particles.pixel_size, number, weight)

    def select(self, particles: Tensor) -> "SharedParticles":
        chosen = torch.isin(self.particle, particles)
        if chosen.all():
            return self
        kept, number = self.particle[chosen].unique(return_inverse=True)
        parts = PartsNumber(self.team)
        self.team.ask(Select(self.number.value, parts.value, kept))
        return replace(
            self,
            number=parts,
            owner=self.owner[kept],
            particle=number,
            weight=None if self.weight is None else self.weight[kept],
        )

    def in_chunks(self, size: int = PARTICLES_AT_ONCE) -> Sequence[ParticleImages]:
        return super().in_chunks(size * self.team.count)

    def with_nuisance(self, nuisance: Tensor) -> "SharedParticles":
        return replace(self, nuisance=nuisance)

    def with_added(self, maps: Tensor, amount: Tensor) -> "SharedParticles":
        parts = PartsNumber(self.team)
        self.team.ask(Add(self.number.value, parts.value, maps, amount))
        return replace(self, number=parts)

    def equations_of(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        answers = self.team.ask(Equations(self.number.value, maps))
        count = len(maps)
        gram = torch.zeros(self.count, count, count, dtype=torch.float64)
        h = torch.zeros(self.count, count, dtype=torch.float64)
        for rank, tensors in enumerate(answers):
            if tensors:
                own = self.owner == rank
                gram[own], h[own] = tensors
        return gram, h

    def statistics(self, share: Tensor) -> Statistics:
        answers = self.team.ask(Sum(self.number.value, share))
        return total(answers, Statistics.empty(Cube.whole(self.box), self.pixel_size))

    def weighted_sums(self, data: Tensor, power: Tensor) -> tuple[Tensor, Tensor]:
        answers = [
            one for one in self.team.ask(WeightedSums(self.number.value, data, power)) if one
        ]
        b, kernels = answers[0]
        for more_b, more_kernels in answers[1:]:
            b = b + more_b
            kernels = kernels + more_kernels
        return b, kernels
