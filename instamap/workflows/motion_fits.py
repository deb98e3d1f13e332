"""The steps of a motion: each half's search at low resolution, the choice that the halves share,
fits at full resolution, and coordinates that both understand.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from instamap.data import noise
from instamap.data.particles import Particles
from instamap.data.symmetry_expansion import Expansion
from instamap.errors import DataError
from instamap.fitting.conformations import ConformationData, Conformations
from instamap.fitting.loop import FALSE_POSITIVE_RATE, FitResult
from instamap.fourier.rescale import rescale
from instamap.geometry import grids
from instamap.geometry.cube import Cube
from instamap.geometry.sampling import sample_volume
from instamap.maps import mask
from instamap.model import Model, compose, make_part
from instamap.motion import (
    assignment,
    bend,
    coordinates,
    domain_maps,
    find_motion,
    posterior,
    ring,
    weighted_maps,
)
from instamap.motion.align_latents import Alignment, align
from instamap.motion.assignment import Assignment
from instamap.motion.bend import MotionFit
from instamap.motion.composition import Composition
from instamap.motion.domain_maps import DomainImages
from instamap.motion.domains import Domains, domain_facts
from instamap.motion.find_motion import (
    BENDING,
    COMPOSITION,
    CONFORMATIONS,
    DOMAINS,
    DOMAINS_AND_COMPOSITION,
    CoarseMotion,
    Description,
    Search,
    with_shape,
)
from instamap.motion.motion_model import HalfModel
from instamap.motion.ring import CIRCLE, LINE, Shape
from instamap.motion.state_mixture import ROUNDS, StateMixture
from instamap.parts import ContinuousDeformation, PerParticleTable
from instamap.plugin.choice import choose, load_class
from instamap.plugin.options import CoordinateOptions
from instamap.progress import SILENT, Progress
from instamap.scene import Scene
from instamap.statistics.particle_images import ParticleImages
from instamap.statistics.particle_statistics import ParticleStatistics, fewer_pixels
from instamap.statistics.statistics import Statistics
from instamap.statistics.streaming import accumulate
from instamap.workflows import motion_files, team
from instamap.workflows.devices import CPU, described
from instamap.workflows.map import SEEDS_PER_RUN
from instamap.workflows.particle_values import FittedValues, joined
from instamap.workflows.prepare import Dataset, open_dataset
from instamap.workflows.settings import Settings
from instamap.workflows.shared_particles import SharedParticles
from instamap.workflows.shared_statistics import Gather, gather, gather_domain
from instamap.workflows.team import ImageSource, Team

CONFORMATION = "conformation"
AUTO = "auto"
MORE_COORDINATES = (2, 3)  # that are tried after one
ROUNDS_OF_MORE = 7  # of EM, where more coordinates are tried
CIRCLE_NODES = 1.5  # times as many conformations on a circle as on a line
NOTEWORTHY = 0.03  # of what fewer coordinates gain: another one must add as much
OWN_MAPS_MARGIN = 1.1  # by which maps that conformations have by themselves must gain more
COMPOSED = (COMPOSITION, DOMAINS_AND_COMPOSITION)  # descriptions in which regions come and go
MIN_HELD_OUT_GROUPS = 2  # of particles that share no image: one ends fits, one is the test


@dataclass(frozen=True)
class MotionInputs:
    """What all fits share.

    coarse: the images with fewer pixels, in noise of `variance`. particle "n": a number of the
    particle that each image shows. options: of the fits. counts: images of each set and of the
    held-out one. Of symmetric particles each copy has rows in `dataset` and `coarse`, and images
    count once. team: the processes among which images are shared out, None for this one alone.
    """

    settings: Settings
    options: Conformations.Options
    dataset: Dataset
    coarse: Particles
    variance: Tensor
    particle: Tensor
    counts: dict[str, int]
    team: Team | None = None

    def seed(self, name: str) -> int:
        """The seed of one fit."""
        number = list(self.dataset.rows).index(name)
        return self.settings.seed * SEEDS_PER_RUN + number

    def read(self, rows: Tensor) -> ParticleImages:
        """The coarse statistics of the particles in some images."""
        coarse = self.coarse
        particle = self.particle[rows]
        weights = None
        if self.dataset.weights is not None:
            weights = self.dataset.weights[rows]
        device = self.settings.device
        if self.team is None:
            return ParticleStatistics.read(coarse, rows, self.variance, particle, weights, device)
        return SharedParticles.read(
            self.team, coarse, rows, self.variance, particle, weights, device
        )

    def gather(self, rows: Tensor, weights: Tensor) -> Statistics:
        """The statistics of images at full resolution. weights "n": of all."""
        dataset = self.dataset
        chosen = {CONFORMATION: rows}
        if self.team is not None:
            source = ImageSource.of(dataset.particles)
            cube = Cube.whole(dataset.particles.box)
            device = self.settings.device
            task = Gather(source, dataset.scene, chosen, cube, weights=weights, device=device)
            return gather(self.team, task)[CONFORMATION]
        gathered = accumulate(
            dataset.particles,
            chosen,
            make_part("likelihood", self.settings.likelihood, dataset.scene),
            weights=weights,
            device=self.settings.device,
        )
        return gathered[CONFORMATION]

    def gather_domain(self, images: DomainImages, densities: Tensor, m: int) -> Statistics:
        """The statistics of a domain: see `domain_maps.gather`."""
        if self.team is None:
            return domain_maps.gather(images, densities, m)
        return gather_domain(self.team, images, densities, m)

    def particle_of(self, rows: Tensor) -> Tensor:
        """The number "m", from 0, that the particles in the images `rows` "m" have among these."""
        _, number = self.particle[rows].unique(return_inverse=True)
        return number


@dataclass(frozen=True)
class Candidate:
    """What one set says at low resolution: its motion in one shape, and descriptions by name.

    composition: of the regions that come and go, None where none do.
    """

    motion: CoarseMotion
    mixture: StateMixture
    descriptions: dict[str, Description]
    composition: Composition | None = None


@dataclass(frozen=True)
class Decision:
    """What is decided for all fits together: the shape of the motion's coordinates, whether
    particles differ at all, and the description that tells how.

    occupancies: how many regions come and go by this description, each with a coordinate of its
    own.
    """

    shape: Shape
    moving: bool
    description: str
    occupancies: int = 0

    @property
    def coordinates(self) -> int:
        """How many columns the motion's coordinates have: none where regions come and go and
        nothing moves.
        """
        return 0 if self.description == COMPOSITION else self.shape.latent

    @property
    def in_domains(self) -> bool:
        """Whether conformations are put together of domains."""
        return self.moving and self.description in (DOMAINS, COMPOSITION, DOMAINS_AND_COMPOSITION)


@dataclass(frozen=True)
class HalfFit:
    """One independent fit at full resolution.

    z "m L": own coordinates of its particles; held_out_z "h L": of the held-out ones. result: of
    the last fit.
    """

    half: HalfModel
    z: Tensor
    held_out_z: Tensor
    result: FitResult


@dataclass(frozen=True)
class SharedCoordinates:
    """Halves whose coordinates mean the same, and coordinates "n L" of all particles.

    agreement: how far held-out particles' coordinates correlate; None with one fit, or where
    nothing moves.
    """

    halves: list[HalfModel]
    latents: Tensor
    agreement: float | None


def open_inputs(settings: Settings, pixel_size: float, progress: Progress = SILENT) -> MotionInputs:
    """Reads what all fits share. pixel_size: of the coarse images, in Å."""
    assert settings.objective is not None  # settings are resolved
    if settings.device != CPU:
        progress.message(f"device          {described(torch.device(settings.device))}")
    # The first maps are of the density that all particles share.
    rigid = replace(settings, deformation=choose("deformation", "identity"))
    dataset = open_dataset(rigid, progress)
    together = team.of_run(settings, dataset.particles, progress)
    counts = {name: len(rows) for name, rows in dataset.sets.items()}
    if settings.focus is not None:
        scene = dataset.scene
        focus = mask.load(settings.focus, scene.box, scene.pixel_size)
        dataset = replace(dataset, scene=replace(scene, focus=focus))
        progress.message(f"focus           {settings.focus}; all else is held")
    variance = noise.estimate(fewer_pixels(dataset.particles, pixel_size), seed=settings.seed)
    if dataset.symmetry is not None:
        expansion = Expansion(dataset.symmetry)
        progress.message(f"symmetry        {expansion.copies} copies of each particle may differ")
        dataset = _expanded(dataset, expansion)
    particles = dataset.particles
    coarse = fewer_pixels(particles, pixel_size)
    particle = particles.particle_numbers(settings.group_by)  # copies may move on their own
    options = settings.objective.options
    assert isinstance(options, Conformations.Options)  # or the workflow is unsuitable
    return MotionInputs(settings, options, dataset, coarse, variance, particle, counts, together)


def _expanded(dataset: Dataset, expansion: Expansion) -> Dataset:
    """The dataset with a row for each copy of a symmetric particle, in the set that it was in."""
    particles = dataset.particles.expanded(expansion)
    weights = dataset.weights
    return replace(
        dataset,
        particles=particles,
        scene=replace(dataset.scene, count=particles.count),
        rows={name: expansion.rows(rows) for name, rows in dataset.rows.items()},
        held_out=expansion.rows(dataset.held_out),
        symmetry=None,
        weights=None if weights is None else weights.repeat_interleave(expansion.copies),
    )


def search_for(inputs: MotionInputs, dimensions: int, nodes: int) -> Search:
    """What motion is looked for."""
    deformation = load_class("deformation", inputs.settings.deformation.name)
    return Search(dimensions, nodes, bends=issubclass(deformation, ContinuousDeformation))


def coarse_fit(inputs: MotionInputs, name: str, progress: Progress) -> MotionFit:
    """What the fits of one set at low resolution have in common."""
    return MotionFit(
        inputs.settings.parts,
        _coarse_scene(inputs),
        inputs.options,
        inputs.seed(name),
        progress,
        name,
        inputs.settings.device,
    )


def find_subspace(
    inputs: MotionInputs, search: Search, name: str, progress: Progress
) -> CoarseMotion:
    """The subspace in which the particles of one set differ."""
    fitted = inputs.read(inputs.dataset.rows[name])
    held_out = inputs.read(inputs.dataset.held_out)
    fit = coarse_fit(inputs, name, progress)
    motion = find_motion.find_subspace(fit, search, fitted, held_out, duplicate_group(inputs))
    gain = motion.subspace.gain
    progress.message(
        f"{name}: a linear subspace of {len(motion.subspace.maps) - 1} dimensions gives"
        f" {max(gain):+.3g} nats/particle over the mean map"
    )
    return motion


Mixtures = Mapping[str, StateMixture]


def choose_shape(
    inputs: MotionInputs,
    motions: Mapping[str, CoarseMotion],
    mixtures: Callable[[int, float, int], Mixtures],
    progress: Progress = SILENT,
) -> tuple[Shape, Mixtures]:
    """The shape of the coordinates that validation particles of all sets favour, and conformations
    in it.

    mixtures: (coordinates, how many times the nodes of one, rounds of EM) -> the conformations of
    each set. More coordinates are taken where they gain, with as many conformations, what is beyond
    chance and noteworthy; coordinates that close upon themselves count as one.
    """
    options: Any = inputs.settings.deformation.options
    topology = options.topology if isinstance(options, CoordinateOptions) else LINE
    asked = options.latent
    if topology == CIRCLE:
        return Shape(2, closed=True), mixtures(2, CIRCLE_NODES, ROUNDS)
    if asked != AUTO and (asked != 1 or topology == LINE):
        return Shape(asked), mixtures(asked, asked**1.5, ROUNDS)
    best = mixtures(1, 1.0, ROUNDS)
    shape = Shape(1)
    for latent in MORE_COORDINATES:
        if not all(coordinates.bears_out(one.sample, latent) for one in motions.values()):
            break
        trial = mixtures(latent, 1.0, ROUNDS_OF_MORE)
        gains = {name: one.held_out - best[name].held_out for name, one in trial.items()}
        progress.message(
            f"coordinates     {latent} give "
            + ", ".join(f"{gain:+.3g} ({name})" for name, gain in gains.items())
            + f" nats/particle over {latent - 1}"
        )
        if not _worth_it(motions, best, gains):
            break
        if topology != LINE and all(ring.closes(one.z) for one in trial.values()):
            return Shape(2, closed=True), mixtures(2, CIRCLE_NODES, ROUNDS)
        if asked == 1:
            break
        best, shape = trial, Shape(latent)
    if shape.latent > 1:
        best = mixtures(shape.latent, shape.latent**1.5, ROUNDS)
    return shape, best


def _worth_it(
    motions: Mapping[str, CoarseMotion], before: Mixtures, gains: Mapping[str, float]
) -> bool:
    """Whether another coordinate gains more than chance allows, and a share of what others have, in
    each set.
    """
    chance = math.log(len(MORE_COORDINATES) / FALSE_POSITIVE_RATE)
    for name, gain in gains.items():
        fewer = before[name].held_out
        if fewer <= 0 or gain < NOTEWORTHY * fewer:
            return False
        if gain * motions[name].validation_count < chance:
            return False
    return True


def find_in_shape(
    inputs: MotionInputs,
    search: Search,
    name: str,
    motion: CoarseMotion,
    mixture: StateMixture,
    shape: Shape,
    progress: Progress,
) -> Candidate:
    """Descriptions of the motion of one set."""
    fit = coarse_fit(inputs, name, progress)
    descriptions = find_motion.describe(fit, search, motion, mixture, shape)
    for how, one in descriptions.items():
        progress.message(
            f"{name}: {how}, {len(one.maps)} in {shape}: {one.gain:+.3g} nats/particle over one"
            " rigid map"
        )
    return Candidate(motion, mixture, descriptions)


def _coarse_scene(inputs: MotionInputs) -> Scene:
    particles = inputs.coarse
    window = inputs.dataset.scene.mask
    if window is not None:
        window = rescale(window, particles.box).clamp(0, 1).float()
    focus = inputs.dataset.scene.focus
    if focus is not None:  # between voxels, since what is 0 has to stay 0
        centres = grids.voxel_centres(particles.box, particles.pixel_size)
        focus = sample_volume(focus, centres, inputs.dataset.scene.pixel_size)
    return Scene(
        box=particles.box,
        pixel_size=particles.pixel_size,
        count=particles.count,
        premultiplied=particles.premultiplied,
        mask=window,
        noise_variance=inputs.variance.float(),
        focus=focus,
    )


def duplicate_group(inputs: MotionInputs) -> Tensor:
    """A number "h" for each held-out particle that it shares with those that show copies of an
    image. Raises DataError if there is one alone.
    """
    rows = inputs.dataset.held_out
    particle = inputs.particle_of(rows)
    copies = inputs.dataset.particles.exclusive_groups(inputs.settings.group_by)[rows]
    group = copies.new_zeros(int(particle.max()) + 1)
    group.scatter_(0, particle, copies)
    if len(group.unique()) < MIN_HELD_OUT_GROUPS:
        raise DataError(
            "only one particle is held out, and motion needs two that are not fitted; add"
            " --held-out with a larger share"
        )
    return group


def decide(
    candidates: Mapping[str, Candidate], shape: Shape, composed: Shape | None = None
) -> Decision:
    """Whether particles move, and which description tells how.

    composed: the shape of the coordinates beside which regions come and go, None where none do.

    They move if test particles of every set are likelier by more than chance under any of the
    descriptions. Among those the likeliest is taken; maps that conformations have by themselves
    only where they gain noticeably more, since images of one conformation make a noisier map.
    """
    each = list(candidates.values())
    names = [name for name in each[0].descriptions if all(name in one.descriptions for one in each)]
    chance = math.log(len(names) / FALSE_POSITIVE_RATE)
    moving = [
        name
        for name in names
        if all(one.descriptions[name].gain * one.motion.test_count > chance for one in each)
    ]

    def worth(name: str) -> float:
        gain = sum(one.descriptions[name].gain for one in each)
        return gain / OWN_MAPS_MARGIN if name == CONFORMATIONS else gain

    if moving:
        best = max(moving, key=worth)
        composition = each[0].composition
        if composition is None or composed is None or best not in COMPOSED:
            return Decision(shape, True, best)
        return Decision(composed, True, best, composition.count)
    return Decision(shape, False, names[0] if names == [CONFORMATIONS] else BENDING)


def fit_half(
    inputs: MotionInputs,
    name: str,
    candidate: Candidate,
    decision: Decision,
    progress: Progress,
) -> HalfFit:
    """Conformations at full resolution, and where particles are in them."""
    assigned = _assigned(candidate, decision)
    scene = inputs.dataset.scene
    fit = MotionFit(
        with_shape(inputs.settings.parts, decision.shape),
        bend.with_mask_and_scale(scene, assigned.maps),
        inputs.options,
        inputs.seed(name),
        progress,
        name,
        inputs.settings.device,
    )
    if decision.in_domains:
        return _fit_domains(inputs, name, candidate, assigned, fit, decision)
    return _fit_nodes(inputs, name, candidate, assigned, fit, decision)


def _fit_nodes(
    inputs: MotionInputs,
    name: str,
    candidate: Candidate,
    assigned: Assignment,
    fit: MotionFit,
    decision: Decision,
) -> HalfFit:
    """The fit to statistics of each conformation: of one density that bends, or of a map each."""
    description = candidate.descriptions[decision.description]
    data = _conformation_data(inputs, name, candidate.motion, assigned)
    own_maps = None
    if decision.description == CONFORMATIONS:
        weighted = weighted_maps.fit_maps(fit, data)
        model = weighted.model
        result = weighted.result
        own_maps = weighted.maps
    else:
        coarse = description.bent if decision.moving else None
        model, result = bend.sharpen(fit, data, coarse)
        if decision.moving:
            z = assigned.nodes.float()
            box = candidate.motion.fitted.box
            bent = torch.cat(
                [rescale(posterior.conformations(model, one), box) for one in z.split(1)]
            )
            again = assignment.assign(candidate.motion, bent, assigned.nodes, decision.shape)
            assigned = assignment.most_likely([assigned, again])
    half = replace(_half_model(model, assigned, decision), own_maps=own_maps)
    return HalfFit(half, assigned.z, assigned.held_out_z, result)


def _fit_domains(
    inputs: MotionInputs,
    name: str,
    candidate: Candidate,
    assigned: Assignment,
    fit: MotionFit,
    decision: Decision,
) -> HalfFit:
    """The fit of each domain's density to all images, each at its own place."""
    coarse = candidate.descriptions[decision.description].domains
    assert coarse is not None  # domains were found
    motion = candidate.motion
    dataset = inputs.dataset
    z = assigned.z[motion.fitted.particle].float()
    held_out_z = assigned.held_out_z[motion.held_out.particle].float()
    fitted = _placed(inputs, dataset.rows[name], coarse.domains, z)
    held_out = _placed(inputs, dataset.held_out, coarse.domains, held_out_z)
    maps = domain_maps.fit_maps(fit, coarse, fitted, held_out, inputs.gather_domain)
    domains = replace(
        coarse.domains,
        masks=maps.masks,
        pixel_size=dataset.particles.pixel_size,
        focus=dataset.scene.focus,
    )
    window = dataset.scene.mask
    if window is None:
        window = domain_maps.reached(domains)
    model = compose(fit.parts, replace(maps.model.scene, mask=window), fit.seed)
    model.load_state_dict(maps.model.state_dict())
    half = replace(
        _half_model(model, assigned, decision), domains=domains, densities=maps.densities
    )
    return HalfFit(half, assigned.z, assigned.held_out_z, maps.result)


