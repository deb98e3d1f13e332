"""Statistics of single particles: their Fourier components, against which many maps are held at
once.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from instamap.data.particles import Particles
from instamap.fourier.central_slices import central_slices
from instamap.fourier.ctf import ctf
from instamap.fourier.gridding import Grid
from instamap.geometry.cube import Cube
from instamap.scene import Batch
from instamap.statistics import accumulator
from instamap.statistics.fourier_plane import FourierPlane
from instamap.statistics.statistics import Statistics
from instamap.statistics.streaming import read_ahead

IMAGES_AT_ONCE = 2048
NUMBERS_AT_ONCE = 1 << 24  # of the slices of maps that are held at once: 64 MB
MIN_PIXELS = 24  # of an image with fewer pixels, if the images have as many
PARTICLES_AT_ONCE = 2048  # that are held against all conformations
BASIS_MAPS = 16  # that stand for more of them: images are held against a basis
LEAST_WEIGHT = 1e-12  # of all particles together, by which a sum is divided
MIN_RELATIVE_SHARE = 0.02  # of a particle's largest share: below, it is left out of a conformation


@dataclass(frozen=True)
class ParticleStatistics:
    """What some images say of maps of `box` voxels, Fourier component by component (see
    `statistics.statistics`).

    data "n P" (complex): C F / (D² σ²), with the share of each component; power "n P": C² / (D²
    σ²). frames "n 2 3": see `Views.frames`. plane "P 2". particle "n": the number, from 0, of the
    particle that an image shows; images of one particle share its coordinates. weight "m"
    (float64): factors of the particles' log p in all sums over particles; None for 1. nuisance "Q N
    N N": maps that each particle has beside any other, in amounts that nobody asks for, normally
    distributed with unit variance; None for none.
    """

    box: int
    pixel_size: float
    data: Tensor
    power: Tensor
    frames: Tensor
    plane: Tensor
    particle: Tensor
    weight: Tensor | None = None
    nuisance: Tensor | None = None

    @staticmethod
    def read(
        particles: Particles,
        rows: Tensor,
        variance: Tensor,
        particle: Tensor,
        weights: Tensor | None = None,
    ) -> "ParticleStatistics":
        """The statistics of the images `rows` "n" in noise of `variance` "G D//2+1".

        particle "n": any numbers that images of one particle share. weights "n": of the images;
        the mean of a particle's is its weight among particles, and its images count beside each
        other by theirs.
        """
        plane = FourierPlane(particles.box, magnification=particles.views.magnification)
        data: list[Tensor] = []
        power: list[Tensor] = []
        for batch in read_ahead(particles, rows):
            batch_data, batch_power = _weighted_components(plane, batch, variance, particles)
            data.append(batch_data)
            power.append(batch_power)
        views = particles.views[rows]
        frames = views.frames.float()
        _, number = particle.unique(return_inverse=True)
        found = ParticleStatistics(
            particles.box,
            particles.pixel_size,
            torch.cat(data),
            torch.cat(power),
            frames.contiguous(),
            plane.points,
            number,
        )
        return found if weights is None else found.weighted(weights)

    def weighted(self, weights: Tensor) -> "ParticleStatistics":
        """The same images with weights "n": see `read`."""
        sums = torch.bincount(self.particle, weights.double())
        own = sums / torch.bincount(self.particle)
        usual = own[self.particle]
        beside = torch.where(usual > 0, weights.double() / usual, 1.0).float()
        if (beside == 1).all():
            return replace(self, weight=own)
        return replace(
            self,
            data=self.data * beside[:, None],
            power=self.power * beside[:, None],
            weight=own,
        )

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

    def select(self, particles: Tensor) -> "ParticleStatistics":
        """The statistics of some particles alone, by their numbers, in the order that they have."""
        chosen = torch.isin(self.particle, particles)
        if chosen.all():
            return self
        particle = self.particle[chosen]
        kept, number = particle.unique(return_inverse=True)
        return replace(
            self,
            data=self.data[chosen],
            power=self.power[chosen],
            frames=self.frames[chosen],
            particle=number,
            weight=None if self.weight is None else self.weight[kept],
        )

    def in_chunks(self, size: int = PARTICLES_AT_ONCE) -> "list[ParticleStatistics]":
        """The same particles in their order, at most so many at a time."""
        if self.count <= size:
            return [self]
        return [self.select(some) for some in torch.arange(self.count).split(size)]

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
        count = len(maps)
        gram = torch.zeros(self.count, count, count, dtype=torch.float64)
        h = torch.zeros(self.count, count, dtype=torch.float64)
        rows = torch.arange(len(self.data))
        fitting = NUMBERS_AT_ONCE // (2 * count * len(self.plane))
        for images in rows.split(max(1, min(IMAGES_AT_ONCE, fitting))):
            slices = self._slices(maps, images)
            power = 2 * self.power[images]
            data = 2 * torch.view_as_real(self.data[images])
            data = data.flatten(1)[..., None]
            weighted = slices * power[:, None, :, None]
            weighted = weighted.flatten(2)
            slices = slices.flatten(2)
            particle = self.particle[images]
            curvature = weighted @ slices.mT
            slope = slices @ data
            slope = slope[..., 0]
            gram.index_add_(0, particle, curvature.double())
            h.index_add_(0, particle, slope.double())
        return gram, h

    def _beside(self, maps: Tensor, nuisance: Tensor) -> tuple[Tensor, Tensor]:
        """The normal equations of maps once the amounts a of a nuisance are integrated out.

        With G and h of both in blocks, G' = G_cc - G_ca (1 + G_aa)⁻¹ G_ac and h' = h_c - G_ca (1 +
        G_aa)⁻¹ h_a, up to a constant of each particle.
        """
        count = len(maps)
        both = torch.cat([maps, nuisance])
        gram, h = replace(self, nuisance=None).normal_equations(both, len(both))
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

    def _slices(self, maps: Tensor, images: Tensor) -> Tensor:
        """The maps' slices "B C P 2" at the poses of the images "B"."""
        slices = []
        for volume in maps:
            values = central_slices(volume, self.frames[images], self.plane)
            slices.append(torch.view_as_real(values))
        return torch.stack(slices, 1)

    def statistics(self, power: Tensor, data: Tensor | None = None) -> Statistics:
        """The statistics of all images with weights "m" of their particles beside their own; those
        of the data may differ, and both may be negative.
        """
        if data is None:
            data = power
        if self.weight is not None:
            power = power * self.weight
            data = data * self.weight
        image_power = power[self.particle]
        image_data = data[self.particle]
        grid = Grid(Cube.whole(self.box))
        counts = (image_power != 0) | (image_data != 0)
        (kept,) = counts.nonzero(as_tuple=True)
        for images in kept.split(8 * IMAGES_AT_ONCE):
            data_weights = image_data[images].float()
            power_weights = image_power[images].float()
            accumulator.spread(
                grid,
                self.frames[images],
                self.plane,
                self.data[images] * data_weights[:, None],
                self.power[images] * power_weights[:, None],
            )
        weight = float(image_power.sum())
        energy = math.nan  # not known of these images
        return Statistics.from_grid(grid, self.pixel_size, len(kept), weight, energy)


