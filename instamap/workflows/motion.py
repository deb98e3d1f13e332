"""The workflow of motion: coordinates of all particles and two independent models that bend one
density into every conformation, or have a map of each.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from instamap.errors import DataError
from instamap.fitting.conformations import Conformations
from instamap.fitting.loop import FitResult
from instamap.fitting.parallel import run_in_threads
from instamap.model import part_classes
from instamap.motion import populations, ring
from instamap.motion.find_motion import CoarseMotion, Search, find_conformations, with_shape
from instamap.motion.motion_model import MotionModel
from instamap.motion.populations import Populations
from instamap.motion.ring import Shape
from instamap.motion.state_mixture import StateMixture
from instamap.parts import (
    ContinuousDeformation,
    DiscreteDeformation,
    GaussianLikelihood,
    PerParticleTable,
)
from instamap.plugin.choice import load_class
from instamap.plugin.options import CoordinateOptions, option
from instamap.plugin.options import Options as WorkflowOptions
from instamap.progress import SILENT, Progress
from instamap.report import audit_plot, audit_section, coordinates_plot, populations_plot
from instamap.workflows import (
    embed_new,
    motion_composition,
    motion_files,
    motion_fits,
    particle_likelihoods,
)
from instamap.workflows import map as map_workflow
from instamap.workflows.devices import choose_device
from instamap.workflows.motion_composition import FoundComposition
from instamap.workflows.motion_files import MotionFiles
from instamap.workflows.motion_fits import (
    Candidate,
    Decision,
    HalfFit,
    MotionInputs,
    SharedCoordinates,
)
from instamap.workflows.record import LoggedProgress, reading
from instamap.workflows.result import Result
from instamap.workflows.settings import Settings
from instamap.workflows.workflow import MAP_FILES, Workflow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BY_MINI_BATCHES = "--objective images"
REPLICATES = 40  # of the particles, for the intervals of populations in the report
NO_MOTION = (
    "no motion found: held-out particles are no likelier than chance allows; all stay in one"
    " conformation"
)


@dataclass(frozen=True, repr=False)
class MotionResult(Result):
    """Maps at the origin of the coordinates, and the motion.

    moving: whether held-out particles of every fit are likelier by more than chance if particles
    differ. description: how they differ, by what held-out particles favour: "domains" that move as
    rigid bodies, "bending" of one density, or "conformations" with maps of their own; None where
    nothing moves. closed: whether the coordinate closes upon itself. gains: what each fit's gain
    over one rigid map, in nats per particle. agreement: how far the halves' coordinates of held-out
    particles correlate; None with one fit or without motion. regions: of those that come and go,
    the share of the particles that have each. populations: of the conformations, None where nothing
    moves, regions come and go, or the result was read from a folder.
    """

    motion: MotionModel = field(kw_only=True)
    moving: bool = field(kw_only=True)
    description: str | None = field(kw_only=True)
    closed: bool = field(kw_only=True)
    gains: dict[str, float] = field(kw_only=True)
    agreement: float | None = field(kw_only=True)
    regions: list[float] = field(kw_only=True)
    populations: Populations | None = field(default=None, kw_only=True)

    @property
    def latents(self) -> Tensor:
        return self.motion.latents

    @property
    def verdict(self) -> str:
        if not self.moving:
            return NO_MOTION
        each = ", ".join(f"{gain:+.4g} ({name})" for name, gain in self.gains.items())
        differ = "particles differ" if self.regions else "particles move"
        gained = f"{self._how} held-out particles {each} nats over one rigid map"
        line = f"{differ}: {self._shape}{gained}"
        if self.agreement is None:
            return line
        return f"{line}; the halves' coordinates correlate by {self.agreement:.3f}"

    @property
    def _how(self) -> str:
        description = self.description or "bending"
        verb = "gives" if description in ("bending", "composition") else "give"
        return f"{description} {verb}"

    @property
    def _shape(self) -> str:
        composed = ""
        if self.regions:
            composed = f"{motion_composition.regions_in_words(self.regions)}; "
        return f"{composed}the motion closes upon itself, a circle; " if self.closed else composed

    def summary(self) -> list[str]:
        lines = [
            f"{name}: {self._how} held-out particles {gain:+.4g} nats over one rigid map"
            for name, gain in self.gains.items()
        ]
        if not self.moving:
            return [
                *lines,
                "no motion found: that is no more than chance allows, of one fit at least; nothing"
                " moves in what was written",
            ]
        if self.agreement is not None:
            lines.append(
                f"halves: their coordinates of held-out particles correlate by {self.agreement:.3f}"
            )
        return lines

    def plot_latents(self) -> "Figure":
        """The coordinates of all particles as a matplotlib figure; with the directions of view
        where they are known.
        """
        if self.rotations is None:
            return coordinates_plot.drawn_alone(self.latents)
        return coordinates_plot.drawn(self.latents, self.rotations, self.latents[:0])

    def plot_populations(self) -> "Figure":
        """What share of the particles is in each conformation, as a matplotlib figure; of a single
        coordinate, the energy along it. Raises DataError where populations are not known.
        """
        if self.populations is None:
            raise DataError(
                "this result has no populations: nothing moves in it, regions come and go, or it"
                " was read from a folder; for that, run `instamap populations` on the folder"
            )
        return populations_plot.drawn(self.populations)

    def plot_audit(self) -> "Figure":
        """Where to believe the motion, as a matplotlib figure: slices of maps of how far matter
        moves and how far the halves differ.

        Looks at no more than 40 voxels along the box, which takes seconds; `instamap audit` looks
        at all. Raises DataError where nothing bends.
        """
        if not (self.moving and self.motion.bends):
            raise DataError(
                "this result has no field to audit: nothing moves in it, or each conformation has"
                " a map of its own"
            )
        audit = audit_section.sparse_audit(self.motion)
        return audit_plot.drawn(audit, audit_section.spacing(self.motion))

    def conformation(self, z: Tensor) -> Tensor:
        """The map "D D D" at coordinates z "L"."""
        return self.motion.conformation(z)

    def transform(
        self,
        star: str | Path,
        datadir: str | Path | None = None,
        group_by: str | None = None,
        device: str = "cpu",
    ) -> Tensor:
        """Coordinates "n L" (float64) of other particles, posed in the run's frame.

        group_by: a column whose equal values are of one particle; None takes the run's. device:
        where images are held against maps, such as "cuda". Raises DataError, and OptionError for a
        device that is not there.
        """
        place = choose_device(device)
        particles = embed_new.open_particles(self.motion, star, datadir)
        particle = embed_new.particle_numbers(self.motion, particles, group_by)
        return embed_new.embed(self.motion, particles, particle, place)


class MotionWorkflow(Workflow):
    """Fits each half on its own and relates their coordinates.

    The halves share two things, neither of which is a map: how many coordinates there are and
    whether anything moves. Particles with symmetry are expanded: each has a row for each copy, with
    coordinates of its own; the copies are in one set, and count once where chance is judged.
    """

    objectives = ("conformations",)
    may_write = (*MAP_FILES, *motion_files.PATTERNS)
    expands_symmetry = True
    takes_focus = True
    takes_device = True

    @dataclass(frozen=True)
    class Options(WorkflowOptions):
        nodes: int = option(
            16,
            "conformations that stand for the motion, per coordinate (fewer where particles are"
            " few)",
            low=3,
        )
        coarse: float = option(
            10.0, "pixel in which coordinates are found and bending begins", unit="Å", low=0.1
        )
        dimensions: int = option(8, "dimensions of the linear subspace at most", low=1, high=16)

    @classmethod
    def unsuitable(cls, settings: Settings) -> str | None:
        classes = part_classes(settings.parts)
        bends = issubclass(classes["deformation"], ContinuousDeformation)
        other = f", or choose {BY_MINI_BATCHES}" if bends else ""
        return (
            _against_deformation(settings, classes["deformation"])
            or _against_likelihood(settings, classes["likelihood"], other)
            or _against_the_rest(settings, other)
        )

    @classmethod
    def reload(cls, folder: Path, result: Result) -> Result:
        files = MotionFiles.open(folder)
        with reading(folder / motion_files.RECORD):
            return _with_motion(replace(result, artefacts=(files,)), files)

    def run(self, settings: Settings, progress: Progress = SILENT) -> MotionResult:
        logged = LoggedProgress(progress)
        inputs = motion_fits.open_inputs(settings, self.options.coarse, logged)
        coarse = inputs.coarse
        logged.message(f"coordinates     in {coarse.box} px of {coarse.pixel_size:.4g} Å")
        search = motion_fits.search_for(inputs, self.options.dimensions, self.options.nodes)

        plain = motion_composition.without_contrast(inputs)
        motions = _subspaces(plain, search, logged)
        found = motion_composition.find(plain, motions, logged)
        if found is not None:
            inputs = plain
        elif plain is not inputs:
            motions = _subspaces(inputs, search, logged)
        shape, candidates = _described(inputs, search, motions, logged)
        composed = None
        if found is not None:
            composed, candidates = _composed(found, search, candidates, logged)
        decision = motion_fits.decide(candidates, shape, composed)
        logged.message(f"motion          {decision.description}" if decision.moving else NO_MOTION)

        def fit(name: str, serialised: Progress) -> HalfFit:
            fitted = motion_fits.fit_half(inputs, name, candidates[name], decision, serialised)
            nuisance = candidates[name].motion.fitted.nuisance
            return replace(fitted, half=replace(fitted.half, nuisance=nuisance))

        fits = run_in_threads(list(candidates), fit, logged)
        shared = motion_fits.share_coordinates(inputs, fits)
        record = motion_fits.record(candidates, decision, shared.halves, shared.agreement)
        found_populations = None
        if decision.moving and not decision.occupancies:
            found_populations = _populations(inputs, candidates, shared)
        result = _result(inputs, decision, fits, shared, record, logged)
        return replace(result, populations=found_populations)


def _populations(
    inputs: MotionInputs, candidates: Mapping[str, Candidate], shared: SharedCoordinates
) -> Populations:
    """What share of the particles is in each conformation: those of each fit by the particles that
    it did not see.
    """
    dataset = inputs.dataset
    fits = []
    for half, (name, own) in zip(shared.halves, candidates.items(), strict=True):
        rows = [dataset.held_out]
        unseen = [own.motion.held_out]
        for other, fitted in dataset.rows.items():
            if other != name:
                rows.append(fitted)
                unseen.append(candidates[other].motion.fitted)
        log_prob = [particle_likelihoods.of_maps(one, half.coarse_maps) for one in unseen]
        particle = torch.cat([inputs.particle[some].unique() for some in rows])
        fits.append(particle_likelihoods.of_fit(half, name, particle, torch.cat(log_prob)))
    return populations.estimate(fits, replicates=REPLICATES)


def _subspaces(inputs: MotionInputs, search: Search, logged: Progress) -> dict[str, CoarseMotion]:
    """The subspace in which the particles of each set differ."""

    def find(name: str, serialised: Progress) -> CoarseMotion:
        return motion_fits.find_subspace(inputs, search, name, serialised)

    return run_in_threads(list(inputs.dataset.rows), find, logged)


def _described(
    inputs: MotionInputs, search: Search, motions: Mapping[str, CoarseMotion], logged: Progress
) -> tuple[Shape, dict[str, Candidate]]:
    """The shape of the coordinates, and what each set says in it."""
    names = list(motions)

    def find_mixtures(latent: int, count: float, rounds: int) -> dict[str, StateMixture]:
        def find(name: str, serialised: Progress) -> StateMixture:
            coarse_fit = motion_fits.coarse_fit(inputs, name, serialised)
            return find_conformations(coarse_fit, search, motions[name], latent, count, rounds)

        return run_in_threads(names, find, logged)

    shape, mixtures = motion_fits.choose_shape(inputs, motions, find_mixtures, logged)
    logged.message(f"coordinates     {shape}")

    def find_in_shape(name: str, serialised: Progress) -> Candidate:
        return motion_fits.find_in_shape(
            inputs, search, name, motions[name], mixtures[name], shape, serialised
        )

    return shape, run_in_threads(names, find_in_shape, logged)


def _composed(
    found: FoundComposition, search: Search, candidates: Mapping[str, Candidate], logged: Progress
) -> tuple[Shape, dict[str, Candidate]]:
    """The shape of the motion beside which regions come and go, and the sets' candidates with the
    descriptions in which they do.
    """
    names = list(candidates)

    def fill_up(name: str, serialised: Progress) -> CoarseMotion:
        return motion_composition.filled_up(found, search, name, serialised)

    filled = run_in_threads(names, fill_up, logged)
    shape = Shape(1)
    moving: Mapping[str, Candidate] = {}
    if all(motion_composition.differ(one) for one in filled.values()):
        shape, moving = _described(found.inputs, search, filled, logged)

    def describe(name: str, serialised: Progress) -> Candidate:
        return motion_composition.with_composition(
            name, found, candidates[name], moving.get(name), shape, serialised
        )

    return shape, run_in_threads(names, describe, logged)


def _result(
    inputs: MotionInputs,
    decision: Decision,
    fits: dict[str, HalfFit],
    shared: SharedCoordinates,
    record: dict[str, Any],
    logged: LoggedProgress,
) -> MotionResult:
    """Half maps and map at the origin of the shared coordinates, which both fits bend into place,
    with the motion. Regions that come and go are there.
    """
    parts = with_shape(inputs.settings.parts, decision.shape)
    settings = replace(inputs.settings, deformation=parts["deformation"])
    contrast = inputs.dataset.contrast
    spread = 0.0 if contrast is None or contrast.factors is None else contrast.spread
    halves = [replace(half, contrast_spread=spread) for half in shared.halves]
    motion = MotionModel(halves, shared.latents, settings.record())
    middle = torch.zeros(decision.coordinates)
    if shared.halves[0].closed:
        middle = ring.first_of(middle)
    middle = torch.cat([middle, torch.ones(decision.occupancies)])
    results = {}
    for half, (name, fit) in zip(shared.halves, fits.items(), strict=True):
        results[name] = FitResult(half.conformation(middle), fit.result.evaluations, True)
    scene = replace(motion.scene, mask=_union(motion))
    maps = map_workflow.maps_of(results, scene)
    curves = map_workflow.compare_halves(maps, scene, {})
    files = MotionFiles(motion, record)
    result = Result(
        settings=settings,
        scene=scene,
        maps=maps,
        fits=results,
        fsc=curves,
        resolution=map_workflow.resolution_of(curves, scene),
        counts=inputs.counts,
        mask_was_found=True,
        log=logged.entries,
        artefacts=(files,),
        rotations=inputs.dataset.particles.views.rotation,
        contrast=inputs.dataset.contrast,
    )
    return _with_motion(result, files)


def _with_motion(result: Result, files: MotionFiles) -> MotionResult:
    """The result, with what the motion's record says of it."""
    values = {name: getattr(result, name) for name in Result.__dataclass_fields__}
    return MotionResult(
        **values,
        motion=files.motion,
        moving=files.moving,
        description=files.description,
        closed=files.closed,
        gains=files.gains,
        agreement=files.agreement,
        regions=files.regions,
    )