def _half_model(model: Model, assigned: Assignment, decision: Decision) -> HalfModel:
    """A model with the conformations that it was fitted to, in coordinates of its own."""
    latent = decision.coordinates + decision.occupancies
    return HalfModel(
        model.eval(),
        torch.eye(latent),
        torch.zeros(latent),
        assigned.nodes.float(),
        assigned.maps,
        closed=decision.shape.closed and decision.moving,
        occupancies=decision.occupancies,
    )


def _placed(inputs: MotionInputs, rows: Tensor, domains: Domains, z: Tensor) -> DomainImages:
    """The images `rows` "n" with the domains where they are at coordinates z "n L+R"."""
    dataset = inputs.dataset
    variance = dataset.scene.noise_variance
    assert variance is not None  # it was measured
    placement = domains.placement_at(z)
    present = None if domains.occupancy is None else domains.present_at(z)
    return DomainImages(
        dataset.particles,
        rows,
        variance,
        placement,
        dataset.weights,
        present,
        inputs.settings.device,
    )


def _assigned(candidate: Candidate, decision: Decision) -> Assignment:
    """The particles at the nodes of the description; where one density bends, of those maps, the
    bent ones or their own, that are likelier. At one node where nothing moves.
    """
    motion = candidate.motion
    if not decision.moving:
        return assignment.single_state(motion, decision.shape.latent)
    description = candidate.descriptions[decision.description]
    candidates = [description.maps]
    if decision.description == BENDING:
        candidates.append(candidate.mixture.maps)
    z = description.z
    shape = decision.shape
    occupancies = decision.occupancies
    each = [assignment.assign(motion, maps, z, shape, occupancies) for maps in candidates]
    return assignment.most_likely(each)


