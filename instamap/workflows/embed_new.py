"""Coordinates of particles that a motion was not fitted to."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from instamap.data import noise
from instamap.data.particles import Particles
from instamap.data.symmetry_expansion import Expansion
from instamap.errors import DataError
from instamap.motion import posterior
from instamap.motion.motion_model import HalfModel, MotionModel
from instamap.plugin.choice import load_class
from instamap.statistics import contrast_factors
from instamap.statistics.contrast_factors import ImageContrasts
from instamap.statistics.particle_statistics import ParticleStatistics
from instamap.workflows.settings import Settings

IMAGES_AT_ONCE = 20000  # in memory
SAME_PIXEL_SIZE = 1e-3  # relative difference of pixel sizes that are one


def open_particles(
    motion: MotionModel, star: str | Path, datadir: str | Path | None = None
) -> Particles:
    """The particles of a file, in the box in which the motion's conformations place particles, with
    a row for each copy by symmetry where the motion has one.

    Raises DataError where they do not fit it.
    """
    settings = _settings(motion)
    preprocess = settings.preprocess
    particles = Particles.open(star, datadir=datadir, preprocess=preprocess)
    scene = motion.scene
    difference = abs(particles.pixel_size - scene.pixel_size)
    if particles.box != scene.box or difference > SAME_PIXEL_SIZE * scene.pixel_size:
        raise DataError(
            f"'{star}' has images of {particles.box} px of {particles.pixel_size:.4g} Å, the motion"
            f" was found in {scene.box} px of {scene.pixel_size:.4g} Å; scale them with `instamap"
            " preprocess` first"
        )
    box = motion.halves[0].coarse_maps.shape[-1]
    if box != particles.box:
        smaller = replace(preprocess, box=box)
        particles = Particles.open(star, datadir=datadir, preprocess=smaller)
    group = settings.point_group
    if group is None or settings.workflow is None:
        return particles
    if not load_class("workflow", settings.workflow.name).expands_symmetry:
        return particles
    return particles.expanded(Expansion(group))


def particle_numbers(
    motion: MotionModel, particles: Particles, column: str | None = None
) -> Tensor:
    """For each image "n" the number, from 0, of the particle that it shows: images with one value
    in `column` are of one particle.

    column: None takes the one that the run was made with, if any; without any, images show the
    particles that the file says, or each its own. Raises DataError where the file does not have the
    column.
    """
    column = column or _settings(motion).group_by
    if column is None:
        return particles.particle_numbers()
    if column not in particles.table.columns:
        raise DataError(
            f"'{particles.path}' has no column {column}, by which the run tells images of one"
            " particle; name another with --group-by (rlnImageName: each image by itself)"
        )
    return particles.particle_numbers(column)


def _settings(motion: MotionModel) -> Settings:
    """The settings of the run."""
    return Settings.from_record(motion.settings)


@torch.no_grad()
def embed(
    motion: MotionModel,
    particles: Particles,
    particle: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Shared coordinates "n L" (float64) of images, the mean over the fits.

    particle "n": the number, from 0, of the particle that each shows; images of one particle have
    the coordinates that all of them favour. None: each by itself. Where the run found that images
    differ in contrast, these have factors too. device: where images are held against maps.
    """
    if particle is None:
        particle = torch.arange(particles.count)
    variance = noise.estimate(particles)
    latents = torch.zeros(particles.count, motion.latents.shape[1], dtype=torch.float64)
    for rows in chunks(particle):
        number = particle[rows]
        images = ParticleStatistics.read(particles, rows, variance, number, device=device)
        each = []
        for half in motion.halves:
            nodes = half.nodes.double()
            seen = replace(with_contrast(images, half), nuisance=half.nuisance)
            own = posterior.infer(seen, half.coarse_maps, nodes, half.occupancies).z
            each.append(half.to_shared(own.float()))
        mean = torch.stack(each).mean(0)
        latents[rows] = mean.double()[images.particle]
    return latents


@torch.no_grad()
def with_contrast(images: ParticleStatistics, half: HalfModel) -> ParticleStatistics:
    """The images with the factors of their signal that the mean of a fit's conformations, which
    does not hold their noise, and the spread in the run make probable; as they are where the run
    used none.

    As in the run, means of images are left out, and factors are relative to the images' mean.
    """
    if not half.contrast_spread > 0:
        return images
    counts = (images.plane.norm(dim=1) > 0).float()
    each = replace(
        images,
        data=images.data * counts,
        power=images.power * counts,
        particle=torch.arange(len(images.data)),
        weight=None,
    )
    contrasts = ImageContrasts.of(each, half.coarse_maps.mean(0))
    prior = contrast_factors.mean_of_spread(contrasts, half.contrast_spread)
    found = prior.factors(contrasts)
    return replace(
        images,
        data=images.data * found.mean[:, None].float().to(images.device),
        power=images.power * found.square[:, None].float().to(images.device),
    )


def chunks(particle: Tensor) -> Iterator[Tensor]:
    """Row numbers of images, at most so many at once, of whole particles."""
    last = torch.bincount(particle).cumsum(0) - 1
    number = (last // IMAGES_AT_ONCE)[particle]
    for chunk in number.unique():
        yield (number == chunk).nonzero()[:, 0]
