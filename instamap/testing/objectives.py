"""The laws of an objective: what a fit relies on when it lowers it, stops by it and goes on from a
checkpoint.
"""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from hypothesis import given, settings
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException

from instamap.fitting.checkpoint import Checkpoint
from instamap.fitting.conformations import ConformationData
from instamap.fitting.loop import FitResult, optimise
from instamap.fitting.objective import (
    FitData,
    ImageData,
    Objective,
    ObjectiveOptions,
    StatisticsData,
)
from instamap.fitting.stage import Stage
from instamap.geometry import grids, rotations
from instamap.model import Model, make_part
from instamap.parts import Deformation, DensityFn, ForwardOperator, Likelihood, SharedDensity
from instamap.plugin import options as opts
from instamap.plugin.choice import choose, load_class
from instamap.scene import Batch, Scene, Views
from instamap.statistics.accumulator import Accumulator
from instamap.statistics.statistics import Statistics
from instamap.testing.device import pretended_device
from instamap.testing.part import SETTINGS, difference, stir
from instamap.testing.scenes import Case, cases, gaussians

BOXES = (8, 9)
IMAGES = 24
HELD_OUT = 6
CONFORMATIONS = 3
# A fit takes a part of a second, so a few draws have to do.
FEW = settings(SETTINGS, max_examples=3)
NEEDS = ("images", "statistics", "conformations")
# Two stages, so that a fit can be stopped in both; the second begins at the best evaluation.
STAGES = (Stage(steps=5, jitter=0.5), Stage(steps=4, jitter_end=2.0))


def law(test: Callable) -> Callable:
    """Decorates a law: a test method of one argument, a `Case`."""
    return FEW(given(case=cases(BOXES))(test))


class BeamSum(ForwardOperator):
    """The sum of the density over the box's depths: a projection without any choice that depends on
    values.
    """

    centres: Tensor

    def __init__(self, options: opts.Options, scene: Scene) -> None:
        super().__init__(options, scene)
        centres = grids.voxel_centres(scene.box, scene.pixel_size).transpose(0, 2)
        self.register_buffer("centres", centres.reshape(-1, 3), persistent=False)

    def forward(
        self, density: DensityFn, views: Views, *, generator: torch.Generator | None = None
    ) -> Tensor:
        box = self.scene.box
        origin = torch.nn.functional.pad(views.origin, (0, 1))
        x = (self.centres + origin[:, None]) @ views.rotation
        values = density(x).view(len(views), box, box, box)
        return values.sum(-1).mT * self.scene.pixel_size