def _conformation_data(
    inputs: MotionInputs, name: str, motion: CoarseMotion, assigned: Assignment
) -> ConformationData:
    """The statistics of each conformation at full resolution."""
    dataset = inputs.dataset
    fitted = _statistics(inputs, dataset.rows[name], motion.fitted.particle, assigned.share)
    held_out = _statistics(
        inputs, dataset.held_out, motion.held_out.particle, assigned.held_out_share
    )
    return ConformationData(fitted, held_out, assigned.nodes.float())


def _statistics(
    inputs: MotionInputs, rows: Tensor, particle: Tensor, share: Tensor
) -> list[Statistics]:
    """The statistics of each conformation from the images `rows` "n" of the particles `particle`
    "n", which have shares "m K" of it.
    """
    dataset = inputs.dataset
    statistics = []
    for share_of_particle in share.T:
        weight = share_of_particle[particle]
        if dataset.weights is not None:
            weight = weight * dataset.weights[rows]
        weights = torch.zeros(dataset.particles.count, dtype=torch.float64)
        weights[rows] = weight
        statistics.append(inputs.gather(rows[weight > 0], weights))
    return statistics


def share_coordinates(inputs: MotionInputs, fits: Mapping[str, HalfFit]) -> SharedCoordinates:
    """Coordinates that all fits understand: those of the first."""
    dataset = inputs.dataset
    of_particle = inputs.particle_of(dataset.held_out)
    weight = None
    if dataset.weights is not None:
        sums = torch.bincount(of_particle, dataset.weights[dataset.held_out])
        weight = sums / torch.bincount(of_particle)
    halves, agreement = _aligned(list(fits.values()), weight)
    fitted = []
    of_held_out = []
    for half, (name, fit) in zip(halves, fits.items(), strict=True):
        rows = dataset.rows[name]
        own = fit.z[inputs.particle_of(rows)].float()
        fitted.append(FittedValues(rows, half.to_shared(own)))
        of_held_out.append(half.to_shared(fit.held_out_z.float()).double()[of_particle])
        _fill_table(half, rows, own)
    latents = joined(dataset.particles.count, fitted, dataset.held_out, of_held_out)
    return SharedCoordinates(halves, latents, agreement)


