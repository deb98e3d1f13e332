"""The steps of a motion: each half's search at low resolution, the choice that the halves share,
fits at full resolution, and coordinates that both understand.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from instamap.data import noise
from instamap.data.particles import Particles
from instamap.errors import DataError
from instamap.fitting.conformations import ConformationData, Conformations
from instamap.fitting.loop import FALSE_POSITIVE_RATE, FitResult
from instamap.fourier.rescale import rescale
from instamap.model import make_part
from instamap.motion import assignment, bend, coordinates, posterior, weighted_maps
from instamap.motion.align_latents import align
from instamap.motion.assignment import Assignment
from instamap.motion.bend import MotionFit
from instamap.motion.find_motion import CoarseMotion, Search, find_motion, with_latent
from instamap.motion.motion_model import HalfModel
from instamap.parts import ContinuousDeformation, PerParticleTable
from instamap.plugin.choice import choose, load_class
from instamap.progress import SILENT, Progress
from instamap.scene import Scene
from instamap.statistics.particle_statistics import ParticleStatistics, fewer_pixels
from instamap.statistics.statistics import Statistics
from instamap.statistics.streaming import accumulate
from instamap.workflows.map import SEEDS_PER_RUN
from instamap.workflows.particle_values import FittedValues, joined
from instamap.workflows.prepare import Dataset, open_dataset
from instamap.workflows.settings import Settings

CONFORMATION = "conformation"
MIN_HELD_OUT_GROUPS = 2  # of particles that share no image: one ends fits, one is the test


@dataclass(frozen=True)
class MotionInputs:
    """What all fits share.

    coarse: the images with fewer pixels, in noise of `variance`. particle "n": a number of the
    particle that each image shows. options: of the fits.
    """

    settings: Settings
    options: Conformations.Options
    dataset: Dataset
    coarse: Particles
    variance: Tensor
    particle: Tensor

    def seed(self, name: str) -> int:
        """The seed of one fit."""
        number = list(self.dataset.rows).index(name)
        return self.settings.seed * SEEDS_PER_RUN + number

    def read(self, rows: Tensor) -> ParticleStatistics:
        """The coarse statistics of the particles in some images."""
        return ParticleStatistics.read(self.coarse, rows, self.variance, self.particle[rows])

    def particle_of(self, rows: Tensor) -> Tensor:
        """The number, from 0, that the particles in the images `rows` have among these."""
        _, number = self.particle[rows].unique(return_inverse=True)
        return number


@dataclass(frozen=True)
class Decision:
    """The number of coordinates, and whether particles move at all."""

    latent: int
    moving: bool


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
    # The first maps are of the density that all particles share.
    rigid = replace(settings, deformation=choose("deformation", "identity"))
    dataset = open_dataset(rigid, progress)
    particles = dataset.particles
    coarse = fewer_pixels(particles, pixel_size)
    variance = noise.estimate(coarse, seed=settings.seed)
    particle = particles.particle_numbers(settings.group_by)  # copies may move on their own
    options = settings.objective.options
    assert isinstance(options, Conformations.Options)  # or the workflow is unsuitable
    return MotionInputs(settings, options, dataset, coarse, variance, particle)


def find_coarse_motion(
    inputs: MotionInputs, name: str, dimensions: int, nodes: int, progress: Progress
) -> CoarseMotion:
    """The motion of one set at low resolution."""
    settings = inputs.settings
    deformation = settings.deformation
    deformation_options: Any = deformation.options
    latent = deformation_options.latent
    search = Search(
        latents=coordinates.AUTO_LATENT if latent == "auto" else (latent,),
        dimensions=dimensions,
        nodes=nodes,
        bends=issubclass(load_class("deformation", deformation.name), ContinuousDeformation),
    )
    fitted = inputs.read(inputs.dataset.rows[name])
    held_out = inputs.read(inputs.dataset.held_out)
    fit = MotionFit(
        settings.parts, _coarse_scene(inputs), inputs.options, inputs.seed(name), progress, name
    )
    motion = find_motion(fit, search, fitted, held_out, duplicate_group(inputs))
    for number, candidate in motion.candidates.items():
        how = "conformations give" if candidate.bent is None else "bent density gives"
        progress.message(
            f"{name}: {len(candidate.mixture.maps)} conformations in {number} coordinates: {how}"
            f" {candidate.gain:+.3g} nats/particle over one rigid map"
        )
    return motion


def _coarse_scene(inputs: MotionInputs) -> Scene:
    particles = inputs.coarse
    window = inputs.dataset.scene.mask
    if window is not None:
        window = rescale(window, particles.box).clamp(0, 1).float()
    return Scene(
        box=particles.box,
        pixel_size=particles.pixel_size,
        count=particles.count,
        premultiplied=particles.premultiplied,
        mask=window,
        noise_variance=inputs.variance.float(),
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


def decide(motions: Mapping[str, CoarseMotion]) -> Decision:
    """The number of coordinates with which test particles are likeliest, and whether each fit's are
    so by more than chance.
    """
    each = list(motions.values())
    latents = list(each[0].candidates)
    latent = max(latents, key=lambda size: sum(one.candidates[size].gain for one in each))
    chance = math.log(len(latents) / FALSE_POSITIVE_RATE)
    gains = [one.candidates[latent].gain * one.test_count for one in each]
    return Decision(latent, all(gain > chance for gain in gains))


def fit_half(
    inputs: MotionInputs,
    name: str,
    motion: CoarseMotion,
    decision: Decision,
    progress: Progress,
) -> HalfFit:
    """Conformations at full resolution, and where particles are in them."""
    candidate = motion.candidates[decision.latent]
    assigned = _assigned(motion, decision)
    scene = inputs.dataset.scene
    fine_maps = rescale(assigned.maps, scene.box).float()
    fit = MotionFit(
        with_latent(inputs.settings.parts, decision.latent),
        bend.with_mask_and_scale(scene, fine_maps),
        inputs.options,
        inputs.seed(name),
        progress,
        name,
    )
    z = assigned.nodes.float()
    data = _conformation_data(inputs, name, motion, assigned)
    own_maps = None
    if candidate.bent is None:
        weighted = weighted_maps.fit_maps(fit, data)
        model = weighted.model
        result = weighted.result
        own_maps = weighted.maps
    else:
        coarse = candidate.bent if decision.moving else None
        model, result = bend.sharpen(fit, data, coarse)
        if decision.moving:
            bent = rescale(posterior.conformations(model, z), motion.fitted.box)
            again = assignment.assign(motion, bent, assigned.nodes)
            assigned = assignment.most_likely([assigned, again])
    half = HalfModel(
        model.eval(),
        torch.eye(decision.latent),
        torch.zeros(decision.latent),
        assigned.nodes.float(),
        assigned.maps,
        own_maps,
    )
    return HalfFit(half, assigned.z, assigned.held_out_z, result)


def _assigned(motion: CoarseMotion, decision: Decision) -> Assignment:
    """The particles at the nodes of the likeliest of a candidate's maps; at one where nothing
    moves.
    """
    if not decision.moving:
        return assignment.single_state(motion, decision.latent)
    candidate = motion.candidates[decision.latent]
    nodes = candidate.mixture.z
    each = [assignment.assign(motion, maps, nodes) for maps in candidate.maps]
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
    likelihood = make_part("likelihood", inputs.settings.likelihood, dataset.scene)
    statistics = []
    for share_of_particle in share.T:
        weight = share_of_particle[particle]
        weights = torch.zeros(dataset.particles.count, dtype=torch.float64)
        weights[rows] = weight
        counting = {CONFORMATION: rows[weight > 0]}
        gathered = accumulate(dataset.particles, counting, likelihood, weights=weights)
        statistics.append(gathered[CONFORMATION])
    return statistics


def share_coordinates(inputs: MotionInputs, fits: Mapping[str, HalfFit]) -> SharedCoordinates:
    """Coordinates that all fits understand: those of the first."""
    dataset = inputs.dataset
    halves, agreement = _aligned(list(fits.values()))
    of_particle = inputs.particle_of(dataset.held_out)
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


def _aligned(fits: Sequence[HalfFit]) -> tuple[list[HalfModel], float | None]:
    """The halves, with how their coordinates come from those of the first, and how far these
    agree.
    """
    first = fits[0]
    halves = [first.half]
    agreement = None
    for other in fits[1:]:
        alignment = align(first.held_out_z, other.held_out_z)
        turned = replace(other.half, turn=alignment.turn, offset=alignment.offset)
        halves.append(turned)
        agreement = alignment.agreement
    return halves, agreement


def _fill_table(half: HalfModel, rows: Tensor, own: Tensor) -> None:
    """Puts the particles' own coordinates into the table of a deformation that has one."""
    deformation = half.model.deformation
    if isinstance(deformation, PerParticleTable):
        deformation.table.data[rows] = own


def record(
    motions: Mapping[str, CoarseMotion], decision: Decision, agreement: float | None
) -> dict[str, Any]:
    """What motion.json says; all gains in nats per held-out particle."""
    fits = {}
    for name, motion in motions.items():
        chosen = motion.candidates[decision.latent]
        gains = {str(latent): one.gain for latent, one in motion.candidates.items()}
        fits[name] = {
            "conformations": len(chosen.mixture.maps),
            "gain_by_subspace_dimensions": motion.subspace.gain,
            "gain_over_rigid_by_coordinates": gains,
            "gain_over_rigid": chosen.gain,
            "test_particles": motion.test_count,
        }
    return {
        "coordinates": decision.latent,
        "motion_found": decision.moving,
        "agreement": agreement,
        "fits": fits,
    }
