"""One run for a person: settings from what was typed, the API, and the outcome in words."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instamap.cli.terminal import show, tell
from instamap.errors import InstamapError, OptionError, line_of
from instamap.plugin.choice import load_class
from instamap.plugin.options import to_dict
from instamap.workflows.read_settings import Typed

if TYPE_CHECKING:
    from instamap.cli.progress_bars import ProgressBars
    from instamap.cli.progress_lines import QuietProgress
    from instamap.fitting.stage import Stage
    from instamap.progress import Progress
    from instamap.workflows.processes import Processes
    from instamap.workflows.result import Result
    from instamap.workflows.settings import Settings


def with_plain(typed: Typed, **values: Any) -> Typed:
    """What was typed, with plain settings that are arguments of the command."""
    return replace(typed, plain={**typed.plain, **values})


@dataclass(frozen=True)
class Place:
    """Where a run is written: a folder, which may hold a run (force) or a stopped one (resume).

    quiet, json: what is told while it runs is nothing, or JSON lines. Raises OptionError for both.
    """

    out: Path
    force: bool = False
    resume: bool = False
    quiet: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        if self.quiet and self.json:
            raise OptionError("--quiet and --json exclude each other; give one of them")

    def progress(self, introduction: list[str]) -> "ProgressBars | QuietProgress":
        """The listener to which the run tells how it goes, after an introduction."""
        from instamap.cli.progress_bars import ProgressBars
        from instamap.cli.progress_lines import ProgressLines, QuietProgress

        if self.quiet:
            return QuietProgress()
        if self.json:
            return ProgressLines(introduction)
        return ProgressBars(introduction)


def run(config: Path | None, typed: Typed, place: Place) -> None:
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


def run_record(record: Mapping[str, Any], typed: Typed, place: Place) -> None:
    """Carries out what was typed over a record of earlier settings; says what was found."""
    from instamap.workflows.read_settings import automatic_kinds, read_settings

    settings = read_settings(record, typed)
    automatic = automatic_kinds(record, typed)
    run_settings(settings, place, automatic)


def run_settings(settings: "Settings", place: Place, automatic: list[str] | None = None) -> None:
    """Carries out resolved settings and says what was found, once all is written.

    What steps have done is kept meanwhile, so that a run that is stopped can be resumed.
    """
    from instamap.workflows import processes, shared_statistics, team
    from instamap.workflows.choose import resolve

    with processes.joined() as together:
        if together is None:
            _run_alone(settings, place, automatic or [])
        elif together.leads:
            shared_statistics.check(resolve(settings), place.resume, together)
            _run_alone(settings, place, automatic or [])
            team.dismiss(together)
        else:
            _work_for_another(settings, together)


def _work_for_another(settings: "Settings", together: "Processes") -> None:
    """Does this process's share of a run that another writes; tells nothing but what is wrong with
    that share.
    """
    from instamap.workflows import team
    from instamap.workflows.processes import LostProcess

    try:
        team.contribute(together, settings)
    except LostProcess:  # who has said why
        sys.exit(1)
    except InstamapError as error:
        where = f"process {together.rank + 1} of {together.count}"
        tell(f"error: {where}: {line_of(error)}")
        raise


def _run_alone(settings: "Settings", place: Place, automatic: list[str]) -> None:
    """Carries out resolved settings in this process, which fits and writes."""
    from instamap.workflows import api, output
    from instamap.workflows.result import run_folder

    out = place.out
    kind = run_folder(settings)
    bars = place.progress(introduction(settings, automatic))
    with (
        output.reserve(out, kind, place.force, settings.input_files()) as folder,
        bars,
        kept(place, settings.record(), bars) as progress,
    ):
        result = api.run(settings, progress)
        result.write(folder)
    for line in conclusion(result, out):
        show(line)


@contextmanager
def kept(place: Place, asked: Mapping[str, Any], listener: "Progress") -> Iterator["Progress"]:
    """A listener that keeps what steps of the block have done, until the block ends.

    asked: settings on which all that is kept depends. If the block is stopped, what was kept stays,
    and a line says how to go on.
    """
    from instamap.workflows import resume

    progress = resume.keep_in(place.out, asked, place.resume, listener)
    try:
        yield progress
    except BaseException:
        if resume.forget_unless_something_is_kept(place.out):
            tell(f"what was done is kept in '{place.out}': the same command with --resume goes on")
        raise
    resume.forget(place.out)


def introduction(settings: "Settings", automatic: list[str]) -> list[str]:
    """What slows the run down, if anything, what was chosen, and the stages, in lines.

    automatic: kinds of parts that nobody has named.
    """
    from instamap.geometry import compiled

    note = compiled.note()
    lines = [note] if note else []
    for name, value in settings.special().items():
        lines.append(_line(name, value))
    lines += _lines_of_parts(settings, automatic)
    for number, stage in enumerate(settings.stages or (), 1):
        lines.append(_line(f"stage {number}", _changed(stage)))
    return lines


def _lines_of_parts(settings: "Settings", automatic: list[str]) -> list[str]:
    """A line for each part, with its options."""
    lines = []
    for kind, choice in settings.choices().items():
        if kind == "forward" and _has_exact_slices(settings):
            assert settings.objective is not None
            lines.append(
                _line(
                    kind,
                    f"none: objective {settings.objective.name} has exact Fourier slices;"
                    f" {choice.name} and its options play no part",
                )
            )
            continue
        name = f"{choice.name} (auto)" if kind in automatic else choice.name
        lines.append(_line(kind, f"{name}  {_words(to_dict(choice.options))}"))
    return lines


def _has_exact_slices(settings: "Settings") -> bool:
    """Whether the objective images the map by Fourier slices, without a forward operator."""
    if settings.objective is None:
        return False
    return load_class("objective", settings.objective.name).needs != "images"


def _changed(stage: "Stage") -> str:
    """The options of a stage that are not the usual ones."""
    usual = to_dict(type(stage)())
    changed = {key: value for key, value in to_dict(stage).items() if value != usual[key]}
    return _words(changed) or "all parts learn"


def _words(options: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in options.items())


def _line(name: str, value: object) -> str:
    return f"{name:15} {value}".rstrip()


def conclusion(result: "Result", out: Path) -> list[str]:
    """What was found and where it is, in lines for a person."""
    files = ", ".join(sorted(result.files()))
    return [*result.summary(), f"maps and records in {out}/: {files}"]
