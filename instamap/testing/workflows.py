"""The laws of a workflow: what the front door and the command line rely on when they run one."""

import fnmatch
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from instamap.errors import CompositionError, OutputError
from instamap.plugin.choice import load_class
from instamap.plugin.options import describe
from instamap.plugin.registry import default
from instamap.progress import Progress
from instamap.workflows.choose import resolve
from instamap.workflows.load_result import load_result
from instamap.workflows.result import Result
from instamap.workflows.settings import Settings
from instamap.workflows.workflow import Workflow


class _Heard(Progress):
    """A listener that keeps the names of what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.fits: list[str] = []

    def message(self, line: str) -> None:
        self.lines.append(line)

    def evaluated(self, fit: str, evaluation: Any, steps: int) -> None:
        self.fits.append(fit)


@dataclass(frozen=True)
class Outcome:
    """A run: its settings and result, the fits that were heard of, the files that appeared."""

    settings: Settings
    result: Result
    fits: list[str]
    written: set[Path]


class WorkflowLaws(ABC):
    """Subclass it, name the workflow and give settings that it can carry out in seconds.

    The workflow runs a few times for all laws together.
    """

    name: ClassVar[str]

    @abstractmethod
    def settings(self, folder: Path) -> Settings:
        """Settings that the workflow can carry out, of small particles made in an empty folder."""

    @abstractmethod
    def unsuitable_settings(self, folder: Path) -> Settings:
        """Settings that it cannot carry out; the particles need not exist."""

    _runs: ClassVar[dict[type, Outcome]] = {}

    @pytest.fixture
    def outcome(self, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
        """One run for all laws of a class."""
        if type(self) not in self._runs:
            self._runs[type(self)] = self._run(tmp_path_factory.mktemp("workflow"))
        return self._runs[type(self)]

    def _run(self, folder: Path) -> Outcome:
        given = self.settings(folder)
        assert given.workflow is not None, "settings() names no workflow; give workflow=..."
        settings = resolve(given)
        before = set(folder.rglob("*"))
        heard = _Heard()
        result = self._workflow(settings).run(settings, heard)
        return Outcome(settings, result, heard.fits, set(folder.rglob("*")) - before)

    def _workflow(self, settings: Settings) -> Workflow:
        assert settings.workflow is not None
        return load_class("workflow", self.name)(settings.workflow.options)

    def test_is_a_workflow(self) -> None:
        """The class is a Workflow whose options can be typed."""
        made = default().get("workflow", self.name).load()
        assert issubclass(made, Workflow), f"{made} is no instamap.Workflow"
        describe(made.Options)

    def test_what_is_unsuitable_is_said(self, tmp_path: Path) -> None:
        """unsuitable() gives a reason in words, and resolve() refuses with it."""
        settings = self.unsuitable_settings(tmp_path)
        reason = load_class("workflow", self.name).unsuitable(settings)
        assert isinstance(reason, str) and len(reason.split()) > 3, f"the reason is {reason!r}"
        with pytest.raises(CompositionError, match=re.escape(reason)):
            resolve(settings)

    def test_what_is_suitable_runs(self, outcome: Outcome) -> None:
        """unsuitable() has nothing against the settings, and run() gives a Result."""
        assert load_class("workflow", self.name).unsuitable(outcome.settings) is None
        result = outcome.result
        assert isinstance(result, Result), f"run() gave {result!r}, which is no instamap.Result"
        assert "map" in result.maps, "the result has no map called 'map'"
        for name, volume in result.maps.items():
            assert volume.isfinite().all(), f"map '{name}' is not finite"
            assert volume.shape == (result.scene.box,) * 3, f"map '{name}' is not in the box"

    def test_run_writes_nothing(self, outcome: Outcome) -> None:
        """No file appears before the result is saved."""
        assert not outcome.written, f"run() wrote {sorted(map(str, outcome.written))}"

    def test_progress_is_told(self, outcome: Outcome) -> None:
        """Every evaluation that the result keeps was told to the listener, in the log's order."""
        assert [entry["fit"] for entry in outcome.result.log] == outcome.fits

    def test_files_are_those_that_save_writes(self, outcome: Outcome, tmp_path: Path) -> None:
        """files() names every file that save() writes, and the workflow's patterns match them."""
        result = outcome.result
        result.save(tmp_path / "out")
        written = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert written == sorted(result.files())
        patterns = load_class("workflow", self.name).may_write
        strange = [n for n in written if not any(fnmatch.fnmatch(n, p) for p in patterns)]
        assert not strange, f"may_write has no pattern for {strange}"

    def test_a_result_is_not_replaced_unasked(self, outcome: Outcome, tmp_path: Path) -> None:
        """save() to a folder with a result is refused, and the earlier one stays to the letter."""
        result = outcome.result
        result.save(tmp_path / "out")
        before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        with pytest.raises(OutputError):
            result.save(tmp_path / "out")
        assert before == {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        result.save(tmp_path / "out", force=True)

    def test_a_saved_result_can_be_loaded(self, outcome: Outcome, tmp_path: Path) -> None:
        """What is loaded has the maps, the verdict and the coordinates of what was saved."""
        result = outcome.result
        result.save(tmp_path / "out")
        loaded = load_result(tmp_path / "out")
        assert type(loaded) is type(result)
        assert loaded.verdict == result.verdict
        for name, volume in result.maps.items():
            assert torch.equal(loaded.maps[name], volume.float()), f"map '{name}' differs"
        assert (loaded.latents is None) == (result.latents is None)

    def test_the_record_repeats_the_run(self, outcome: Outcome) -> None:
        """The settings that run.toml keeps give the same maps, bit for bit with one thread."""
        result = outcome.result
        again = resolve(Settings.from_record(result.record()))
        assert again == outcome.settings
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            first, second = (self._maps(settings) for settings in (outcome.settings, again))
        finally:
            torch.set_num_threads(threads)
        for name, volume in first.items():
            assert torch.equal(volume, second[name]), f"map '{name}' differs"

    def _maps(self, settings: Settings) -> dict[str, Tensor]:
        return self._workflow(settings).run(settings).maps
