"""Flags of commands, made from the schema of settings: a new setting needs no line here."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from instamap.cli import earlier
from instamap.workflows.read_settings import Typed
from instamap.workflows.settings import (
    PREPROCESS,
    SETTING,
    SettingFacts,
    fields_of_command,
    plain_settings,
)

# Headings of the help, under which options stand.
PARTICLES = "PARTICLES"
IMAGES = "IMAGES (what is done to each as it is read, in this order)"
PARTS = "PARTS (see `instamap parts`, and `instamap describe KIND NAME` for the options of one)"

OPTION = "One of its options; repeatable."
NOT_FLAGS = ("particles", "statistics")  # arguments of commands
TYPED = "typed"  # the parameter of a command that takes what was typed of the settings


def with_settings(command: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command, which takes `typed`, a flag for each setting that goes with its name.

    The command's own parameters come first; `typed` is what a person typed of the settings.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        every = inspect.signature(function).parameters.values()
        own = [parameter for parameter in every if parameter.name != TYPED]
        flags = _flags(command)

        def with_flags(**values: Any) -> None:
            of_settings = {flag.name: values.pop(flag.name) for flag in flags}
            function(**values, **{TYPED: _typed(command, of_settings)})

        parameters = [_keyword(parameter) for parameter in (*own, *flags)]
        signature = inspect.Signature(parameters)
        with_flags.__signature__ = signature  # type: ignore[attr-defined]
        with_flags.__annotations__ = {one.name: one.annotation for one in parameters}
        with_flags.__name__ = function.__name__
        with_flags.__doc__ = function.__doc__
        with_flags.__module__ = function.__module__
        return with_flags

    return decorate


def _keyword(parameter: inspect.Parameter) -> inspect.Parameter:
    return parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)


def _flags(command: str) -> list[inspect.Parameter]:
    """A parameter for each flag: of plain settings, of parts and their options, of stages."""
    types = {spec.field: spec.type for spec in plain_settings()}
    flags = []
    for field in fields_of_command(command):
        if field.name in NOT_FLAGS:
            continue
        facts = field.metadata[SETTING]
        words = f"{field.metadata['help']}  [default: {facts.default_words}]"
        if facts.kind is None:
            panel = _panel(facts, command)
            flags.append(_plain(field.name, types[field.name], facts, words, panel))
        elif facts.kind == "stage":
            flags.append(_many(field.name, facts.flag, facts.metavar, words))
        else:
            flags.append(_one(field.name, facts.flag, words))
            name = _options_name(field.name)
            flags.append(_many(name, facts.options_flag, "KEY=VALUE", OPTION))
    return [*flags, *earlier.flags(command)]


def _panel(facts: SettingFacts, command: str) -> str | None:
    """The heading of a plain setting's flag; None: with the command's own."""
    if command == PREPROCESS or facts.role not in ("place", "data"):
        return None
    of_images = facts.role == "data" and PREPROCESS in facts.commands
    return IMAGES if of_images else PARTICLES


def _plain(
    name: str, kind: Any, facts: SettingFacts, words: str, panel: str | None
) -> inspect.Parameter:
    flag = facts.flag or "--" + name.replace("_", "-")
    option = typer.Option(
        flag, help=words, metavar=facts.metavar, rich_help_panel=panel, show_default=False
    )
    return _parameter(name, Annotated[kind | None, option])


def _one(name: str, flag: str, words: str) -> inspect.Parameter:
    option = typer.Option(
        flag, help=words, metavar="NAME", rich_help_panel=PARTS, show_default=False
    )
    return _parameter(name, Annotated[str | None, option])


def _many(name: str, flag: str, metavar: str | None, words: str) -> inspect.Parameter:
    option = typer.Option(
        flag, help=words, metavar=metavar, rich_help_panel=PARTS, show_default=False
    )
    return _parameter(name, Annotated[list[str] | None, option])


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _options_name(kind: str) -> str:
    return f"{kind}_options"


def _typed(command: str, values: dict[str, Any]) -> Typed:
    """What was typed of the settings."""
    plain = {}
    names = {}
    options = {}
    stages: list[str] = []
    for field in fields_of_command(command):
        kind = field.metadata[SETTING].kind
        if field.name in NOT_FLAGS:
            continue
        if kind is None:
            plain[field.name] = values[field.name]
        elif kind == "stage":
            stages = values[field.name] or []
        else:
            names[kind] = values[field.name]
            options[kind] = values[_options_name(field.name)] or []
    return earlier.translated(Typed(plain, names, options, stages), values)


def seed_range() -> tuple[float, float]:
    """The least and the largest seed."""
    spec = next(spec for spec in plain_settings() if spec.field == "seed")
    assert spec.low is not None and spec.high is not None
    return spec.low, spec.high
