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
        reference = self._reference("map")
        corrected = []
        uncorrected = []
        for rows, images in self._images(self.held_out, self.particles.box):
            of_rows = z[rows]
            corrected.append(images.expand(reference, of_rows))
            uncorrected.append(images.expand(reference, torch.zeros_like(of_rows)))
        log_marginal = prior.log_marginal(Expansion.joined(corrected))
        value = Expansion.joined(uncorrected).value
        held_out = float(log_marginal.mean())
        return z, Round(prior, self.shell, held_out, uncorrected=float(value.mean()))

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
            views = self.particles.views[chunk]
            yield chunk, PoseImages(statistics, views, shell + 0.5)


def _variance(particles: Particles, likelihood: GaussianLikelihood) -> Tensor:
    """Variance "G D//2+1" of the noise for each optics group and Fourier shell."""
    of_rows = particles.views.group.tolist()
    examples = []  # a row of each group; any row for one without
    for group in range(max(of_rows) + 1):
        example = of_rows.index(group) if group in of_rows else 0
        examples.append(example)
    views = particles.views[torch.tensor(examples)]
    return likelihood.noise_variance(views)


def _last_shell(fsc: Tensor | None, box: int) -> int:
    """The shell down to which the half maps agree."""
    if fsc is None:
        return box // 2
    agrees = fsc[1:] >= MIN_AGREEMENT
    disagree = (~agrees).nonzero()[:, 0].tolist()
    if not disagree:
        return box // 2
    return max(MIN_SHELLS, disagree[0])
