"""What is done to poses in one round: held-out particles judge the mean map, each half's are held
against its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.data.particles import Particles
from instamap.parts import Likelihood
from instamap.poses.expansion import Expansion, Images, Reference, refine
from instamap.poses.pose_prior import Prior
from instamap.statistics.particle_statistics import Coarse
from instamap.workflows.map import Result
from instamap.workflows.prepare import Survey

PIXELS = 1 << 22  # of images that are refined at once
AGREEMENT = 0.5  # FSC of the half maps down to which images are held against them


@dataclass(frozen=True)
class Round:
    """What held-out particles say of one round, in nats per particle beyond an empty map.

    prior: under which they are likeliest. shell: the last one, up to which images were held against
    maps to find their poses. held_out: with corrections summed out; given: with the poses that were
    given; both of all shells.
    """

    prior: Prior
    shell: int
    held_out: float
    given: float


class Work:
    """Particles at the poses that were given, and the maps of a round."""

    def __init__(self, known: Survey, likelihood: Likelihood, result: Result, steps: int):
        self.particles = known.particles
        self.rows = known.rows
        self.held_out = known.held_out
        self.steps = steps
        self.maps = result.maps
        self.references = {}
        self.variance = _variance(self.particles, likelihood)
        curve = result.curves.get("masked")
        low = [] if curve is None else (~(curve[1:] >= AGREEMENT)).nonzero()[:, 0].tolist()
        self.shell = max(2, low[0]) if low else self.particles.box // 2

    def judge(self, z: Tensor, prior: Prior) -> tuple[Tensor, Round]:
        """Corrections "n 5" of all particles, those of held-out ones found anew, and what these say
        of the map and of the prior.
        """
        for _ in range(2):  # the prior first, which may be far off
            found = self._refined("map", self.held_out, z, prior)
            z = z.index_copy(0, self.held_out, found.z)
            prior = prior.estimate(found)
        whole = []
        given = []
        for rows, images in self._images(self.held_out, self.particles.box):
            whole.append(images.expand(self._reference("map"), z[rows]))
            given.append(images.expand(self._reference("map"), torch.zeros_like(z[rows])).value)
        held_out = float(prior.evidence(Expansion.joined(whole)).mean())
        return z, Round(prior, self.shell, held_out, float(torch.cat(given).mean()))

    def correct(self, z: Tensor, prior: Prior) -> Tensor:
        """Corrections "n 5" of all particles, those that are fitted found anew, each half's against
        its own map.
        """
        for name, rows in self.rows.items():
            z = z.index_copy(0, rows, self._refined(name, rows, z, prior).z)
        return z

    def _refined(self, name: str, rows: Tensor, z: Tensor, prior: Prior) -> Expansion:
        reference = self._reference(name)
        return Expansion.joined(
            [
                refine(images, reference, z[some], prior, self.steps)
                for some, images in self._images(rows, self.shell)
            ]
        )

    def _reference(self, name: str) -> Reference:
        if name not in self.references:
            self.references = {name: Reference(self.maps[name])}  # one at a time, as they are large
        return self.references[name]

    def _images(self, rows: Tensor, shell: int) -> Iterator[tuple[Tensor, Images]]:
        for some in rows.split(max(1, PIXELS // self.particles.box**2)):
            seen = Coarse.read(self.particles, some, self.variance, some)
            yield some, Images(seen, self.particles.views[some], shell + 0.5)


def _variance(particles: Particles, likelihood: Likelihood) -> Tensor:
    """Of the noise "G D//2+1" for each optics group and Fourier shell."""
    group = particles.views.group.tolist()
    first = torch.tensor([group.index(i) if i in group else 0 for i in range(max(group) + 1)])
    return likelihood.noise_variance(particles.views[first])
