"""Coordinates of particles from scratch, for one set of images: mean map, linear subspace,
conformations.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.maps import mask
from instamap.motion import linear_subspace, state_mixture
from instamap.motion.state_mixture import StateMixture
from instamap.statistics import initial_map
from instamap.statistics.particle_images import ParticleImages

# Particles, at most, in which coordinates are found; all others are then placed by them.
MAX_SAMPLE = 20000
MIN_PARTICLES = 100  # of each conformation
MEAN_STEPS = 5  # of conjugate gradients towards the mean map
MASK_THRESHOLD = 0.15
MASK_EXTEND = 3
MASK_EDGE = 2


@dataclass(frozen=True)
class MotionSubspace:
    """The mean map "N N N", the mask `window` "N N N" around what may differ, and maps "q+1 N N N"
    of the subspace, with one dimension at least.

    held: whether the mean map is held outside the mask, or nothing is there.
    gain: of held-out particles over the mean map in nats per particle, by the number of dimensions
    that were tried.
    """

    mean: Tensor
    window: Tensor
    maps: Tensor
    gain: list[float]
    held: bool = False


def find_subspace(
    particles: ParticleImages,
    validation: ParticleImages,
    window: Tensor | None,
    dimensions: int,
    generator: torch.Generator,
    focus: Tensor | None = None,
) -> MotionSubspace:
    """The subspace of at most so many dimensions, inside the mask `window` or one that is found,
    and where the focus "N N N" lets particles differ.
    """
    mean = _mean_map(particles, window)
    if window is None:
        window = mask.from_map(
            mean,
            particles.pixel_size,
            threshold=MASK_THRESHOLD,
            extend=MASK_EXTEND,
            edge=MASK_EDGE,
        )
    mean = mean * (window > 0)
    moving = window if focus is None else window * focus
    linear = linear_subspace.fit(particles, validation, mean, window, dimensions, generator, moving)
    maps = linear.maps
    if len(maps) == 1:
        maps = linear_subspace.grow(particles, mean[None], window, generator, moving=moving)
    return MotionSubspace(mean, moving, maps, linear.held_out, held=focus is not None)


def _mean_map(particles: ParticleImages, window: Tensor | None) -> Tensor:
    """The map of all particles, in the mask or the largest sphere."""
    if window is None:
        radius = (particles.box // 2 - 0.5) * particles.pixel_size
        window = mask.sphere(particles.box, particles.pixel_size, radius, 0.0)
    statistics = particles.statistics(particles.unit_weights())
    return initial_map.solve(statistics, window, MEAN_STEPS)


def find_conformations(
    particles: ParticleImages,
    validation: ParticleImages,
    subspace: MotionSubspace,
    wanted: int,
    latent: int,
    generator: torch.Generator,
    rounds: int,
) -> StateMixture:
    """Conformations in the subspace, in `latent` coordinates.

    As many as are wanted and particles bear out, but enough to span the coordinates.
    """
    borne_out = particles.count // MIN_PARTICLES
    count = max(_fewest(latent), min(wanted, borne_out))
    return state_mixture.fit_mixture(
        particles,
        validation,
        subspace.maps,
        subspace.window,
        count,
        latent,
        generator,
        rounds,
        subspace.held,
    )


def bears_out(particles: ParticleImages, latent: int) -> bool:
    """Whether particles are enough for as many conformations as span `latent` coordinates."""
    return particles.count >= MIN_PARTICLES * _fewest(latent)


def _fewest(latent: int) -> int:
    """The fewest conformations that span `latent` coordinates."""
    return 2 * latent + 1