def _weighted_components(
    plane: FourierPlane, batch: Batch, variance: Tensor, particles: Particles
) -> tuple[Tensor, Tensor]:
    """The data and power "B P" of a batch of images.

    Factors are multiplied in another order than in `accumulator.weighted_slices`: the last bits of
    all coordinates depend on it.
    """
    views = batch.views
    size = particles.pixel_size
    transfer = None
    if views.optics is not None:
        transfer = ctf(views.optics, particles.box, size)
    noise = variance[views.group].float()
    precision = plane.share / plane.variance(noise)
    power = precision * plane.transfer(transfer, size) ** 2
    weight = precision * size
    if transfer is not None and not particles.premultiplied:
        weight = weight * plane.select(transfer)
    spectrum = plane.particle_components(batch.images, views, size)
    data = spectrum * weight
    if views.contrast is not None:
        data = data * views.contrast.mean[:, None]
        power = power * views.contrast.square[:, None]
    return data, power


def fewer_pixels(particles: Particles, pixel_size: float) -> Particles:
    """The particles in pixels of about this size (Å) where theirs are smaller, MIN_PIXELS an edge
    at least.
    """
    edge = particles.box * particles.pixel_size
    fewest = min(MIN_PIXELS, particles.box)
    wanted = 2 * round(edge / pixel_size / 2)
    box = max(fewest, wanted)
    if box >= particles.box:
        return particles
    steps = replace(particles.preprocessor.steps, box=box)
    return Particles(particles.table, particles.stacks, steps, particles.contrast)


def effective_count(weight: Tensor) -> float:
    """The number of particles that count alike and whose mean is as uncertain as that of particles
    with weights "m": (Σ w)² / Σ w² (Kish, Survey Sampling, 1965). A common factor changes nothing.
    """
    square = weight.double().square().sum().clamp(min=LEAST_WEIGHT)
    return float(weight.double().sum() ** 2 / square)


def drop_small_shares(share: Tensor) -> Tensor:
    """Shares "m K" without those that are small beside the particle's largest; their sum stays."""
    largest = share.amax(1, keepdim=True)
    kept = share * (share > MIN_RELATIVE_SHARE * largest)
    before = share.sum(1, keepdim=True)
    after = kept.sum(1, keepdim=True)
    return kept * (before / after)
