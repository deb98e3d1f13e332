"""The workflow of poses: each half's map, then its particles against that map, round by round."""

import math
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instamap.data import writers
from instamap.data.particles import Particles
from instamap.fitting.loop import FALSE_POSITIVE_RATE, FitResult
from instamap.fitting.normal import NormalEquations
from instamap.model import make_part, part_classes
from instamap.parts import GaussianLikelihood, HasBodies, PerParticleTable, RigidCorrection
from instamap.plugin.choice import Choice, choose, load_class
from instamap.plugin.options import DeformationOptions, Options, describe, option
from instamap.poses import correction
from instamap.poses.pose_prior import PosePrior
from instamap.poses.rounds import PoseRound, Round
from instamap.progress import SILENT, Progress
from instamap.workflows import map as map_workflow
from instamap.workflows.kept_files import KeptFiles
from instamap.workflows.learned_poses import REFINED
from instamap.workflows.prepare import Dataset, Prepared, open_dataset, prepare_dataset
from instamap.workflows.record import LoggedProgress, read_json, write_json
from instamap.workflows.result import Artefact, Result
from instamap.workflows.settings import Settings
from instamap.workflows.workflow import MAP_FILES, Workflow

RECORD = "poses.json"
BY_MINI_BATCHES = "--objective images"
# Share of what a round before had gained that corrections gain at least, or no other round follows.
WORTH_A_ROUND = 0.003


@dataclass(frozen=True, repr=False)
class PosesResult(Result):
    """The map with corrected poses.

    poses: what poses.json says: the root mean squares of all corrections, and what held-out
    particles said in each round, from the poses as given on. z "n 5": the corrections of all
    particles (see `poses.correction`); None where the result was loaded, since the STAR file has
    them.
    """

    poses: dict[str, Any] = field(kw_only=True)
    z: Tensor | None = field(default=None, kw_only=True)

    @property
    def corrected(self) -> bool:
        """Whether any pose was."""
        return bool(self.poses["corrected"])

    @property
    def gain(self) -> float:
        """What held-out particles gain by corrections and by the map that they made possible.

        In nats per particle.
        """
        rounds = self.poses["rounds"]
        return max(one["held_out"] for one in rounds) - rounds[0]["given"]

    @property
    def verdict(self) -> str:
        if not self.corrected:
            return (
                "poses: left as they were given, as held-out particles are no likelier with"
                " corrected ones than chance allows"
            )
        angle = self.poses["rms_angle"]
        shift = self.poses["rms_shift"]
        return (
            f"poses: corrected by {angle:.2g}° and {shift:.2g} Å rms, in {REFINED}; held-out"
            f" particles gain {self.gain:+.4g} nats each"
        )

    def summary(self) -> list[str]:
        return [self.verdict, *super().summary()]


@dataclass(frozen=True)
class RefinedPoses(Artefact):
    """The particles with corrected poses, and what was said of them in each round."""

    particles: Particles
    z: Tensor
    record: dict[str, Any]

    def files(self) -> list[str]:
        return [REFINED, RECORD]

    def write(self, folder: Path) -> None:
        views = correction.corrected(self.particles.views, self.z.double())
        moved = (self.z != 0).any(1)
        writers.write_poses(self.particles, views, moved, folder / REFINED)
        write_json(folder / RECORD, self.record)