def _aligned(
    fits: Sequence[HalfFit], weight: Tensor | None
) -> tuple[list[HalfModel], float | None]:
    """The halves, with how their coordinates come from those of the first, and how far these
    agree, by held-out particles with weights "m" (None for 1).
    """
    first = fits[0]
    halves = [first.half]
    agreement = None
    for other in fits[1:]:
        alignment = _alignment(first, other, weight)
        turned = replace(other.half, turn=alignment.turn, offset=alignment.offset)
        halves.append(turned)
        agreement = alignment.agreement
    return halves, agreement


def _alignment(first: HalfFit, other: HalfFit, weight: Tensor | None) -> Alignment:
    """How the coordinates of held-out particles relate in two fits: those of the motion as they
    turn out; occupancies mean the same in both.
    """
    count = first.half.occupancies
    if not count:
        return align(first.held_out_z, other.held_out_z, weight)
    moving = first.held_out_z.shape[1] - count
    if not moving:
        each = [
            align(one[:, None], two[:, None], weight).agreement
            for one, two in zip(first.held_out_z.T, other.held_out_z.T, strict=True)
        ]
        known = [value for value in each if value is not None]
        agreement = sum(known) / len(known) if known else None
        return Alignment(torch.eye(count), torch.zeros(count), agreement)
    motion = align(first.held_out_z[:, :moving], other.held_out_z[:, :moving], weight)
    turn = torch.block_diag(motion.turn, torch.eye(count))
    offset = torch.cat([motion.offset, torch.zeros(count)])
    return Alignment(turn, offset, motion.agreement)


