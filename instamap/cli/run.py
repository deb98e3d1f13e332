"""One run for a person: settings from what was typed, the API, and the outcome in words."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instamap.cli.terminal import show, tell
from instamap.workflows.read_settings import Given

if TYPE_CHECKING:
    from instamap.workflows.result import Result
    from instamap.workflows.settings import Settings


def with_plain(typed: Given, **values: Any) -> Given:
    """What was typed, with plain settings that are arguments of the command."""
    return replace(typed, plain={**typed.plain, **values})


@dataclass(frozen=True)
class Place:
    """Where a run is written: a folder, which may hold a run (force) or a stopped one (resume)."""

    out: Path
    force: bool = False
    resume: bool = False


def run(config: Path | None, typed: Given, place: Place) -> None:
    """Carries out what was typed over an earlier run's settings; says what was found."""
    typed.check_names()  # before anything that takes its time is imported
    from instamap.cli.earlier import translated_record
    from instamap.toml_text import read_toml
    from instamap.workflows.settings import check_record

    record: dict[str, Any] = {}
    if config is not None:
        record = translated_record(read_toml(config), str(config))
        check_record(record, str(config))
    run_record(record, typed, place)


def run_record(record: Mapping[str, Any], typed: Given, place: Place) -> None:
    """As `run`, with the earlier settings as a record."""
    from instamap.workflows.read_settings import read_settings

    run_settings(read_settings(record, typed), place, _automatic(record, typed))


def _automatic(record: Mapping[str, Any], typed: Given) -> list[str]:
    """The kinds that nobody has chosen."""
    kinds = ("workflow", "objective")
    named = {kind: typed.names.get(kind) or record.get(kind, {}).get("name") for kind in kinds}
    return [kind for kind, name in named.items() if name in (None, "auto")]


def run_settings(settings: "Settings", place: Place, automatic: list[str] | None = None) -> None:
    """Carries out resolved settings and says what was found, once all is written.

    What steps have done is kept meanwhile, so that a run that is stopped can be resumed.
    """
    from instamap.cli.progress_bars import ProgressBars
    from instamap.workflows import api, output, resume
    from instamap.workflows.result import run_folder

    out = place.out
    kind = run_folder(settings)
    bars = ProgressBars(introduction(settings, automatic or []))
    with output.reserve(out, kind, place.force, settings.input_files()) as folder, bars:
        progress = resume.keep_in(out, settings, place.resume, bars)
        try:
            result = api.run(settings, progress)
            result.write(folder)
        except BaseException:
            if resume.forget_unless_something_is_kept(out):
                tell(f"what was done is kept in '{out}': the same command with --resume goes on")
            raise
        resume.forget(out)
    for line in conclusion(result, out):
        show(line)


def introduction(settings: "Settings", automatic: list[str]) -> list[str]:
    """What slows the run down, if anything, what was chosen, and the stages, in lines."""
    from instamap.geometry import compiled
    from instamap.plugin.options import to_dict

    objective = settings.objective.name if settings.objective else ""
    slices = _has_slices(settings)
    note = compiled.note()
    lines = [note] if note else []
    for name, value in settings.special().items():
        lines.append(f"{name:15} {value}")
    for kind, choice in settings.choices().items():
        options = " ".join(f"{k}={v}" for k, v in to_dict(choice.options).items())
        if kind == "forward" and slices:
            lines.append(
                f"{kind:15} none: objective {objective} has exact Fourier slices; {choice.name} and"
                " its options play no part"
            )
            continue
        how = " (auto)" if kind in automatic else ""
        lines.append(f"{kind:15} {choice.name}{how}  {options}".rstrip())
    for number, stage in enumerate(settings.stages or (), 1):
        usual = to_dict(type(stage)())
        changed = [f"{k}={v}" for k, v in to_dict(stage).items() if v != usual[k]]
        lines.append(f"{f'stage {number}':15} {' '.join(changed) or 'all parts learn'}")
    return lines


def _has_slices(settings: "Settings") -> bool:
    """Whether the objective images the map by exact Fourier slices, without a forward operator."""
    from instamap.plugin.choice import load_class

    if settings.objective is None:
        return False
    return load_class("objective", settings.objective.name).needs != "images"


def conclusion(result: "Result", out: Path) -> list[str]:
    """What was found and where it is, in lines for a person."""
    files = ", ".join(sorted(result.files()))
    return [*result.summary(), f"maps and records in {out}/: {files}"]
