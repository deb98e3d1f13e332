"""What a bending that was fitted to mini-batches has learned: coordinates of all particles and two
models, as a motion.
"""

from dataclasses import replace

import torch
from torch import Tensor

from instamap.data import noise
from instamap.data.particles import Particles
from instamap.fitting.images import infer_latents
from instamap.fitting.objective import ImageData
from instamap.fourier.rescale import rescale
from instamap.model import Model
from instamap.motion import posterior
from instamap.motion.align_latents import align_scaled
from instamap.motion.kmeans import kmeans
from instamap.motion.motion_model import HalfModel, MotionModel
from instamap.parts import PerParticleTable
from instamap.statistics.particle_statistics import ParticleStatistics, fewer_pixels
from instamap.workflows.motion_files import MotionFiles
from instamap.workflows.particle_values import FittedValues, joined
from instamap.workflows.settings import Settings

# Conformations by which particles are placed: for one coordinate, and at most.
CONFORMATIONS = 16
MAX_CONFORMATIONS = 64
COARSE_PIXEL = 10.0  # Å: pixel of the images by which they are placed


def learned_motion(
    settings: Settings,
    particles: Particles,
    data: dict[str, ImageData],
    models: dict[str, Model],
) -> MotionFiles:
    """The motion that the fitted models of the images in `data` have learned.

    Coordinates are those that the deformation gives its own half's images, each image by itself.
    Held-out ones have the network's, or, where coordinates come from a table in which they were
    never seen, their posterior mean under conformations at centres of clusters; by them the halves'
    coordinates are related.
    """
    held_out = next(iter(data.values())).held_out
    coarse = fewer_pixels(particles, COARSE_PIXEL)
    variance = noise.estimate(coarse, seed=settings.seed)
    own = {}
    halves = []
    of_held_out = []
    for name, one in data.items():
        own[name] = infer_latents(models[name], particles, one.rows)
        half = _half(models[name], own[name], coarse.box, settings.seed)
        halves.append(half)
        of_held_out.append(_held_out_latents(half, one, coarse, variance))
    agreement = None
    for number in range(1, len(halves)):
        alignment = align_scaled(of_held_out[0], of_held_out[number])
        turn = alignment.turn.float()
        offset = alignment.offset.float()
        halves[number] = replace(halves[number], turn=turn, offset=offset)
        agreement = alignment.agreement
    fitted = []
    shared = []
    for half, (name, one), z in zip(halves, data.items(), of_held_out, strict=True):
        fitted.append(FittedValues(one.rows, half.to_shared(own[name])))
        shared.append(half.to_shared(z))
    latents = joined(particles.count, fitted, held_out, shared)
    motion = MotionModel(halves, latents, settings.record())
    record = {"coordinates": latents.shape[1], "agreement": agreement}
    return MotionFiles(motion, record)


@torch.no_grad()
def _half(model: Model, z: Tensor, box: int, seed: int) -> HalfModel:
    """The half with conformations at centres of clusters of its own particles' places "m L"."""
    latent = z.shape[1]
    wanted = round(CONFORMATIONS * latent**1.5)
    count = min(wanted, MAX_CONFORMATIONS, len(z.unique(dim=0)))
    generator = torch.Generator().manual_seed(seed)
    centres = kmeans(z.double(), count, generator)
    nodes = centres.unique(dim=0).float()
    maps = [rescale(model.raster(node[None]), box).float() for node in nodes]
    return HalfModel(model, torch.eye(latent), torch.zeros(latent), nodes, torch.stack(maps))


def _held_out_latents(
    half: HalfModel, data: ImageData, coarse: Particles, variance: Tensor
) -> Tensor:
    """Own coordinates "m L" of the held-out particles."""
    rows = data.held_out
    deformation = half.model.deformation
    if isinstance(deformation, PerParticleTable) and not deformation.uses_table(
        deformation.options
    ):
        return infer_latents(half.model, data.particles, rows)
    images = ParticleStatistics.read(coarse, rows, variance, rows)
    return posterior.infer(images, half.coarse_maps, half.nodes.double()).z.float()
