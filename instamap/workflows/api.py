"""The Python front door: `reconstruct`, `accumulate`, `fit` and `load`; the command line calls it.

The settings that each function takes are those of `Settings` for the command of its name.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from instamap.errors import OptionError
from instamap.geometry import compiled
from instamap.plugin.choice import load_class
from instamap.plugin.registry import default
from instamap.progress import SILENT, Progress
from instamap.workflows import shards
from instamap.workflows.choose import resolve
from instamap.workflows.load_result import load_result
from instamap.workflows.result import Result
from instamap.workflows.settings import ACCUMULATE, FIT, RECONSTRUCT, Settings, fields_of_command
from instamap.workflows.shard import Shard
from instamap.workflows.statistics_folder import StatisticsFolder

Function = TypeVar("Function", bound=Callable[..., Any])


def takes_settings(command: str) -> Callable[[Function], Function]:
    """Gives a function that ends in `**settings` the signature of `Settings` for a command."""

    def with_signature(function: Function) -> Function:
        own = list(inspect.signature(function).parameters.values())[:-1]
        known = {parameter.name for parameter in own}
        added = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=field.type,
            )
            for field in fields_of_command(command)
            if field.name not in known
        ]
        returns = inspect.signature(function).return_annotation
        signature = inspect.Signature([*own, *added], return_annotation=returns)
        function.__signature__ = signature  # type: ignore[attr-defined]
        return function

    return with_signature


def run(settings: Settings, progress: Progress = SILENT) -> Result:
    """Carries out settings by their workflow. Raises InstamapError."""
    resolved = resolve(settings)
    assert resolved.workflow is not None
    default().hook.instamap_run_started(settings=resolved.record())
    workflow = load_class("workflow", resolved.workflow.name)(resolved.workflow.options)
    with compiled.reporting_compilation(progress.message):
        return workflow.run(resolved, progress)


@takes_settings(RECONSTRUCT)
def reconstruct(particles: str | Path, *, progress: Progress = SILENT, **settings: Any) -> Result:
    """Reconstructs half maps, a map and its resolution, a motion or corrected poses.

    particles: STAR file. Parts are given by name, by ("name", {"option": value}) or as a `Choice`.
    What comes back depends on the workflow: a `Result`, `MotionResult` or `PosesResult`; nothing is
    written until its `save(folder)`. Raises InstamapError.
    """
    _check_known(RECONSTRUCT, settings)
    return run(Settings(particles=Path(particles), **settings), progress)


@takes_settings(ACCUMULATE)
def accumulate(
    particles: str | Path,
    out: str | Path,
    *,
    shard: str = "1/1",
    force: bool = False,
    progress: Progress = SILENT,
    **settings: Any,
) -> StatisticsFolder:
    """Gathers statistics of particles, or of a shard of them, in the folder `out`, for any fits.

    The same call after an interruption goes on from there. Raises InstamapError.
    """
    _check_known(ACCUMULATE, settings)
    chosen = Settings(particles=Path(particles), **settings)
    part = Shard.parse(shard)
    with compiled.reporting_compilation(progress.message):
        return shards.accumulate(chosen, Path(out), shard=part, force=force, progress=progress)


@takes_settings(FIT)
def fit(statistics: str | Path, *, progress: Progress = SILENT, **settings: Any) -> Result:
    """Fits half maps to the statistics in a folder: what `reconstruct` makes of the images.

    Raises InstamapError.
    """
    _check_known(FIT, settings)
    own = StatisticsFolder.open(Path(statistics)).settings
    given = {field.name: getattr(own, field.name) for field in _every_field()}
    return run(Settings(**{**given, **settings}), progress)


def load(folder: str | Path) -> Result:
    """The result that `save` wrote to a folder. Raises DataError for a folder without one."""
    return load_result(Path(folder))


def _every_field() -> list[Any]:
    return list(Settings.__dataclass_fields__.values())


def _check_known(command: str, settings: dict[str, Any]) -> None:
    """Raises OptionError for a setting that the command does not take."""
    known = [field.name for field in fields_of_command(command)]
    for name, value in settings.items():
        if name not in known:
            raise OptionError(
                f"setting '{name}' ({value!r}) is unknown to {command}; choose {', '.join(known)}"
            )
