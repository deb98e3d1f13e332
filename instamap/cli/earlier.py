"""Spellings of version 0.1 that are still understood, each with a line that says the new one.

--engine was both what is now --objective and what is now --workflow; -E set the options of either.
"""

import inspect
from dataclasses import replace
from typing import Annotated, Any

import typer

from instamap.errors import OptionError
from instamap.workflows.read_settings import Given

OBJECTIVES = ("normal", "images")
WORKFLOWS = {"states": "motion", "poses": "poses"}
RENAMED = {"look": "evaluate_every"}
OF_WORKFLOWS = ("coarse", "dimensions", "nodes", "rounds", "newton")


def flags(command: str) -> list[inspect.Parameter]:
    """The hidden flags of a command for earlier spellings."""
    if command == "accumulate":
        return [_hidden("together", "--together", str | None)]
    both = [_hidden("engine", "--engine", str | None), _hidden("e", "-E", list[str] | None)]
    return both if command == "fit" else [*both, _hidden("together", "--together", str | None)]


def _hidden(name: str, flag: str, kind: Any) -> inspect.Parameter:
    option = typer.Option(flag, hidden=True)
    annotation = Annotated[kind, option]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def translated(given: Given, values: dict[str, Any]) -> Given:
    """What was typed, with earlier spellings in today's words; a line says each."""
    together = values.get("together")
    if together is not None:
        _tell("--together", "--group-by")
        given = replace(given, plain={**given.plain, "group_by": together})
    engine = values.get("engine")
    items = values.get("e") or []
    if engine is None and not items:
        return given
    names = dict(given.names)
    options = {kind: list(words) for kind, words in given.options.items()}
    if engine is not None:
        kind, name = _engine(engine)
        _tell(f"--engine {engine}", f"--{kind} {name}")
        names[kind] = name
    for item in items:
        kind, word = _option(item)
        _tell(f"-E {item}", f"{'-O' if kind == 'objective' else '-W'} {word}")
        options[kind] = [*options.get(kind, []), word]
    return replace(given, names=names, options=options)


def translated_record(record: dict[str, Any]) -> dict[str, Any]:
    """A run.toml of version 0.1 in today's words."""
    new = dict(record)
    if "together" in new:
        new["group_by"] = new.pop("together")
    new.update(new.pop("preprocess", {}))
    table = dict(new.pop("engine", {}))
    name = table.pop("name", "auto")
    if name == "auto":
        return new
    kind, chosen = _engine(name)
    new[kind] = {"name": chosen}
    if kind == "workflow":
        new["objective"] = {"name": "conformations" if chosen == "motion" else "normal"}
    for key, value in table.items():
        target, word = _option(f"{key}=")
        if target == "objective" or kind == "workflow":
            new[target][word.rstrip("=")] = value
    return new


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


def _tell(old: str, new: str) -> None:
    typer.echo(f"note: {old} is now written {new}", err=True)
