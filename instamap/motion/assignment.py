"""Where all particles are among states: each by the maps of states that make held-out particles
likeliest.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.motion import posterior
from instamap.motion.find_motion import Explored
from instamap.statistics.particle_statistics import drop_small_shares


@dataclass(frozen=True)
class Placed:
    """Own coordinates z "m L" of particles and their shares "m K" of the states with maps "K N N N"
    at nodes "K L"; those of held-out ones.

    likely: mean log p of held-out particles, their state summed out.
    """

    z: Tensor
    share: Tensor
    judged: Tensor
    judged_share: Tensor
    maps: Tensor
    nodes: Tensor
    likely: float


def by(seen: Explored, maps: Tensor, nodes: Tensor) -> Placed:
    """By these states."""
    judged, judged_share, likely = posterior.posterior(seen.held_out, maps, nodes)
    z, share, _ = posterior.posterior(seen.images, maps, nodes)
    return Placed(
        z,
        drop_small_shares(share),
        judged,
        drop_small_shares(judged_share),
        maps,
        nodes,
        float(likely.mean()),
    )


def likelier(choices: list[Placed]) -> Placed:
    """That under which held-out particles are likeliest."""
    return max(choices, key=lambda one: one.likely)


def still(seen: Explored, latent: int) -> Placed:
    """All in one state, at the origin of `latent` coordinates."""
    origin = torch.zeros(1, latent, dtype=torch.float64)
    shares = [some.unit_weights()[:, None] for some in (seen.images, seen.held_out)]
    places = [origin.expand(len(share), -1).contiguous() for share in shares]
    return Placed(places[0], shares[0], places[1], shares[1], seen.found.mean[None], origin, 0.0)
