"""Where all particles are among conformations: each by the maps that make held-out particles
likeliest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.motion import posterior, ring
from instamap.motion.find_motion import CoarseMotion
from instamap.motion.ring import Shape
from instamap.statistics.particle_images import ParticleImages
from instamap.statistics.particle_statistics import drop_small_shares


@dataclass(frozen=True)
class Assignment:
    """Coordinates z "m L" of particles and their shares "m K" of conformations with maps "K N N N".

    nodes "K L": coordinates of the conformations. held_out_z, held_out_share: what held-out
    particles have. log_prob: their mean, the conformation summed out.
    """

    z: Tensor
    share: Tensor
    held_out_z: Tensor
    held_out_share: Tensor
    maps: Tensor
    nodes: Tensor
    log_prob: float


def assign(
    motion: CoarseMotion,
    maps: Tensor,
    nodes: Tensor,
    shape: Shape,
    occupancies: int = 0,
) -> Assignment:
    """The particles' places among conformations with these maps "K N N N" at nodes "K L".

    occupancies: see `posterior.infer`.
    """
    held_out = posterior.infer(motion.held_out, maps, nodes, occupancies)
    fitted = posterior.infer(motion.fitted, maps, nodes, occupancies)
    z = ring.with_angle_on_circle(fitted.z) if shape.closed else fitted.z
    held_out_z = ring.with_angle_on_circle(held_out.z) if shape.closed else held_out.z
    return Assignment(
        z,
        drop_small_shares(fitted.share),
        held_out_z,
        drop_small_shares(held_out.share),
        maps,
        nodes,
        motion.held_out.mean(held_out.log_prob),
    )


def most_likely(assignments: Sequence[Assignment]) -> Assignment:
    """The assignment under which held-out particles are likeliest."""
    return max(assignments, key=lambda one: one.log_prob)


def single_state(motion: CoarseMotion, latent: int) -> Assignment:
    """All particles in one conformation, at the origin of `latent` coordinates."""
    origin = torch.zeros(1, latent, dtype=torch.float64)
    maps = motion.subspace.mean[None]
    share = _whole(motion.fitted)
    held_out_share = _whole(motion.held_out)
    return Assignment(
        origin.expand(len(share), -1).contiguous(),
        share,
        origin.expand(len(held_out_share), -1).contiguous(),
        held_out_share,
        maps,
        origin,
        0.0,
    )


def _whole(particles: ParticleImages) -> Tensor:
    """The shares "m 1" of particles in the only conformation."""
    return particles.unit_weights()[:, None]
