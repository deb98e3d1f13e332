"""What one set of images says of motion, at low resolution: coordinates, a density bent into all
states, and what others gain by it.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from instamap.fit.conformations import Conformations
from instamap.model import Model
from instamap.motion import bend, coordinates, posterior
from instamap.motion.state_mixture import Nodes, log_prob
from instamap.plugin.choice import Choice
from instamap.plugin.registry import default
from instamap.scene import Scene
from instamap.statistics.particle_statistics import ParticleStatistics, drop_small_shares

Parts = dict[str, Choice]


@dataclass(frozen=True)
class Trial:
    """A number of coordinates: its states, and the model that bends one density into them, or None
    where each has a map of its own.

    maps: each "K N N N", of the free states and of the bent density. gain: of witnesses over one
    rigid map that was fitted in the same way, in nats per particle, their state summed out.
    """

    nodes: Nodes
    bent: Model | None
    maps: list[Tensor]
    gain: float


@dataclass(frozen=True)
class Explored:
    """images: those of the set; held_out: of particles outside of it. found: mean map and linear
    subspace. trials: by coordinates.

    Every second held-out particle ends fits and picks rounds; the others are witnesses, on which no
    choice but the last one depends. witnesses: how many, copies of an image counting once.
    """

    images: ParticleStatistics
    held_out: ParticleStatistics
    found: coordinates.Found
    trials: dict[int, Trial]
    witnesses: int


def bends(parts: Parts) -> bool:
    """Whether the deformation bends one density into all states; if not, each has a map of its own."""
    return default().get("deformation", parts["deformation"].name).load().states == "bend"


def of(parts: Parts, latent: int) -> Parts:
    """The parts with this many coordinates."""
    chosen = parts["deformation"]
    return {**parts, "deformation": replace(chosen, options=replace(chosen.options, latent=latent))}


def explore(
    images: ParticleStatistics,
    held_out: ParticleStatistics,
    kin: Tensor,
    scene: Scene,
    parts: Parts,
    options: Conformations.Options,
    seed: int,
    watch: bend.Watch,
) -> Explored:
    """Tries as many coordinates as the deformation's option says; for auto, as `coordinates.AUTO`
    lists. scene: of the coarse images.

    kin "h": a number that held-out particles share which show copies of an image, and so one noise;
    two numbers at least.
    """

    def fresh():
        return torch.Generator().manual_seed(seed)

    kinds, kin = kin.unique(return_inverse=True)
    sample = images.select(torch.randperm(images.count, generator=fresh())[: coordinates.SAMPLE])
    judge, witness = (held_out.select((kin % 2 == side).nonzero()[:, 0]) for side in (0, 1))
    found = coordinates.find(sample, judge, scene.mask, options.dimensions, fresh())
    latent = parts["deformation"].options.latent
    trials = {}
    for n in coordinates.AUTO if latent == "auto" else (latent,):
        nodes = coordinates.states(sample, judge, found, options.nodes, n, fresh())
        bent = None
        maps = [nodes.maps]
        rigid = found.mean[None]
        if bends(parts):
            told = (of(parts, n), bend.aim(scene, nodes.maps), options)
            rigid = bend.rigid(
                *told,
                *(some.statistics(some.unit_weights()) for some in (images, judge)),
                seed,
                watch,
            )[None]
            states = [
                [some.statistics(w) for w in drop_small_shares(nodes.shares(some)).T]
                for some in (images, judge)
            ]
            bent = bend.begin(*told, *states, nodes.z.float(), seed, watch)
            maps.append(posterior.states(bent, nodes.z.float()))
        gain = posterior.posterior(witness, maps[-1], nodes.z)[2] - log_prob(witness, rigid)[:, 0]
        trials[n] = Trial(nodes, bent, maps, float(gain.mean()))
    return Explored(images, held_out, found, trials, len(kinds) // 2)
