"""Whether images differ in contrast, and each one's factor: found at low resolution, by maps that
do not hold the image's own noise.

Every set that is fitted is parted in two, and each part's images are held against the other part's
map: no image meets its own noise, and nothing of one half reaches the other. Held-out images, which
are in no map, decide whether factors are used.
"""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instamap.data import splits
from instamap.data.particles import Particles
from instamap.errors import DataError
from instamap.fitting.loop import FALSE_POSITIVE_RATE
from instamap.maps import mask
from instamap.model import make_part
from instamap.parts import GaussianLikelihood
from instamap.plugin.choice import choose
from instamap.scene import ContrastFactors, Scene
from instamap.statistics import contrast_factors, initial_map
from instamap.statistics.contrast_factors import FactorPrior, ImageContrasts
from instamap.statistics.particle_statistics import ParticleStatistics, fewer_pixels
from instamap.statistics.statistics import Statistics
from instamap.statistics.streaming import accumulate

CONTRAST = "contrast.csv"
BOX = 32  # voxels along an edge of the maps
MAX_MAP_IMAGES = 1500  # of each part, in its map
MAX_PRIOR_IMAGES = 1000  # of each part, of which the distribution of factors is found
MAX_HELD_OUT_IMAGES = 4000  # that decide
MIN_PART_IMAGES = 100  # make a map that tells anything of others
MIN_HELD_OUT_IMAGES = 20
# Without factors images of spread s are worth less by a share of s²: one in a hundred here. So much
# is also what maps that are not quite right take for contrast.
MIN_SPREAD = 0.1
# What a map explains of images that it does not hold, in what it would if it held no noise: of maps
# that are mostly noise, factors tell how far each image agrees with that noise.
MIN_EXPLAINED = 0.5
# More is no contrast: tilted and dim images also differ by their ice, their dose and their poses,
# and factors as wide as that make few images count for all (half maps of real tilts get worse).
MAX_SPREAD = 0.5
IMAGES_AT_ONCE = 8192


@dataclass(frozen=True)
class MeasuredContrast:
    """What was found of the images' contrasts.

    spread: standard deviation of their factors about 1. gain: of held-out images by factors, in
    nats each. held_out: how many of them said so. explained: the mean factor of images of the
    worst map before it is taken as 1. factors: of all particles; None where they are not used.
    """

    spread: float
    gain: float
    held_out: int
    explained: float = 1.0
    factors: ContrastFactors | None = None

    @property
    def counts(self) -> bool:
        """Whether images differ beyond chance, so much that it matters, and no more than contrast
        does, by maps that can tell.
        """
        chance = math.log(1 / FALSE_POSITIVE_RATE)
        likelier = self.gain * self.held_out > chance
        plausible = MIN_SPREAD <= self.spread <= MAX_SPREAD
        return likelier and plausible and self.explained >= MIN_EXPLAINED

    @property
    def line(self) -> str:
        """What was found, for people."""
        gain = f"held-out images gain {self.gain:+.3g} nats each"
        if self.counts:
            return f"images differ by {self.spread:.0%} (rms); {gain} by factors"
        if self.explained < MIN_EXPLAINED:
            return "one for all images: first maps are too noisy to tell"
        return f"one for all images; by factors {gain}, at a spread of {self.spread:.1%}"

    def record(self) -> dict[str, Any]:
        """What was found as plain values."""
        return {
            "used": self.counts,
            "spread": self.spread,
            "held_out_gain": self.gain,
            "held_out": self.held_out,
            "explained": self.explained,
        }

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> "MeasuredContrast":
        """What `record` tells."""
        return MeasuredContrast(
            record["spread"], record["held_out_gain"], record["held_out"], record["explained"]
        )


