"""Flags of commands, made from the schema of settings: a new setting needs no line here."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from instamap.cli import earlier
from instamap.workflows.read_settings import Given
from instamap.workflows.settings import (
    SETTING,
    SettingFacts,
    fields_of_command,
    plain_settings,
)

PARTS = "PARTS (see `instamap parts`, and `instamap describe KIND NAME` for the options of one)"
NOT_FLAGS = ("particles", "statistics", "device")  # arguments of commands, or not chosen there


def with_settings(command: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command, which takes `given`, a flag for each setting that goes with its name.

    The command's own parameters come first; `given` is what a person typed of the settings.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(function).parameters.values() if p.name != "given"]
        flags = _flags(command)

        def typed(**values: Any) -> None:
            of_settings = {flag.name: values.pop(flag.name) for flag in flags}
            function(**values, given=_given(command, of_settings))

        parameters = [_keyword(parameter) for parameter in (*own, *flags)]
        typed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        typed.__annotations__ = {p.name: p.annotation for p in parameters}
        typed.__name__ = function.__name__
        typed.__doc__ = function.__doc__
        typed.__module__ = function.__module__
        return typed

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
            flags.append(_plain(field.name, types[field.name], facts, words))
        elif facts.kind == "stage":
            flags.append(_many(field.name, facts.flag, facts.metavar, words))
        else:
            flags.append(_one(field.name, facts.flag, words))
            option = f"Option of the {facts.kind}; repeatable."
            flags.append(_many(_options_name(field.name), facts.options_flag, "KEY=VALUE", option))
    return [*flags, *earlier.flags(command)]


def _plain(name: str, kind: Any, facts: SettingFacts, words: str) -> inspect.Parameter:
    flag = facts.flag or "--" + name.replace("_", "-")
    option = typer.Option(flag, help=words, metavar=facts.metavar, show_default=False)
    return _parameter(name, Annotated[kind | None, option])


def _one(name: str, flag: str, words: str) -> inspect.Parameter:
    option = typer.Option(flag, help=words, rich_help_panel=PARTS, show_default=False)
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


def _given(command: str, values: dict[str, Any]) -> Given:
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
    return earlier.translated(Given(plain, names, options, stages), values)


def seed_range() -> tuple[float, float]:
    """The least and the largest seed."""
    spec = next(spec for spec in plain_settings() if spec.field == "seed")
    assert spec.low is not None and spec.high is not None
    return spec.low, spec.high