class PosesWorkflow(Workflow):
    """Fits the map by normal equations, corrects every particle's pose in closed form, and again.

    As long as held-out particles get likelier, if corrections make them so at all; then back to the
    best round.
    """

    objectives = ("normal",)
    takes_device = True
    may_write = (*MAP_FILES, REFINED, RECORD)

    @dataclass(frozen=True)
    class Options(Options):
        rounds: int = option(
            6, "times, at most, that poses are corrected and the map is made again", low=1
        )
        newton: int = option(3, "Gauss-Newton steps for each particle in a round", low=1)

    @classmethod
    def unsuitable(cls, settings: Settings) -> str | None:
        classes = part_classes(settings.parts)
        return (
            _against_deformation(settings, classes["deformation"])
            or _against_likelihood(settings, classes["likelihood"])
            or _against_the_rest(settings)
        )

    @classmethod
    def composition(cls, settings: Settings) -> dict[str, Choice]:
        return _settings_of_map(settings).parts

    def run(self, settings: Settings, progress: Progress = SILENT) -> PosesResult:
        logged = LoggedProgress(progress)
        plain = _settings_of_map(settings)
        dataset = open_dataset(plain, logged)
        prepared = prepare_dataset(dataset, plain, logged)
        map_workflow.describe(settings, prepared, logged)
        best, outcomes = self._rounds(settings, plain, dataset, prepared, logged)
        result = map_workflow.make_result(settings, best.prepared, best.fits, logged)
        record = _record(best.z, outcomes)
        artefact = RefinedPoses(dataset.particles, best.z, record)
        return _with_poses(replace(result, artefacts=(artefact,)), record, best.z)

    @classmethod
    def reload(cls, folder: Path, result: Result) -> Result:
        kept = KeptFiles.matching(folder, (REFINED, RECORD))
        loaded = replace(result, artefacts=(kept,))
        return _with_poses(loaded, read_json(folder / RECORD), None)

    def _rounds(
        self,
        settings: Settings,
        plain: Settings,
        dataset: Dataset,
        prepared: Prepared,
        progress: LoggedProgress,
    ) -> "tuple[_FinishedRound, list[Round]]":
        """Maps and corrections, round by round: the best round, with what was found in each."""
        usual = settings.deformation.options
        prior = PosePrior(math.radians(usual.angle), usual.shift)
        z = torch.zeros(dataset.particles.count, 5, dtype=torch.float64)
        finished: list[_FinishedRound] = []
        for number in range(self.options.rounds + 1):
            if number:
                posed = replace(dataset, particles=_posed(dataset.particles, z))
                prepared = prepare_dataset(posed, plain)
            suffix = f" round {number}" if number else ""
            fits, _ = map_workflow.fit_all(plain, prepared, progress, suffix)
            pose_round = self._pose_round(dataset, plain, prepared, fits)
            tested_z, outcome = pose_round.test(z, prior)
            finished.append(_FinishedRound(prepared, fits, z, outcome))
            progress.message(_line(number, outcome, dataset.particles))
            outcomes = [one.outcome for one in finished]
            if _no_gain(outcomes, len(dataset.held_out)):
                break
            if number < self.options.rounds:
                prior = outcome.prior
                z = pose_round.correct(tested_z, prior)
        best = max(finished, key=lambda one: one.outcome.held_out)
        return best, outcomes

    def _pose_round(
        self,
        dataset: Dataset,
        plain: Settings,
        prepared: Prepared,
        fits: dict[str, FitResult],
    ) -> PoseRound:
        maps, curves = map_workflow.whole_maps_and_curves(fits, prepared)
        return PoseRound(
            dataset.particles,
            dataset.rows,
            dataset.held_out,
            make_part("likelihood", plain.likelihood, prepared.image_scene),
            maps,
            curves.get("masked"),
            self.options.newton,
        )


@dataclass(frozen=True)
class _FinishedRound:
    """A round that is over: what its fits saw and found at corrections z, and what held-out
    particles say of it.
    """

    prepared: Prepared
    fits: dict[str, FitResult]
    z: Tensor
    outcome: Round


