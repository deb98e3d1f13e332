"""Spellings of version 0.1 that are still understood, each with a line that says the new one.

--engine was both what is now --objective and what is now --workflow; -E set the options of either.
"""

import inspect
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import typer

from instamap.cli.terminal import tell
from instamap.errors import OptionError
from instamap.workflows.read_settings import Typed

OBJECTIVES = ("normal", "images")
WORKFLOWS = {"states": "motion", "poses": "poses"}
OBJECTIVE_OF = {"motion": "conformations", "poses": "normal"}
RENAMED = {"look": "evaluate_every"}
OF_WORKFLOWS = ("coarse", "dimensions", "nodes", "rounds", "newton")
GROUP_BY = typer.Option("--together", hidden=True)


@dataclass
class Translation:
    """Earlier words and today's, of one command line or one file."""

    earlier: list[str] = field(default_factory=list)
    today: list[str] = field(default_factory=list)

    def add(self, earlier: str, today: str) -> None:
        """Notes that something is written in another way now."""
        self.earlier.append(earlier)
        self.today.append(today)

    def tell(self) -> None:
        """Tells in one line how all of it is written now."""
        if self.earlier:
            words = " ".join(self.earlier)
            tell(f"note: {words} is now written {' '.join(self.today)}")


def flags(command: str) -> list[inspect.Parameter]:
    """The hidden flags of a command for earlier spellings."""
    engine = _hidden("engine", typer.Option("--engine", hidden=True), str | None)
    option = _hidden("engine_options", typer.Option("-E", hidden=True), list[str] | None)
    group_by = _hidden("earlier_group_by", GROUP_BY, str | None)
    return {
        "reconstruct": [engine, option, group_by],
        "accumulate": [group_by],
        "fit": [engine, option],
    }.get(command, [])


def _hidden(name: str, option: Any, kind: Any) -> inspect.Parameter:
    annotation = Annotated[kind, option]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def group_by(column: str | None, earlier_column: str | None) -> str | None:
    """The column of --group-by, or of --together, of which a line is told."""
    translation = Translation()
    chosen = _group_by(column, earlier_column, translation)
    translation.tell()
    return chosen


def _group_by(
    column: str | None, earlier_column: str | None, translation: Translation
) -> str | None:
    if earlier_column is None:
        return column
    translation.add(f"--together {earlier_column}", f"--group-by {earlier_column}")
    return earlier_column if column is None else column


def translated(typed: Typed, values: dict[str, Any]) -> Typed:
    """What was typed, with earlier spellings in today's words; one line tells all of them.

    What was typed in today's words wins. values: of the hidden flags too, by name.
    """
    translation = Translation()
    plain = dict(typed.plain)
    names = dict(typed.names)
    options = {kind: list(words) for kind, words in typed.options.items()}
    engine = values.get("engine")
    if engine is not None:
        kind, name = _engine(engine)
        translation.add(f"--engine {engine}", f"--{kind} {name}")
        names[kind] = names.get(kind) or name
    words: dict[str, list[str]] = {}
    for item in values.get("engine_options") or []:
        kind, word = _option(item)
        flag = "-O" if kind == "objective" else "-W"
        translation.add(f"-E {item}", f"{flag} {word}")
        words.setdefault(kind, []).append(word)
    for kind, earlier_words in words.items():
        options[kind] = [*earlier_words, *options.get(kind, [])]
    earlier_column = values.get("earlier_group_by")
    if earlier_column is not None:
        plain["group_by"] = _group_by(plain.get("group_by"), earlier_column, translation)
    translation.tell()
    return replace(typed, plain=plain, names=names, options=options)


def translated_record(record: dict[str, Any], where: str) -> dict[str, Any]:
    """A run.toml of version 0.1, from the file `where`, in today's words; one line tells it."""
    translation = Translation()
    new = dict(record)
    if "together" in new:
        new["group_by"] = new.pop("together")
        translation.add("together", "group_by")
    if isinstance(new.get("preprocess"), dict):
        steps = new.pop("preprocess")
        new.update(steps)
        translation.add("[preprocess]", " ".join(steps))
    if isinstance(new.get("engine"), dict):
        tables = _tables_of_engine(new.pop("engine"), where)
        new.update(tables)
        translation.add("[engine]", " ".join(f"[{kind}]" for kind in tables) or "nothing (auto)")
    if translation.earlier:
        tell(
            f"note: '{where}' is of version 0.1: {', '.join(translation.earlier)} are read as"
            f" {', '.join(translation.today)}"
        )
    return new


def _tables_of_engine(engine: dict[str, Any], where: str) -> dict[str, dict[str, Any]]:
    """The tables "objective" and "workflow" for a table "engine" of version 0.1.

    Raises OptionError for options of an engine that is not named.
    """
    options = dict(engine)
    name = options.pop("name", "auto")
    if name == "auto" and options:
        raise OptionError(
            f"table [engine] in '{where}' sets {', '.join(options)} but names no engine; write"
            f' name = "..." into it ({", ".join((*OBJECTIVES, *WORKFLOWS))})'
        )
    if name == "auto":
        return {}
    kind, chosen = _engine(name)
    tables = {kind: {"name": chosen}}
    if kind == "workflow":
        tables["objective"] = {"name": OBJECTIVE_OF[chosen]}
    for key, value in options.items():
        target, word = _option(key)
        if target in tables:
            tables[target][word] = value
    return tables


def _engine(name: str) -> tuple[str, str]:
    """The kind and the name that an engine of version 0.1 has now."""
    if name in WORKFLOWS:
        return "workflow", WORKFLOWS[name]
    if name in OBJECTIVES or name == "auto":
        return "objective", name
    allowed = ", ".join((*OBJECTIVES, *WORKFLOWS))
    raise OptionError(
        f"engine '{name}' is unknown; engines are now objectives and workflows: choose --objective"
        f" or --workflow (version 0.1 had {allowed})"
    )


def _option(item: str) -> tuple[str, str]:
    """The kind that has an option of an engine now, and how it is written."""
    key, equals, value = item.partition("=")
    word = RENAMED.get(key, key) + equals + value
    return ("workflow" if key in OF_WORKFLOWS else "objective"), word