def _fill_table(half: HalfModel, rows: Tensor, own: Tensor) -> None:
    """Puts the particles' own coordinates into the table of a deformation that has one; where
    nothing but occupancies differs, they stay zero.
    """
    deformation = half.model.deformation
    moving = own.shape[1] - half.occupancies
    if isinstance(deformation, PerParticleTable) and moving:
        deformation.table.data[rows] = own[:, :moving]


def record(
    candidates: Mapping[str, Candidate],
    decision: Decision,
    halves: Sequence[HalfModel],
    agreement: float | None,
) -> dict[str, Any]:
    """What motion.json says; all gains in nats per held-out particle."""
    fits = {}
    pairs = zip(candidates.items(), halves, strict=True)
    for number, ((name, one), half) in enumerate(pairs):
        gains = {how: description.gain for how, description in one.descriptions.items()}
        fits[name] = {
            "conformations": len(one.mixture.maps),
            "gain_by_subspace_dimensions": one.motion.subspace.gain,
            "gain_over_rigid_by_description": gains,
            "gain_over_rigid": gains[decision.description],
            "test_particles": one.motion.test_count,
        }
        if half.domains is not None:
            facts = domain_facts(half.domains)
            for m, fact in enumerate(facts):
                fact["mask"] = motion_files.domain_mask(number, m)
            fits[name]["domains"] = facts
    found: dict[str, Any] = {
        "coordinates": 1 if decision.shape.closed else decision.coordinates,
        "closed": decision.shape.closed,
        "motion_found": decision.moving,
        "description": decision.description if decision.moving else None,
        "agreement": agreement,
        "fits": fits,
    }
    if decision.occupancies:
        found["regions"] = _regions(list(candidates.values()))
    return found


def _regions(candidates: Sequence[Candidate]) -> list[dict[str, float]]:
    """What is told of each region that comes and goes: the share of the particles that have it."""
    shares = []
    for one in candidates:
        assert one.composition is not None  # regions come and go
        shares.append(one.composition.share)
    means = torch.tensor(shares).mean(0)
    return [{"share": round(float(value), 4)} for value in means]