def _against_deformation(settings: Settings, deformation: type) -> str | None:
    choice = settings.deformation
    if not issubclass(deformation, RigidCorrection):
        return f"it needs deformation 'rigid', not '{choice.name}'; choose --deform rigid"
    if issubclass(deformation, PerParticleTable) and not deformation.uses_table(choice.options):
        return (
            f"it needs from=table, but from is 'image'; choose -D from=table, or {BY_MINI_BATCHES}"
        )
    if issubclass(deformation, HasBodies) and deformation.body_files(choice.options):
        return (
            f"it corrects a particle as a whole, not its bodies; choose {BY_MINI_BATCHES}, or leave"
            " out bodies"
        )
    usual = {spec.field: spec for spec in describe(type(choice.options))}
    for name in DeformationOptions.__dataclass_fields__:
        value = getattr(choice.options, name)
        if value != usual[name].default:
            return (
                f"its closed form has no place for {name}={value:g}; leave it out, or choose"
                f" {BY_MINI_BATCHES}"
            )
    return None


def _against_likelihood(settings: Settings, likelihood: type) -> str | None:
    if issubclass(likelihood, GaussianLikelihood):
        return None
    return (
        f"it needs Gaussian noise, likelihood '{settings.likelihood.name}' is not; choose gaussian"
        " or coloured"
    )


def _against_the_rest(settings: Settings) -> str | None:
    if settings.statistics is not None:
        return f"statistics are not for it; leave them out, or choose {BY_MINI_BATCHES}"
    if settings.stages is not None:
        return f"stages are not for it; leave them out, or choose {BY_MINI_BATCHES}"
    if settings.objective is None:
        return None
    chosen = load_class("objective", settings.objective.name)
    if issubclass(chosen, NormalEquations):
        return None
    return (
        f"it needs objective 'normal', not '{settings.objective.name}'; leave --objective out, or"
        " choose --workflow map"
    )


def _settings_of_map(settings: Settings) -> Settings:
    """The settings of a map alone: one density, normal equations."""
    return replace(
        settings,
        deformation=choose("deformation", "identity"),
        forward=choose("forward", "slice"),
    )


def _no_gain(rounds: list[Round], held_out: int) -> bool:
    """Whether the corrections of the last round do not help.

    After the first map: if its held-out particles gain no more by them than chance allows (where
    poses are right, exp(gain) has mean 1). Later: if the last corrections gained no more than the
    share WORTH_A_ROUND.
    """
    last = rounds[-1]
    if len(rounds) == 1:
        gain = (last.held_out - last.uncorrected) * held_out
        return gain <= math.log(1 / FALSE_POSITIVE_RATE)
    before = rounds[-2].held_out
    return last.held_out - before <= WORTH_A_ROUND * abs(before)


def _with_poses(result: Result, record: dict[str, Any], z: Tensor | None) -> PosesResult:
    """A result of the map, with what was found of poses."""
    values = {name: getattr(result, name) for name in Result.__dataclass_fields__}
    return PosesResult(**values, poses=record, z=z)


def _posed(particles: Particles, z: Tensor) -> Particles:
    """The particles with corrected poses."""
    moved = copy(particles)
    moved.views = correction.corrected(particles.views, z)
    return moved


def _line(number: int, found: Round, particles: Particles) -> str:
    angle = math.degrees(found.prior.angle) * math.sqrt(3)
    shift = found.prior.shift * math.sqrt(2)
    finest = particles.box * particles.pixel_size / found.shell
    return (
        f"round {number}: held-out {found.held_out:+.4g} nats/particle,"
        f" {found.held_out - found.uncorrected:+.3g} of them by correcting poses; poses err by"
        f" {angle:.2g}° and {shift:.2g} Å rms, compared down to {finest:.3g} Å"
    )


def _record(z: Tensor, rounds: list[Round]) -> dict[str, Any]:
    """What poses.json says; all likelihoods in nats per held-out particle."""
    angle, shift = correction.root_mean_square(z)
    each = [
        {
            "angle": math.degrees(one.prior.angle),
            "shift": one.prior.shift,
            "shell": one.shell,
            "held_out": one.held_out,
            "given": one.uncorrected,
        }
        for one in rounds
    ]
    corrected = bool((z != 0).any())
    return {"rms_angle": angle, "rms_shift": shift, "corrected": corrected, "rounds": each}
