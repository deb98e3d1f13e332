"""Maps of rigid domains at full resolution: each from all images, seen from itself, after what the
others add to them is taken off.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from instamap.data.particles import Particles
from instamap.fitting.loop import FitResult
from instamap.fitting.objective import StatisticsData
from instamap.fourier.central_slices import Spectrum
from instamap.fourier.gridding import Grid
from instamap.fourier.rescale import rescale
from instamap.geometry import grids
from instamap.geometry.cube import Cube
from instamap.geometry.sampling import sample_volumes
from instamap.model import Model
from instamap.motion.bend import MotionFit, fit_density
from instamap.motion.domains import Domains, Placement, brought_back, soft_masks
from instamap.motion.find_domains import CoarseDomains
from instamap.statistics import accumulator, initial_map
from instamap.statistics.particle_statistics import ParticleStatistics
from instamap.statistics.statistics import Statistics

BYTES_AT_ONCE = 1 << 27  # of the Fourier components of images that are held at once
BYTES_OF_COMPONENT = 40
FIRST_STEPS = 4  # of conjugate gradients for the first maps, which are taken off
MASK_EXTEND = 6.0  # Å
MASK_EDGE = 6.0  # Å


@dataclass(frozen=True)
class DomainImages:
    """Images `rows` "n" of a set in noise of `variance`, and where the domains are in each:
    `placement` of all n.

    weights "n": of the images, None for 1. present "n M": how probably each shows the domains, None
    where all do. device: where they are transformed and spread.
    """

    particles: Particles
    rows: Tensor
    variance: Tensor
    placement: Placement
    weights: Tensor | None = None
    present: Tensor | None = None
    device: str = "cpu"


Gather = Callable[[DomainImages, Tensor, int], Statistics]
"""What images say of a domain m, given densities "M D D D"."""


@dataclass(frozen=True)
class DomainMaps:
    """Densities "M D D D" of the domains; their masks; the still one's model and result."""

    densities: Tensor
    masks: Tensor
    model: Model
    result: FitResult


def fit_maps(
    fit: MotionFit,
    coarse: CoarseDomains,
    fitted: DomainImages,
    held_out: DomainImages,
    gather: Gather,
) -> DomainMaps:
    """The domains' densities at full resolution. gather: what gathers statistics, `gather` or its
    like.

    First by a few steps of conjugate gradients, starting from what is known at low resolution, then
    by a fit of the representation; both in the order of domains, the still one first.
    """
    scene = fit.scene
    densities = rescale(coarse.densities, scene.box).float()
    extend = MASK_EXTEND / scene.pixel_size
    edge = MASK_EDGE / scene.pixel_size
    composed = coarse.domains.occupancy is not None
    masks = soft_masks(densities, scene.pixel_size, extend, edge, one_level=composed)
    if scene.focus is not None:
        masks[1:] *= scene.focus
    densities = densities * masks
    for m, window in enumerate(masks):
        statistics = gather(fitted, densities, m)
        densities = _with_one(densities, m, initial_map.solve(statistics, window, FIRST_STEPS))
    fits = []
    for m, window in enumerate(masks):
        data = StatisticsData(gather(fitted, densities, m), held_out=gather(held_out, densities, m))
        first = initial_map.solve(data.fitted, window)
        scale = initial_map.density_scale(first, window)
        own = replace(fit, scene=replace(scene, mask=window, density_scale=scale))
        one = fit_density(own, data, f"domain {m + 1}")
        densities = _with_one(densities, m, one.result.map)
        fits.append(one)
    still = fits[0]
    return DomainMaps(densities, masks, still.model, still.result)


def _with_one(densities: Tensor, m: int, density: Tensor) -> Tensor:
    changed = densities.clone()
    changed[m] = density
    return changed


def gather(images: DomainImages, densities: Tensor, m: int) -> Statistics:
    """What images say of domain m in its own frame, given the densities "M D D D" of the others.

    The slices of the others, each at its own pose, are taken off the images; what is left is moved
    to the domain's centre and counts at its pose. Where domains come and go, images count as
    probably as they show this one, and the others are taken off as probably as they are there.
    """
    particles = images.particles
    box = particles.box
    device = torch.device(images.device)
    grid = Grid(Cube.whole(box), device=device)
    others = [j for j in range(len(densities)) if j != m and densities[j].any()]
    spectra = {j: Spectrum(densities[j].float().to(device)) for j in others}
    weight = 0.0
    for chosen in torch.arange(len(images.rows)).split(_images_at_once(box)):
        rows = images.rows[chosen]
        components = ParticleStatistics.read(
            particles, rows, images.variance, torch.arange(len(rows)), device=device
        )
        placement = images.placement[chosen].to(device)
        left = components.data
        for j, spectrum in spectra.items():
            slices = _slices(components, spectrum.slices, placement, j)
            if images.present is not None:
                slices = slices * images.present[chosen, j, None].float().to(device)
            left = left - components.power * slices
        counts = torch.ones(len(rows)) if images.weights is None else images.weights[rows].float()
        if images.present is not None:
            counts = counts * images.present[chosen, m].float()
        weight += float(counts.sum())
        counts = counts.to(device)
        data = left * _wave(components, placement, m).conj() * counts[:, None]
        power = components.power * counts[:, None]
        frames = _frames(components, placement, m)
        accumulator.spread(grid, frames, components.plane, data, power)
    del spectra  # which are as large as what follows
    energy = math.nan  # not known of these images
    found = Statistics.from_grid(grid, particles.pixel_size, len(images.rows), weight, energy)
    return found.to("cpu")


def reached(domains: Domains) -> Tensor:
    """Where density may be in any conformation: the highest value "D D D" of the moved masks."""
    box = domains.masks.shape[-1]
    voxels = grids.voxel_centres(box, domains.pixel_size).reshape(-1, 3).float()
    window = domains.masks.amax(0).reshape(-1)
    for k in range(len(domains.nodes)):
        there = brought_back(voxels, domains.placement[[k]])
        inside = sample_volumes(domains.masks, there, domains.pixel_size)
        window = torch.maximum(window, inside.amax(0))
    return window.view(box, box, box)


def _slices(
    components: ParticleStatistics,
    slices: Callable[[Tensor, Tensor], Tensor],
    placement: Placement,
    m: int,
) -> Tensor:
    """What domain m adds to each image, "n P"."""
    values = slices(_frames(components, placement, m), components.plane)
    return values * _wave(components, placement, m)


def _frames(components: ParticleStatistics, placement: Placement, m: int) -> Tensor:
    """The images' frames "n 2 3" as seen from domain m."""
    return (components.frames @ placement.turn[:, m].float()).contiguous()


def _wave(components: ParticleStatistics, placement: Placement, m: int) -> Tensor:
    """What the shift of domain m does to each Fourier component, "n P"."""
    shift = placement.shift[:, m].float() / components.pixel_size
    in_image = components.frames @ shift[:, :, None]
    phase = -2 * math.pi / components.box * (components.plane @ in_image)[..., 0]
    return torch.polar(torch.ones_like(phase), phase)


def _images_at_once(box: int) -> int:
    return max(16, BYTES_AT_ONCE // (box * box // 2 * BYTES_OF_COMPONENT))
