"""The contract kit itself, on workflows: each wrong one is caught by the laws beside it.

That the right ones pass is tested in tests/laws.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import pytest
import torch

from instamap import Artefact, Component, Result, Settings, Workflow, option
from instamap.maps import mask
from instamap.plugin.options import Options
from instamap.plugin.registry import default
from instamap.progress import SILENT
from instamap.simulate.particle_set import demo
from instamap.testing import WorkflowLaws
from instamap.testing.workflows import Outcome
from instamap.workflows.prepare import open_dataset
from instamap.workflows.record import LoggedProgress


class Ball(Workflow):
    """A ball in the box of the particles, whatever they show; each mutant overrides one step."""

    @dataclass(frozen=True)
    class Options(Options):
        radius: float = option(40.0, "radius of the ball", unit="Å", low=0.0)

    @classmethod
    def unsuitable(cls, settings):
        if settings.halves:
            return "it makes no half maps; turn them off"
        return None

    def run(self, settings, progress=SILENT):
        return self.result(settings, LoggedProgress(progress))

    def result(self, settings, logged):
        scene = open_dataset(settings).scene
        return Result(
            settings=settings,
            scene=scene,
            maps={"map": self.volume(scene)},
            fits={},
            fsc={},
            resolution=None,
            counts={"held_out": 0},
            mask_was_found=False,
            log=logged.entries,
        )

    def volume(self, scene):
        return mask.sphere(scene.box, scene.pixel_size, self.options.radius, 0.0)


class NoWorkflow:
    """Looks like one, and is none."""

    Options = Ball.Options
    objectives = Ball.objectives
    may_write = Ball.may_write
    expands_symmetry = Ball.expands_symmetry
    takes_focus = Ball.takes_focus
    takes_device = Ball.takes_device
    unsuitable = Ball.unsuitable
    reload = Ball.reload
    result = Ball.result
    volume = Ball.volume
    run = Ball.run

    def __init__(self, options):
        self.options = options


class OptionsThatCannotBeTyped(Ball):
    @dataclass(frozen=True)
    class Options(Options):
        radius: float = option(40.0, "radius of the ball", unit="Å", low=0.0)
        radii: list = option((), "radii of more of them")


class SaysNo(Ball):
    """Refuses without a reason that would help anybody."""

    @classmethod
    def unsuitable(cls, settings):
        return "no" if settings.halves else None


class RefusesNothing(Ball):
    @classmethod
    def unsuitable(cls, settings):
        return None


class RefusesWhatIsChosenForIt(Ball):
    """Lets settings through that name no objective, and not what becomes of them."""

    objectives = ("normal",)

    @classmethod
    def unsuitable(cls, settings):
        if settings.objective is not None:
            return "it takes no objective; leave --objective out"
        return super().unsuitable(settings)


class NotFinite(Ball):
    def volume(self, scene):
        return super().volume(scene).log()


class HalfOfTheBox(Ball):
    def volume(self, scene):
        return super().volume(scene)[: scene.box // 2]


class NamelessMap(Ball):
    def result(self, settings, logged):
        found = super().result(settings, logged)
        return replace(found, maps={"ball": found.maps["map"]})


class WritesInRun(Ball):
    """Leaves a note beside the particles."""

    def run(self, settings, progress=SILENT):
        note = settings.particles.with_name("note.txt")
        note.write_text("a ball", encoding="utf-8")
        return super().run(settings, progress)


class TellsNobody(Ball):
    """Keeps an evaluation in the log that nobody was told of."""

    def result(self, settings, logged):
        found = super().result(settings, logged)
        return replace(found, log=[{"fit": "ball", "step": 1}])


@dataclass(frozen=True)
class Note(Artefact):
    """A text beside the maps."""

    named: bool

    def files(self):
        return ["note.txt"] if self.named else []

    def write(self, folder):
        (folder / "note.txt").write_text("a ball", encoding="utf-8")


class LeavesAFileOut(Ball):
    may_write = (*Ball.may_write, "note.txt")

    def result(self, settings, logged):
        return replace(super().result(settings, logged), artefacts=(Note(named=False),))


class NoPatternForAFile(Ball):
    def result(self, settings, logged):
        return replace(super().result(settings, logged), artefacts=(Note(named=True),))


class Overwriting(Result):
    """Writes into any folder."""

    def save(self, folder, force=False):
        super().save(folder, force=True)


class ReplacesUnasked(Ball):
    def result(self, settings, logged):
        return Overwriting(**vars(super().result(settings, logged)))

    @classmethod
    def reload(cls, folder, result):
        return Overwriting(**vars(result))


class WithOpinion(Result):
    """A result with a verdict of its own."""

    @property
    def verdict(self):
        return "a fine ball"


class ForgetsWhatItFound(Ball):
    """What is loaded is a plain result."""

    def result(self, settings, logged):
        return WithOpinion(**vars(super().result(settings, logged)))


class FromGlobalRandomNumbers(Ball):
    def volume(self, scene):
        return super().volume(scene) * torch.rand(())


class RecordsOthers(Ball):
    """Says that it was run with another seed."""

    def result(self, settings, logged):
        return super().result(replace(settings, seed=settings.seed + 1), logged)


EVERY_LAW = {name.removeprefix("test_") for name in dir(WorkflowLaws) if name.startswith("test_")}
FILES = "files_are_those_that_save_writes"
LOADED = "a_saved_result_can_be_loaded"
RECORD = "the_record_repeats_the_run"
REPLACED = "a_result_is_not_replaced_unasked"
UNSUITABLE = "what_is_unsuitable_is_said"
SUITABLE = "what_is_suitable_runs"
SAVED = {FILES, REPLACED, LOADED}  # the laws of results that can be saved at all

# All that each breaks: a kit that caught everything would catch these too.
WRONG = {
    NoWorkflow: {"is_a_workflow"},
    OptionsThatCannotBeTyped: EVERY_LAW,
    SaysNo: {UNSUITABLE},
    RefusesNothing: {UNSUITABLE},
    RefusesWhatIsChosenForIt: {SUITABLE, RECORD},
    NotFinite: {SUITABLE, *SAVED},
    HalfOfTheBox: {SUITABLE, LOADED},
    NamelessMap: {SUITABLE, *SAVED},
    WritesInRun: {"run_writes_nothing"},
    TellsNobody: {"progress_is_told"},
    LeavesAFileOut: {FILES, REPLACED},
    NoPatternForAFile: {FILES},
    ReplacesUnasked: {REPLACED},
    ForgetsWhatItFound: {LOADED},
    FromGlobalRandomNumbers: {RECORD},
    RecordsOthers: {RECORD},
}


class Laws(WorkflowLaws):
    name = "ball"

    def settings(self, folder):
        star = demo(folder, count=40, box=16)
        return Settings(star, workflow="ball", halves=False)

    def unsuitable_settings(self, folder):
        return Settings(folder / "absent.star", workflow="ball")


@contextmanager
def registered(made: type) -> Iterator[None]:
    """The workflow has the name of a ball within the block."""
    registry = default()
    with mock.patch.dict(registry._parts):
        registry.register(Component("workflow", "ball", f"{__name__}:{made.__name__}", "a ball"))
        yield


def failed(made: type, folder: Path) -> set[str]:
    """The laws that a workflow breaks, without "test_"."""
    laws = Laws()
    with registered(made):
        outcome = outcome_of(laws, folder / "run")
        return {
            name
            for name in EVERY_LAW
            if not holds(getattr(laws, f"test_{name}"), outcome, folder / name)
        }


def outcome_of(laws: WorkflowLaws, folder: Path) -> Outcome | None:
    """What the laws look at; None where the workflow does not get that far."""
    try:
        return laws._run(folder)
    except Exception:  # a wrong workflow may fail in any way
        return None


def holds(law: Callable, outcome: Outcome | None, folder: Path) -> bool:
    folder.mkdir()
    available = {"outcome": outcome, "tmp_path": folder}
    arguments = {name: available[name] for name in inspect.signature(law).parameters}
    try:
        law(**arguments)
    except (Exception, pytest.fail.Exception):
        return False
    return True


def test_a_right_one_passes(tmp_path):
    assert failed(Ball, tmp_path) == set()


@pytest.mark.parametrize("made", WRONG)
def test_a_wrong_one_is_caught(made, tmp_path):
    assert failed(made, tmp_path) == WRONG[made]
