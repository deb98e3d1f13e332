"""One round of pose correction: held-out particles test the mean map, then poses are refined.

Each half's particles are held against its own map.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.data.particles import Particles
from instamap.parts import GaussianLikelihood
from instamap.poses.expansion import Expansion, PoseImages, ReferenceMap
from instamap.poses.pose_prior import PosePrior
from instamap.poses.refine import refine
from instamap.statistics.particle_statistics import ParticleStatistics

PIXELS_AT_ONCE = 1 << 22  # of images that are refined
MIN_AGREEMENT = 0.5  # FSC of the half maps down to which images are held against them
MIN_SHELLS = 2


@dataclass(frozen=True)
class Round:
    """What held-out particles say of one round, in nats per particle beyond an empty map.

    prior: under which they are likeliest. shell: the last one, up to which images were held against
    maps to find their poses. held_out: with corrections summed out; uncorrected: with the poses
    from the file; both of all shells.
    """

    prior: PosePrior
    shell: int
    held_out: float
    uncorrected: float


class PoseRound:
    """Particles at the poses that were given, and the maps of a round.

    rows: row numbers of each set that is fitted. maps: by name, "map" among them. fsc: of the half
    maps, None without halves. steps: Gauss-Newton steps for each particle.
    """

    def __init__(
        self,
        particles: Particles,
        rows: Mapping[str, Tensor],
        held_out: Tensor,
        likelihood: GaussianLikelihood,
        maps: Mapping[str, Tensor],
        fsc: Tensor | None,
        steps: int,
    ) -> None:
        self.particles = particles
        self.rows = rows
        self.held_out = held_out
        self.steps = steps
        self.maps = maps
        self.references: dict[str, ReferenceMap] = {}
        self.variance = _variance(particles, likelihood)
        self.shell = _last_shell(fsc, particles.box)

    def test(self, z: Tensor, prior: PosePrior) -> tuple[Tensor, Round]:
        """What held-out particles say of the map and of the prior.

        Also corrections "n 5" of all particles, those of held-out ones found anew from z "n 5".
        """
        for _ in range(2):  # the prior first, which may be far off
            refined = self._refined("map", self.held_out, z, prior)
            z = z.index_copy(0, self.held_out, refined.z)
            prior = prior.estimate(refined)
        corrected = []
        given = []
        for rows, images in self._images(self.held_out, self.particles.box):
            corrected.append(images.expand(self._reference("map"), z[rows]))
            unmoved = torch.zeros_like(z[rows])
            given.append(images.expand(self._reference("map"), unmoved).value)
        held_out = float(prior.log_marginal(Expansion.joined(corrected)).mean())
        return z, Round(prior, self.shell, held_out, float(torch.cat(given).mean()))

    def correct(self, z: Tensor, prior: PosePrior) -> Tensor:
        """Corrections "n 5" of all particles, those that are fitted found anew from z "n 5"."""
        for name, rows in self.rows.items():
            refined = self._refined(name, rows, z, prior)
            z = z.index_copy(0, rows, refined.z)
        return z

    def _refined(self, name: str, rows: Tensor, z: Tensor, prior: PosePrior) -> Expansion:
        reference = self._reference(name)
        parts = []
        for chunk, images in self._images(rows, self.shell):
            parts.append(refine(images, reference, z[chunk], prior, self.steps))
        return Expansion.joined(parts)

    def _reference(self, name: str) -> ReferenceMap:
        if name not in self.references:
            # one at a time, as they are large
            self.references = {name: ReferenceMap(self.maps[name])}
        return self.references[name]

    def _images(self, rows: Tensor, shell: int) -> Iterator[tuple[Tensor, PoseImages]]:
        size = max(1, PIXELS_AT_ONCE // self.particles.box**2)
        for chunk in rows.split(size):
            statistics = ParticleStatistics.read(self.particles, chunk, self.variance, chunk)
            yield chunk, PoseImages(statistics, self.particles.views[chunk], shell + 0.5)


def _variance(particles: Particles, likelihood: GaussianLikelihood) -> Tensor:
    """Variance "G D//2+1" of the noise for each optics group and Fourier shell."""
    group = particles.views.group.tolist()
    groups = range(max(group) + 1)
    first = torch.tensor([group.index(i) if i in group else 0 for i in groups])
    return likelihood.noise_variance(particles.views[first])


def _last_shell(fsc: Tensor | None, box: int) -> int:
    """The shell down to which the half maps agree."""
    if fsc is None:
        return box // 2
    disagree = (~(fsc[1:] >= MIN_AGREEMENT)).nonzero()[:, 0].tolist()
    return max(MIN_SHELLS, disagree[0]) if disagree else box // 2