def _union(motion: MotionModel) -> Tensor:
    """The mask that holds those of all fits."""
    masks = [half.model.scene.mask for half in motion.halves]
    return torch.stack([mask for mask in masks if mask is not None]).amax(0)


def _against_deformation(settings: Settings, deformation: type) -> str | None:
    choice = settings.deformation
    if not issubclass(deformation, ContinuousDeformation | DiscreteDeformation):
        return (
            f"it needs conformations, deformation '{choice.name}' has none; choose bending-field or"
            " subspace"
        )
    if issubclass(deformation, PerParticleTable) and not deformation.uses_table(choice.options):
        return (
            "it needs coordinates from a table, but from is 'image'; choose -D from=table, or"
            f" {BY_MINI_BATCHES}"
        )
    options: Any = choice.options
    closed = isinstance(options, CoordinateOptions) and options.topology == ring.CIRCLE
    if closed and options.latent not in ("auto", 1, 2):
        return (
            f"topology 'circle' is of one coordinate, kept in two columns, but latent is"
            f" {options.latent}; leave one of them out"
        )
    return None


def _against_likelihood(settings: Settings, likelihood: type, other: str) -> str | None:
    if issubclass(likelihood, GaussianLikelihood):
        return None
    return (
        f"it needs Gaussian noise, likelihood '{settings.likelihood.name}' is of another kind;"
        f" choose gaussian{other}"
    )


def _against_the_rest(settings: Settings, other: str) -> str | None:
    if settings.statistics is not None:
        return f"statistics '{settings.statistics}' is not for it; leave it out"
    if settings.stages is not None:
        return f"stages are not for it, which has its own; leave them out{other}"
    if settings.objective is None:
        return None
    chosen = settings.objective.name
    if issubclass(load_class("objective", chosen), Conformations):
        return None
    return (
        f"it needs objective 'conformations', not '{chosen}'; leave --objective out, or choose"
        " --workflow map"
    )