class ContrastMeasurement:
    """Particles at low resolution, in parts, and a map of each part.

    sets: row numbers of each set that is fitted. group "n": a number that rows share which must not
    be in two parts. weights "n": of all particles' log p.
    """

    def __init__(
        self,
        particles: Particles,
        scene: Scene,
        sets: Mapping[str, Tensor],
        held_out: Tensor,
        group: Tensor,
        *,
        symmetry: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> None:
        edge = particles.box * particles.pixel_size
        self.particles = fewer_pixels(particles, edge / BOX)
        self.scene = _coarse_scene(scene, self.particles)
        self.sets = {name: _halved(rows, group) for name, rows in sets.items()}
        self.held_out = held_out
        self.symmetry = symmetry
        self.weights = weights
        self.maps: dict[tuple[str, int], Tensor] = {}
        self.priors: dict[tuple[str, int], FactorPrior] = {}

    @property
    def is_large_enough(self) -> bool:
        """Whether there are images enough to say anything."""
        counts = [len(self._counting(rows)) for parts in self.sets.values() for rows in parts]
        return (
            min(counts) >= MIN_PART_IMAGES
            and len(self._counting(self.held_out)) >= MIN_HELD_OUT_IMAGES
        )

    def measure(self) -> MeasuredContrast:
        """The spread of factors in the fitted sets, and what held-out images gain by it. Raises
        DataError where a map is flat.
        """
        self.maps = self._solve_maps()
        for name, parts in self.sets.items():
            for number, rows in enumerate(parts):
                # each part's map is held against the other part's images
                key = (name, 1 - number)
                sample = splits.at_equal_steps(self._counting(rows), MAX_PRIOR_IMAGES)
                images = self._contrasts(sample, self.maps[key])
                self.priors[key] = contrast_factors.fit_prior(images)
        held_out = splits.at_equal_steps(self._counting(self.held_out), MAX_HELD_OUT_IMAGES)
        gains = [
            self._gain(self._contrasts(held_out, self.maps[key]), prior)
            for key, prior in self.priors.items()
        ]
        gain = sum(gains) / len(gains)
        explained = min(prior.mean for prior in self.priors.values())
        return MeasuredContrast(self._spread(), gain, len(held_out), explained)

    def factors(self, wanted: Tensor) -> ContrastFactors:
        """The factors of all rows, after `measure`; those of rows that are not `wanted` "n" (bool)
        or in no set stay 1.
        """
        mean = torch.ones(self.particles.count, dtype=torch.float64)
        square = torch.ones(self.particles.count, dtype=torch.float64)
        for name, parts in self.sets.items():
            for number, rows in enumerate(parts):
                key = (name, 1 - number)
                chosen = rows[wanted[rows]]
                images = self._contrasts(chosen, self.maps[key])
                found = self.priors[key].factors(images)
                mean[chosen] = found.mean
                square[chosen] = found.square
        sample = splits.at_equal_steps(self._counting(self.held_out), MAX_HELD_OUT_IMAGES)
        common = torch.stack(list(self.maps.values())).mean(0)
        images = self._contrasts(sample, common)
        prior = contrast_factors.mean_of_spread(images, self._spread())
        chosen = self.held_out[wanted[self.held_out]]
        found = prior.factors(self._contrasts(chosen, common))
        mean[chosen] = found.mean
        square[chosen] = found.square
        return ContrastFactors(mean, square)

    def _spread(self) -> float:
        """The root mean square over the maps."""
        squares = [prior.spread**2 for prior in self.priors.values()]
        return math.sqrt(sum(squares) / len(squares))

    def _gain(self, images: ImageContrasts, prior: FactorPrior) -> float:
        """Nats that images gain by a prior, over one factor for all."""
        same = FactorPrior(prior.mean, 0.0)
        gain = prior.log_marginal(images) - same.log_marginal(images)
        return float(gain.mean())

    def _counting(self, rows: Tensor) -> Tensor:
        """The rows whose weight is not 0."""
        return rows if self.weights is None else rows[self.weights[rows] > 0]

    def _solve_maps(self) -> dict[tuple[str, int], Tensor]:
        """A map of each part, inside a mask of its own."""
        rows = {}
        for name, parts in self.sets.items():
            for number, part in enumerate(parts):
                rows[f"{name} {number}"] = splits.at_equal_steps(
                    self._counting(part), MAX_MAP_IMAGES
                )
        likelihood = make_part("likelihood", choose("likelihood", "coloured"), self.scene)
        assert isinstance(likelihood, GaussianLikelihood)
        statistics = accumulate(
            self.particles, rows, likelihood, symmetry=self.symmetry, weights=self.weights
        )
        keys = [(name, number) for name in self.sets for number in range(2)]
        maps = [self._solve(one) for one in statistics.values()]
        return dict(zip(keys, maps, strict=True))

    def _solve(self, statistics: Statistics) -> Tensor:
        scene = self.scene
        sphere = mask.sphere(scene.box, scene.pixel_size, scene.radius, 0.0)
        first = initial_map.solve(statistics, sphere)
        window = initial_map.find_mask(first, scene.pixel_size)
        return initial_map.solve(statistics, window)

    def _contrasts(self, rows: Tensor, volume: Tensor) -> ImageContrasts:
        """What the images of `rows` say of their factors by a map."""
        assert self.scene.noise_variance is not None
        variance = self.scene.noise_variance.clone()
        variance[:, 0] = math.inf  # images have means of their own
        slope = torch.zeros(len(rows), dtype=torch.float64)
        curvature = torch.zeros(len(rows), dtype=torch.float64)
        for chunk in torch.arange(len(rows)).split(IMAGES_AT_ONCE):
            if not len(chunk):
                continue
            images = ParticleStatistics.read(self.particles, rows[chunk], variance, chunk)
            some = ImageContrasts.of(images, volume)
            slope[chunk] = some.slope
            curvature[chunk] = some.curvature
        return ImageContrasts(slope, curvature)


def _coarse_scene(scene: Scene, coarse: Particles) -> Scene:
    """The scene of the images with fewer pixels, in the noise of those as they were."""
    assert scene.noise_variance is not None  # the dataset's scene has one
    shells = coarse.box // 2 + 1
    fewer = (coarse.box / scene.box) ** 2  # pixels for one: their noise is averaged
    return replace(
        scene,
        box=coarse.box,
        pixel_size=coarse.pixel_size,
        mask=None,
        bodies=None,
        noise_variance=scene.noise_variance[:, :shells] * fewer,
    )


def _halved(rows: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """The rows in two parts, with those of one group in one."""
    _, number = group[rows].unique(return_inverse=True)
    second = number % 2 == 1
    return rows[~second], rows[second]


def measure(
    particles: Particles,
    scene: Scene,
    sets: Mapping[str, Tensor],
    held_out: Tensor,
    group: Tensor,
    wanted: Tensor,
    *,
    symmetry: Tensor | None = None,
    weights: Tensor | None = None,
) -> MeasuredContrast | None:
    """What is found of contrast, with factors of the rows that are `wanted` "n" (bool) where they
    count; None where images are too few, or make no map. See `ContrastMeasurement`.
    """
    one = ContrastMeasurement(
        particles, scene, sets, held_out, group, symmetry=symmetry, weights=weights
    )
    if not one.is_large_enough:
        return None
    try:
        measured = one.measure()
    except DataError:
        return None
    if not measured.counts:
        return measured
    return replace(measured, factors=one.factors(wanted))


def write_csv(file: Path, factors: ContrastFactors) -> None:
    """Writes each image's factor and its standard deviation, in the order of the particles."""
    variance = factors.square - factors.mean.square()
    deviation = variance.clamp(min=0.0).sqrt()
    pairs = zip(factors.mean.tolist(), deviation.tolist(), strict=True)
    with file.open("w", newline="", encoding="utf-8") as text:
        table = csv.writer(text)
        table.writerow(["factor", "deviation"])
        for mean, uncertainty in pairs:
            table.writerow([f"{mean:.5g}", f"{uncertainty:.3g}"])
