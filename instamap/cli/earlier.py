"""Spellings of version 0.1 that are still understood, each with a line that says the new one.

--engine was both what is now --objective and what is now --workflow; -E set the options of either.
"""

import inspect
from dataclasses import replace
from typing import Annotated, Any

import typer

from instamap.cli.terminal import tell
from instamap.workflows import earlier_record
from instamap.workflows.earlier_record import Translation, kind_of_old_name, kind_of_option
from instamap.workflows.read_settings import Typed

GROUP_BY = typer.Option("--together", hidden=True)


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
    _tell(translation)
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
        kind, name = kind_of_old_name(engine)
        translation.add(f"--engine {engine}", f"--{kind} {name}")
        names[kind] = names.get(kind) or name
    words: dict[str, list[str]] = {}
    for item in values.get("engine_options") or []:
        kind, word = kind_of_option(item)
        flag = "-O" if kind == "objective" else "-W"
        translation.add(f"-E {item}", f"{flag} {word}")
        words.setdefault(kind, []).append(word)
    for kind, earlier_words in words.items():
        options[kind] = [*earlier_words, *options.get(kind, [])]
    earlier_column = values.get("earlier_group_by")
    if earlier_column is not None:
        plain["group_by"] = _group_by(plain.get("group_by"), earlier_column, translation)
    _tell(translation)
    return replace(typed, plain=plain, names=names, options=options)


def translated_record(record: dict[str, Any], where: str) -> dict[str, Any]:
    """A run.toml of version 0.1, from the file `where`, in today's words; one line tells it."""
    new, translation = earlier_record.translated(record, where)
    if translation.earlier:
        tell(
            f"note: '{where}' is of version 0.1: {', '.join(translation.earlier)} are read as"
            f" {', '.join(translation.today)}"
        )
    return new


def _tell(translation: Translation) -> None:
    """Tells in one line how all of it is written now."""
    if translation.earlier:
        words = " ".join(translation.earlier)
        tell(f"note: {words} is now written {' '.join(translation.today)}")