@dataclasses.dataclass(frozen=True)
class Specimen:
    """Particles in memory: noisy images of Gaussians whose projections are known."""

    images: Tensor
    views: Views

    @property
    def count(self) -> int:
        return len(self.images)

    def batch(self, rows: Tensor) -> Batch:
        return Batch(self.images[rows], self.views[rows])

    def image_numbers(self) -> Tensor:
        return torch.arange(self.count)

    def statistics(self, rows: Tensor, scene: Scene) -> Statistics:
        """The statistics of some images, in noise of variance 1."""
        accumulator = Accumulator(scene.box, scene.pixel_size)
        batch = self.batch(rows)
        variance = torch.ones(scene.box // 2 + 1)
        accumulator.add(batch.images, batch.views, noise_variance=variance)
        return accumulator.finish()


def scene_of(case: Case) -> Scene:
    """A scene of so many particles in white noise."""
    variance = torch.ones(1, case.box // 2 + 1)
    return Scene(
        case.box, case.pixel_size, count=IMAGES, density_scale=0.1, noise_variance=variance
    )


def specimen(case: Case) -> Specimen:
    """The particles of a case."""
    generator = case.generator()
    scene = scene_of(case)
    rotation = rotations.random(IMAGES, generator=generator)
    views = Views.of(rotation, torch.randn(IMAGES, 2, generator=generator, dtype=torch.float64))
    projections = gaussians(scene, generator).projection(views, scene)
    noise = torch.randn(projections.shape, generator=generator, dtype=torch.float64)
    images = 3 * projections / projections.std() + noise
    return Specimen(images.float(), views.to(torch.float32))


def fit_data(needs: str, case: Case) -> FitData:
    """Data of the kind that an objective needs."""
    particles = specimen(case)
    scene = scene_of(case)
    rows = torch.arange(IMAGES)
    held_out = rows[:HELD_OUT]
    fitted = rows[HELD_OUT:]
    if needs == "images":
        return ImageData(particles, fitted, held_out)
    if needs == "statistics":
        return StatisticsData(
            particles.statistics(fitted, scene), particles.statistics(held_out, scene)
        )
    starts = range(CONFORMATIONS)
    z = torch.linspace(-1, 1, CONFORMATIONS)[:, None]
    return ConformationData(
        [particles.statistics(fitted[start::CONFORMATIONS], scene) for start in starts],
        [particles.statistics(held_out[start::CONFORMATIONS], scene) for start in starts],
        z,
    )


class Recorder:
    """Keeps every checkpoint of a fit."""

    def __init__(self) -> None:
        self.checkpoints: list[Checkpoint] = []

    def save(self, name: str, checkpoint: Checkpoint) -> None:
        self.checkpoints.append(checkpoint)


class ObjectiveLaws:
    """The laws of an objective. Give `name` (and `options`) of a registered one, or override
    `load`; and the deformation and representation of models that it can describe.

    starts_empty: whether the average of a new objective is an empty map.
    """

    name: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}
    deformation: ClassVar[str] = "identity"
    representation: ClassVar[str] = "voxel"
    starts_empty: ClassVar[bool] = True

    def load(self) -> type[Objective]:
        """The class of the objective under test."""
        loaded: type[Objective] = load_class("objective", self.name)
        return loaded

    def classes(self) -> dict[str, type]:
        """The classes of the parts that it is tested with, by kind."""
        return {
            "representation": load_class("representation", self.representation),
            "deformation": load_class("deformation", self.deformation),
            "forward": BeamSum,
            "likelihood": load_class("likelihood", "gaussian"),
        }

    def model(self, case: Case, seed: int = 0) -> Model:
        """A new model; seed and case decide its random start."""
        scene = scene_of(case)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(case.seed + seed)
            return Model(
                scene,
                make_part(
                    "representation", choose("representation", self.representation, []), scene
                ),
                make_part("deformation", choose("deformation", self.deformation, []), scene),
                BeamSum(opts.Options(), scene),
                make_part("likelihood", choose("likelihood", "gaussian", []), scene),
            )

    def make(self, case: Case, model: Model, **more: Any) -> Objective:
        """A new objective for a model."""
        cls = self.load()
        options = opts.from_dict(cls.Options, {**self.options, **more})
        return cls(options, model, fit_data(cls.needs, case))

    def fit(self, case: Case, seed: int = 0, **more: Any) -> tuple[FitResult, Model]:
        """A short fit that stops improving soon."""
        model = self.model(case, seed)
        objective = self.make(case, model, evaluate_every=2, patience=1)
        generator = torch.Generator().manual_seed(case.seed + seed)
        result = optimise(model, objective, STAGES, generator=generator, **more)
        return result, model

    def advance(self, objective: Objective, model: Model, generator: torch.Generator) -> Tensor:
        """One step that changes no parameter; the average follows a little. The loss."""
        with torch.no_grad():
            loss = objective(model, generator)
        objective.follow(model, 0.5)
        return loss

    def test_what_it_needs_is_declared(self) -> None:
        """Who makes an objective asks it which data to read."""
        needs = self.load().needs
        assert needs in NEEDS, f"needs is {needs!r}; it must be one of {', '.join(NEEDS)}"

    def test_options_can_be_typed_and_recorded(self) -> None:
        """Options is a frozen dataclass that offers what every objective offers, and run.toml can
        hold it.
        """
        made: Any = self.load().Options
        assert issubclass(made, ObjectiveOptions), "Options must subclass ObjectiveOptions"
        frozen = made.__dataclass_params__.frozen
        assert frozen, "Options must be a frozen dataclass"
        assert opts.from_dict(made, opts.to_dict(made())) == made()
        assert all(spec.help for spec in opts.describe(made)), "every option needs a help text"

    def test_what_it_cannot_describe_is_refused_in_words(self) -> None:
        """Statistics are those of Gaussian noise, and of one density for all or for each
        conformation: other parts get a reason, those that it is tested with none.
        """
        cls = self.load()
        assert cls.reason_against(self.classes()) is None
        if cls.needs == "images":
            return
        other = Deformation if issubclass(self.classes()["deformation"], SharedDensity) else None
        wrong: dict[str, type | None] = {"likelihood": Likelihood, "deformation": other}
        for kind, part in wrong.items():
            if part is None:
                continue
            reason = cls.reason_against({**self.classes(), kind: part})
            assert reason, f"{kind} {part.__name__} is not refused"
            assert kind in reason, f"'{reason}' does not say that the {kind} is to blame"

    @law
    def test_loss_reaches_every_parameter(self, case: Case) -> None:
        """The loss is one finite number, and no part that learns is cut off from it."""
        model = stir(self.model(case), case.generator()).train()
        objective = self.make(case, model)
        loss = objective(model, case.generator())
        assert loss.shape == () and loss.isfinite(), f"the loss is {loss}"
        loss.backward()
        groups = model.parameter_groups()
        for group in groups:
            gradients = [p.grad for p in group["params"]]
            reached = [g for g in gradients if g is not None and g.abs().max() > 0]
            assert reached, f"no gradient reaches the {group['part']}"
            assert all(g.isfinite().all() for g in reached)

    @law
    def test_the_start_is_worth_nothing(self, case: Case) -> None:
        """The held-out likelihood counts from an empty map, which a new average is."""
        if not self.starts_empty:
            return
        objective = self.make(case, self.model(case))
        assert abs(objective.held_out()) < 1e-3
        assert float(objective.map().abs().max()) < 1e-6

    @law
    def test_an_average_without_memory_is_the_present(self, case: Case) -> None:
        """average <- decay · average + (1 - decay) · now; of decay 1 it stays as it is."""
        model = stir(self.model(case), case.generator(), 0.3).train()
        objective = self.make(case, model)
        objective.jitter = 0.0
        with torch.no_grad():
            objective(model, case.generator())
        objective.follow(model, 0.0)
        now = objective.map()
        assert now.shape == (case.box,) * 3
        assert difference(now, model.raster()) < 1e-5
        stir(model, case.generator(), 0.3)
        with torch.no_grad():
            objective(model, case.generator())
        objective.follow(model, 1.0)
        assert difference(objective.map(), now) < 1e-6

    @law
    def test_state_dict_holds_all_that_changes(self, case: Case) -> None:
        """An objective that is given the state of another one does from then on what that one does,
        to the last bit, and what that one does changes the state no more.
        """
        model = stir(self.model(case), case.generator()).train()
        objective = self.make(case, model)
        generator = case.generator()
        for _ in range(2):
            self.advance(objective, model, generator)
        objective.retry()
        state = objective.state_dict()
        twin = self.make(case, self.model(case, seed=1))
        ours = generator.get_state()
        after = [self.advance(objective, model, generator) for _ in range(3)]
        held_out = objective.held_out()
        twin.load_state_dict(state)
        generator.set_state(ours)
        again = [self.advance(twin, model, generator) for _ in range(3)]
        assert torch.equal(torch.stack(again), torch.stack(after)), "the next losses differ"
        assert twin.held_out() == held_out, "the held-out likelihood differs"
        assert torch.equal(twin.map(), objective.map()), "the map differs"
        assert twin.retry() == objective.retry(), "only one of them has something left to try"

    @law
    def test_stopped_and_resumed_equals_not_stopped(self, case: Case) -> None:
        """From each checkpoint, put into a file and read back, a fit of another random start comes
        to the same map, parameters and evaluations, to the last bit.
        """
        recorder = Recorder()
        whole, model = self.fit(case, checkpoints=recorder)
        for checkpoint in recorder.checkpoints:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "checkpoint.npz"
                checkpoint.save(path)
                loaded = Checkpoint.load(path)
            resumed, twin = self.fit(case, seed=1, resume=loaded)
            assert _compared(resumed) == _compared(whole)
            assert torch.equal(resumed.map, whole.map), "the map differs"
            values = twin.state_dict()
            for name, value in model.state_dict().items():
                assert torch.equal(value, values[name]), f"parameter {name} differs"

    @law
    def test_a_step_can_be_taken_on_another_device(self, case: Case) -> None:
        """Model and objective that are moved to a device keep nothing behind."""
        model = stir(self.model(case), case.generator()).train()
        objective = self.make(case, model)
        with pretended_device() as device:
            model.to(device)
            assert objective.to(device) is objective
            loss = objective(model, case.generator())
            assert loss.device == device, f"the loss is on {loss.device}"
            loss.backward()
            objective.follow(model, 0.5)
            assert objective.map().device == device if self._has_plain_map(objective) else True
            _reaches_a_number(objective.held_out)

    def _has_plain_map(self, objective: Objective) -> bool:
        """Whether the average is a map; rasters of a model choose voxels by their values."""
        return isinstance(objective.average_state(), Tensor)


def _compared(result: FitResult) -> list[tuple]:
    """What two fits have in common if they are the same: all of their evaluations but the time."""
    return [(e.step, e.loss, e.held_out, e.best, e.stage) for e in result.evaluations]


def _reaches_a_number(function: Callable[[], float]) -> None:
    """Calls what ends in a number, which a pretended device does not have."""
    try:
        function()
    except DataDependentOutputException:
        return
