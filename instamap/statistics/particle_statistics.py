"""Statistics of single particles: their Fourier components, against which many maps are held at
once.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from instamap.data.particles import Particles
from instamap.fourier.central_slices import Spectra, central_slices
from instamap.fourier.ctf import ctf
from instamap.fourier.gridding import Grid
from instamap.geometry.cube import Cube
from instamap.scene import Batch
from instamap.statistics import accumulator
from instamap.statistics.fourier_plane import FourierPlane
from instamap.statistics.particle_images import ParticleImages
from instamap.statistics.statistics import Statistics, kernel_of
from instamap.statistics.streaming import read_ahead

IMAGES_AT_ONCE = 2048
NUMBERS_AT_ONCE = 1 << 24  # of the slices of maps that are held at once: 64 MB
MIN_PIXELS = 24  # of an image with fewer pixels, if the images have as many
SUMS_AT_ONCE = 1 << 24  # numbers in the cells of a grid of many sums: 64 MB
MIN_RELATIVE_SHARE = 0.02  # of a particle's largest share: below, it is left out of a conformation


@dataclass(frozen=True)
class ParticleStatistics(ParticleImages):
    """What some images say of maps of `box` voxels, Fourier component by component (see
    `statistics.statistics`); particle, weight and nuisance as of all `ParticleImages`.

    data "n P" (complex): C F / (D² σ²), with the share of each component; power "n P": C² / (D²
    σ²). frames "n 2 3": see `Views.frames`. plane "P 2". These may be on a card, and are then held
    against maps and added up there; what is asked and what is answered is on the CPU.
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
        device: torch.device | str = "cpu",
    ) -> "ParticleStatistics":
        """The statistics of the images `rows` "n" in noise of `variance` "G D//2+1", on a device.

        particle "n": any numbers that images of one particle share. weights "n": of the images;
        the mean of a particle's is its weight among particles, and its images count beside each
        other by theirs.
        """
        place = torch.device(device)
        plane = FourierPlane(particles.box, magnification=particles.views.magnification).to(place)
        variance = variance.to(place)
        data: list[Tensor] = []
        power: list[Tensor] = []
        for batch in read_ahead(particles, rows, pinned=place.type == "cuda"):
            there = batch.to(place)
            batch_data, batch_power = _weighted_components(plane, there, variance, particles)
            data.append(batch_data)
            power.append(batch_power)
        views = particles.views[rows]
        frames = views.frames.float().to(place)
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

    @property
    def device(self) -> torch.device:
        """Where the Fourier components are."""
        return self.data.device

    def weighted(self, weights: Tensor) -> "ParticleStatistics":
        """The same images with weights "n": see `read`."""
        sums = torch.bincount(self.particle, weights.double())
        own = sums / torch.bincount(self.particle)
        usual = own[self.particle]
        beside = torch.where(usual > 0, weights.double() / usual, 1.0).float()
        if (beside == 1).all():
            return replace(self, weight=own)
        beside = beside.to(self.device)
        return replace(
            self,
            data=self.data * beside[:, None],
            power=self.power * beside[:, None],
            weight=own,
        )

    def select(self, particles: Tensor) -> "ParticleStatistics":
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

    def with_nuisance(self, nuisance: Tensor) -> "ParticleStatistics":
        return replace(self, nuisance=nuisance)

    def with_added(self, maps: Tensor, amount: Tensor) -> "ParticleStatistics":
        data = self.data.clone()
        maps = maps.to(self.device)
        amount = amount.to(self.device)
        particle = self.particle.to(self.device)
        for images in torch.arange(len(data)).split(IMAGES_AT_ONCE):
            frames = self.frames[images]
            power = self.power[images]
            for volume, amounts in zip(maps, amount.T, strict=True):
                of_images = amounts[particle[images], None]
                slices = central_slices(volume, frames, self.plane)
                data[images] += of_images * power * slices
        return replace(self, data=data)

    @torch.no_grad()
    def equations_of(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        count = len(maps)
        gram = torch.zeros(self.count, count, count, dtype=torch.float64)
        h = torch.zeros(self.count, count, dtype=torch.float64)
        rows = torch.arange(len(self.data))
        spectra = Spectra(maps.to(self.device))
        fitting = NUMBERS_AT_ONCE // (2 * count * len(self.plane))
        for images in rows.split(max(1, min(IMAGES_AT_ONCE, fitting))):
            slices = torch.view_as_real(spectra.slices(self.frames[images], self.plane))
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
            gram.index_add_(0, particle, curvature.cpu().double())
            h.index_add_(0, particle, slope.cpu().double())
        return gram, h

    def statistics(self, share: Tensor) -> Statistics:
        image_share = self._of_images(share)
        grid = Grid(Cube.whole(self.box), device=self.device)
        (kept,) = (image_share != 0).nonzero(as_tuple=True)
        for images in kept.split(8 * IMAGES_AT_ONCE):
            weights = image_share[images].float().to(self.device)
            accumulator.spread(
                grid,
                self.frames[images],
                self.plane,
                self.data[images] * weights[:, None],
                self.power[images] * weights[:, None],
            )
        weight = float(image_share.sum())
        energy = math.nan  # not known of these images
        found = Statistics.from_grid(grid, self.pixel_size, len(kept), weight, energy)
        return found.to("cpu")

    def weighted_sums(self, data: Tensor, power: Tensor) -> tuple[Tensor, Tensor]:
        image_data = self._of_images(data)
        image_power = self._of_images(power)
        cells = Grid(Cube.whole(self.box), device="meta").cells[..., 0].numel()
        at_once = max(1, SUMS_AT_ONCE // cells)
        b: list[Tensor] = []
        kernels: list[Tensor] = []
        for some_data, some_power in _in_turn(image_data, image_power, at_once):
            of_data = some_data.shape[1]
            of_power = some_power.shape[1]
            grid = Grid(
                Cube.whole(self.box),
                device=self.device,
                data_sums=of_data,
                power_sums=of_power,
            )
            for images in torch.arange(len(self.data)).split(8 * IMAGES_AT_ONCE):
                accumulator.spread_weighted(
                    grid,
                    self.frames[images],
                    self.plane,
                    self.data[images],
                    self.power[images],
                    some_data[images].float().to(self.device),
                    some_power[images].float().to(self.device),
                )
            b += [grid.data_lattice(number).cpu() for number in range(of_data)]
            kernels += [kernel_of(grid, number).cpu() for number in range(of_power)]
        return torch.stack(b), torch.stack(kernels)

    def _of_images(self, values: Tensor) -> Tensor:
        """Weights "n ..." of images whose particles have these, "m ...", beside their own."""
        if self.weight is not None:
            own = self.weight.view(-1, *[1] * (values.ndim - 1))
            values = values * own
        return values[self.particle]


def _in_turn(data: Tensor, power: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Columns of both, at most `count` numbers of a cell at once: two for data, one for power."""
    columns = max(1, count // 2)
    for some in data.split(columns, 1):
        yield some, power[:, :0]
    for some in power.split(count, 1):
        yield data[:, :0], some


def _weighted_components(
    plane: FourierPlane,
    batch: Batch,
    variance: Tensor,
    particles: Particles,
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


def drop_small_shares(share: Tensor) -> Tensor:
    """Shares "m K" without those that are small beside the particle's largest; their sum stays."""
    largest = share.amax(1, keepdim=True)
    kept = share * (share > MIN_RELATIVE_SHARE * largest)
    before = share.sum(1, keepdim=True)
    after = kept.sum(1, keepdim=True)
    return kept * (before / after)
