"""What one set of images says of motion, at low resolution: coordinates, several descriptions of
the conformations, and what others gain by each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from instamap.fitting.conformations import ConformationData
from instamap.fitting.objective import StatisticsData
from instamap.model import Model
from instamap.motion import bend, coordinates, find_domains, gains, posterior, ring
from instamap.motion.bend import MotionFit
from instamap.motion.coordinates import MotionSubspace
from instamap.motion.find_domains import CoarseDomains
from instamap.motion.gains import Conformations
from instamap.motion.ring import CIRCLE, Shape
from instamap.motion.state_mixture import StateMixture
from instamap.plugin.choice import Choice, Choices
from instamap.statistics.particle_images import ParticleImages, effective_count
from instamap.statistics.particle_statistics import drop_small_shares
from instamap.statistics.statistics import Statistics

CONFORMATIONS = "conformations"
BENDING = "bending"
DOMAINS = "domains"
COMPOSITION = "composition"
DOMAINS_AND_COMPOSITION = "domains and composition"


@dataclass(frozen=True)
class Search:
    """What motion is looked for.

    dimensions: of the linear subspace at most. nodes: conformations per coordinate. bends: whether
    one density is bent into all of them; if not, each has a map of its own.
    """

    dimensions: int
    nodes: int
    bends: bool


@dataclass(frozen=True)
class Description:
    """A way to tell conformations apart: their maps "K N N N" at coordinates z "K L".

    gain: of test particles over one rigid map, in nats per particle, their conformation summed out.
    one_map: log p of theirs under that map, the likeliest there is. bent: the model that bends one
    density into them; domains: what moves as rigid bodies.
    """

    maps: Tensor
    z: Tensor
    gain: float
    one_map: float
    bent: Model | None = None
    domains: CoarseDomains | None = None


@dataclass(frozen=True)
class CoarseMotion:
    """A set of particles at low resolution, and the subspace in which they differ.

    fitted: the particles of the set; held_out: those outside of it. Every second held-out particle
    ends fits and makes choices (validation); the others are the test, which tells whether anything
    moves and by which description. sample: of the fitted ones. test_count: how many, copies of an
    image counting once.
    """

    fitted: ParticleImages
    held_out: ParticleImages
    sample: ParticleImages
    validation: ParticleImages
    test: ParticleImages
    subspace: MotionSubspace
    test_count: int
    validation_count: int


def with_shape(parts: Choices, shape: Shape) -> dict[str, Choice]:
    """The parts with coordinates of this shape, by which a run is repeated."""
    chosen = parts["deformation"]
    before: Any = chosen.options
    options = replace(before, latent=shape.latent)
    if shape.closed:
        options = replace(options, topology=CIRCLE)
    return {**parts, "deformation": Choice(chosen.name, options)}


def find_subspace(
    fit: MotionFit,
    search: Search,
    fitted: ParticleImages,
    held_out: ParticleImages,
    duplicate_group: Tensor,
) -> CoarseMotion:
    """The subspace in which the particles `fitted` differ. The scene of `fit` is that of the coarse
    images.

    duplicate_group "h": a number that held-out particles share which show copies of an image, and
    so one noise; two numbers at least.
    """
    if fit.scene.focus is not None:
        nuisance = _outside(fit, search, fitted, held_out, duplicate_group)
        fitted = fitted.with_nuisance(nuisance)
        held_out = held_out.with_nuisance(nuisance)
    _, group = duplicate_group.unique(return_inverse=True)
    chosen = torch.randperm(fitted.count, generator=fit.generator())
    if fitted.weight is not None:
        chosen = chosen[fitted.weight[chosen] > 0]
    sample = fitted.select(chosen[: coordinates.MAX_SAMPLE])
    is_validation = group % 2 == 0
    validation = held_out.select(is_validation.nonzero()[:, 0])
    test = held_out.select((~is_validation).nonzero()[:, 0])
    subspace = coordinates.find_subspace(
        sample, validation, fit.scene.mask, search.dimensions, fit.generator(), fit.scene.focus
    )
    return CoarseMotion(
        fitted,
        held_out,
        sample,
        validation,
        test,
        subspace,
        _count(test, group[~is_validation]),
        _count(validation, group[is_validation]),
    )


def _outside(
    fit: MotionFit,
    search: Search,
    fitted: ParticleImages,
    held_out: ParticleImages,
    duplicate_group: Tensor,
) -> Tensor:
    """Components "q N N N" of how particles differ outside the focus.

    In projection that lies over what is inside, where it would be taken for motion.
    """
    assert fit.scene.focus is not None
    _, group = duplicate_group.unique(return_inverse=True)
    validation = held_out.select((group % 2 == 0).nonzero()[:, 0])
    chosen = torch.randperm(fitted.count, generator=fit.generator())
    found = coordinates.find_subspace(
        fitted.select(chosen[: coordinates.MAX_SAMPLE]),
        validation,
        fit.scene.mask,
        search.dimensions,
        fit.generator(),
        1 - fit.scene.focus,
    )
    return found.maps[1:]


def _count(particles: ParticleImages, group: Tensor) -> int:
    """How many particles there are, those of one group "m", which show copies of an image, counting
    once, and with weights as many as say as much.
    """
    numbers, member = group.unique(return_inverse=True)
    if particles.weight is None:
        return len(numbers)
    sums = torch.zeros(len(numbers), dtype=torch.float64).index_add_(0, member, particles.weight)
    return int(effective_count(sums / torch.bincount(member)))


def find_conformations(
    fit: MotionFit,
    search: Search,
    motion: CoarseMotion,
    latent: int,
    count: float,
    rounds: int,
) -> StateMixture:
    """Conformations in `latent` coordinates: `count` times as many as nodes for one coordinate,
    after so many rounds of EM.
    """
    return coordinates.find_conformations(
        motion.sample,
        motion.validation,
        motion.subspace,
        round(count * search.nodes),
        latent,
        fit.generator(),
        rounds,
    )


def describe(
    fit: MotionFit,
    search: Search,
    motion: CoarseMotion,
    mixture: StateMixture,
    shape: Shape,
) -> dict[str, Description]:
    """Descriptions of the conformations, by name, each with what test particles gain by it."""
    z = ring.on_circle(mixture.z) if shape.closed else mixture.z
    mean = motion.subspace.mean
    own_maps = Conformations(mixture.maps, z)
    if not search.bends:
        return _with_gains(motion, {CONFORMATIONS: own_maps}, [mean])
    scene = bend.with_mask_and_scale(fit.scene, mixture.maps)
    own = replace(fit, parts=with_shape(fit.parts, shape), scene=scene)
    sample = motion.sample
    whole = StatisticsData(_of_all(sample), held_out=_of_all(motion.validation))
    rigid = bend.fit_density(own, whole, "rigid").result.map
    fitted = _of_each(sample, mixture)
    data = ConformationData(fitted, _of_each(motion.validation, mixture), z.float())
    bent = bend.bend(own, data)
    dense = ring.with_middles(z, shape)
    bending = Conformations(posterior.conformations(bent, dense.float()), dense)
    told = {BENDING: bending, CONFORMATIONS: own_maps}
    domains = find_domains.find(bent, z.float(), mixture.maps, fitted, 1 + shape.domains)
    if domains is not None:
        told = {DOMAINS: Conformations(domains.maps(dense.float()), dense), **told}
    found = _with_gains(motion, told, [mean, rigid])
    at_nodes = posterior.conformations(bent, z.float())
    found[BENDING] = replace(found[BENDING], maps=at_nodes, z=z, bent=bent)
    if domains is not None:
        found[DOMAINS] = replace(found[DOMAINS], bent=bent, domains=domains)
    return found


def _with_gains(
    motion: CoarseMotion, told: Mapping[str, Conformations], one_map: Sequence[Tensor]
) -> dict[str, Description]:
    """What is told of the conformations, each with what test particles gain by it over the best map
    for all of them: one of `one_map` "N N N", or of those that any description has.
    """
    rivals = [torch.stack(list(one_map)), *[one.one_map for one in told.values()]]
    of_one_map = gains.log_prob_of_one_map(motion.validation, motion.test, rivals)
    return {name: with_gain(motion, one, of_one_map) for name, one in told.items()}


def with_gain(motion: CoarseMotion, conformations: Conformations, of_one_map: float) -> Description:
    """A description, with what test particles gain by it over log p of theirs under one map."""
    gain = conformations.log_prob(motion.test) - of_one_map
    return Description(conformations.maps, conformations.z, gain, of_one_map)


def _of_all(particles: ParticleImages) -> Statistics:
    """The statistics of particles that all count alike."""
    return particles.statistics(particles.unit_weights())


def _of_each(particles: ParticleImages, mixture: StateMixture) -> list[Statistics]:
    """The statistics of each conformation's particles."""
    shares = drop_small_shares(mixture.shares(particles))
    return [particles.statistics(weight) for weight in shares.T]
