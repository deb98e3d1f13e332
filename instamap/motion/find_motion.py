"""What one set of images says of motion, at low resolution: coordinates, a density bent into all
conformations, and what others gain by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from instamap.fitting.conformations import ConformationData
from instamap.fitting.objective import StatisticsData
from instamap.model import Model
from instamap.motion import bend, coordinates, posterior
from instamap.motion.bend import MotionFit
from instamap.motion.coordinates import MotionSubspace
from instamap.motion.state_mixture import StateMixture, log_prob
from instamap.plugin.choice import Choice, Choices
from instamap.statistics.particle_statistics import ParticleStatistics, drop_small_shares
from instamap.statistics.statistics import Statistics


@dataclass(frozen=True)
class Search:
    """What motion is looked for: numbers of coordinates `latents`, each of which is tried.

    dimensions: of the linear subspace at most. nodes: conformations per coordinate. bends: whether
    one density is bent into all of them; if not, each has a map of its own.
    """

    latents: Sequence[int]
    dimensions: int
    nodes: int
    bends: bool


@dataclass(frozen=True)
class Candidate:
    """A number of coordinates: its conformations, and the model that bends one density into them,
    or None where each has a map of its own.

    maps: each "K N N N", of the free conformations and of the bent density. gain: of test particles
    over one rigid map that was fitted in the same way, in nats per particle, their conformation
    summed out.
    """

    mixture: StateMixture
    bent: Model | None
    maps: list[Tensor]
    gain: float


@dataclass(frozen=True)
class CoarseMotion:
    """A motion at low resolution: its subspace, and candidates by their number of coordinates.

    fitted: the particles of the set; held_out: those outside of it. Every second held-out particle
    ends fits and picks rounds (validation); the others are the test, on which no choice but the
    last one depends. test_count: how many, copies of an image counting once.
    """

    fitted: ParticleStatistics
    held_out: ParticleStatistics
    subspace: MotionSubspace
    candidates: dict[int, Candidate]
    test_count: int


@dataclass(frozen=True)
class _Sets:
    """Particles that are fitted, that end fits, and that no choice depends on."""

    sample: ParticleStatistics
    validation: ParticleStatistics
    test: ParticleStatistics


def with_latent(parts: Choices, latent: int) -> dict[str, Choice]:
    """The parts with this many coordinates."""
    chosen = parts["deformation"]
    before: Any = chosen.options
    options = replace(before, latent=latent)
    return {**parts, "deformation": Choice(chosen.name, options)}


def find_motion(
    fit: MotionFit,
    search: Search,
    fitted: ParticleStatistics,
    held_out: ParticleStatistics,
    duplicate_group: Tensor,
) -> CoarseMotion:
    """Tries each number of coordinates. The scene of `fit` is that of the coarse images.

    duplicate_group "h": a number that held-out particles share which show copies of an image, and
    so one noise; two numbers at least.
    """
    numbers, group = duplicate_group.unique(return_inverse=True)
    chosen = torch.randperm(fitted.count, generator=fit.generator())
    sets = _Sets(
        sample=fitted.select(chosen[: coordinates.MAX_SAMPLE]),
        validation=held_out.select((group % 2 == 0).nonzero()[:, 0]),
        test=held_out.select((group % 2 == 1).nonzero()[:, 0]),
    )
    subspace = coordinates.find_subspace(
        sets.sample, sets.validation, fit.scene.mask, search.dimensions, fit.generator()
    )
    candidates = {}
    for latent in search.latents:
        candidate = _try(fit, search, subspace, sets, latent)
        candidates[latent] = candidate
    return CoarseMotion(fitted, held_out, subspace, candidates, len(numbers) // 2)


def _try(
    fit: MotionFit,
    search: Search,
    subspace: MotionSubspace,
    sets: _Sets,
    latent: int,
) -> Candidate:
    """The conformations in `latent` coordinates, and what test particles gain by them."""
    mixture = coordinates.find_conformations(
        sets.sample, sets.validation, subspace, search.nodes, latent, fit.generator()
    )
    bent = None
    maps = [mixture.maps]
    rigid = subspace.mean[None]
    if search.bends:
        scene = bend.with_mask_and_scale(fit.scene, mixture.maps)
        own = replace(fit, parts=with_latent(fit.parts, latent), scene=scene)
        whole = StatisticsData(_of_all(sets.sample), held_out=_of_all(sets.validation))
        rigid = bend.fit_rigid(own, whole)[None]
        z = mixture.z.float()
        data = ConformationData(
            _of_each(sets.sample, mixture), _of_each(sets.validation, mixture), z
        )
        bent = bend.bend(own, data)
        maps.append(posterior.conformations(bent, z))
    moving = posterior.infer(
        sets.test,
        maps[-1],
        mixture.z,
    ).log_prob
    gain = moving - log_prob(sets.test, rigid)[:, 0]
    return Candidate(mixture, bent, maps, float(gain.mean()))


def _of_all(particles: ParticleStatistics) -> Statistics:
    """The statistics of particles that all count alike."""
    return particles.statistics(particles.unit_weights())


def _of_each(particles: ParticleStatistics, mixture: StateMixture) -> list[Statistics]:
    """The statistics of each conformation's particles."""
    shares = drop_small_shares(mixture.shares(particles))
    return [particles.statistics(weight) for weight in shares.T]
