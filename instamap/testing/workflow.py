"""The laws of a workflow: what the front door and the command line rely on when they run one."""

import fnmatch
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from instamap.errors import OutputError
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

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A folder for the particles."""
        return tmp_path_factory.mktemp("workflow")

    @pytest.fixture(scope="class")
    def resolved(self, folder: Path) -> Settings:
        """The settings, with the workflow and its objective."""
        given = self.settings(folder)
        assert given.workflow is not None, "settings() names no workflow; give workflow=..."
        return resolve(given)

    @pytest.fixture(scope="class")
    def outcome(self, resolved: Settings, folder: Path) -> "tuple[Result, _Heard, set[Path]]":
        """One run: its result, what was heard of it, and the files that appeared meanwhile."""
        before = set(folder.rglob("*"))
        heard = _Heard()
        result = self._workflow(resolved).run(resolved, heard)
        return result, heard, set(folder.rglob("*")) - before

    def _workflow(self, settings: Settings) -> Workflow:
        assert settings.workflow is not None
        return load_class("workflow", self.name)(settings.workflow.options)

    def test_is_a_workflow(self) -> None:
        """The class is a Workflow whose options can be typed."""
        made = default().get("workflow", self.name).load()
        assert issubclass(made, Workflow), f"{made} is no instamap.Workflow"
        describe(made.Options)

    def test_what_is_unsuitable_is_said(self, folder: Path) -> None:
        """unsuitable() gives a reason in words, and resolve() refuses with it."""
        settings = self.unsuitable_settings(folder)
        reason = load_class("workflow", self.name).unsuitable(settings)
        assert isinstance(reason, str) and len(reason.split()) > 3, f"the reason is {reason!r}"

    def test_what_is_suitable_runs(self, resolved: Settings, outcome: Any) -> None:
        """unsuitable() has nothing against the settings, and run() gives a Result."""
        assert load_class("workflow", self.name).unsuitable(resolved) is None
        result = outcome[0]
        assert isinstance(result, Result), f"run() gave {result!r}, which is no instamap.Result"
        assert "map" in result.maps, "the result has no map called 'map'"
        for name, volume in result.maps.items():
            assert volume.isfinite().all(), f"map '{name}' is not finite"
            assert volume.shape == (result.scene.box,) * 3, f"map '{name}' is not in the box"

    def test_run_writes_nothing(self, outcome: Any) -> None:
        """No file appears before the result is saved."""
        assert not outcome[2], f"run() wrote {sorted(map(str, outcome[2]))}"

    def test_progress_is_told(self, outcome: Any) -> None:
        """Every evaluation that the result keeps was told to the listener, in the log's order."""
        result, heard, _ = outcome
        assert [entry["fit"] for entry in result.log] == heard.fits

    def test_files_are_those_that_save_writes(self, outcome: Any, tmp_path: Path) -> None:
        """files() names every file that save() writes, and the workflow's patterns match them."""
        result = outcome[0]
        result.save(tmp_path / "out")
        written = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert written == sorted(result.files())
        patterns = load_class("workflow", self.name).may_write
        strange = [n for n in written if not any(fnmatch.fnmatch(n, p) for p in patterns)]
        assert not strange, f"may_write has no pattern for {strange}"

    def test_a_result_is_not_replaced_unasked(self, outcome: Any, tmp_path: Path) -> None:
        """save() to a folder with a result is refused, and the earlier one stays to the letter."""
        result = outcome[0]
        result.save(tmp_path / "out")
        before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        with pytest.raises(OutputError):
            result.save(tmp_path / "out")
        assert before == {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        result.save(tmp_path / "out", force=True)

    def test_a_saved_result_can_be_loaded(self, outcome: Any, tmp_path: Path) -> None:
        """What is loaded has the maps, the verdict and the coordinates of what was saved."""
        result = outcome[0]
        result.save(tmp_path / "out")
        loaded = load_result(tmp_path / "out")
        assert type(loaded) is type(result)
        assert loaded.verdict == result.verdict
        for name, volume in result.maps.items():
            assert torch.equal(loaded.maps[name], volume.float()), f"map '{name}' differs"
        assert (loaded.latents is None) == (result.latents is None)

    def test_the_record_repeats_the_run(self, resolved: Settings, outcome: Any) -> None:
        """The settings that run.toml keeps give the same maps, bit for bit with one thread."""
        result = outcome[0]
        again = resolve(Settings.from_record(result.record()))
        assert again == resolved
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            first, second = (self._maps(settings) for settings in (resolved, again))
        finally:
            torch.set_num_threads(threads)
        for name, volume in first.items():
            assert torch.equal(volume, second[name]), f"map '{name}' differs"

    def _maps(self, settings: Settings) -> dict[str, Tensor]:
        return self._workflow(settings).run(settings).maps
