"""The command line: one command per file and those of plugins; a user's mistake is answered in one
line, with exit code 2.

Nothing here may import torch, numpy or matplotlib before a command needs them: help and listings
answer at once.
"""

import sys
from typing import Annotated

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from instamap import __version__
from instamap.cli import (
    accumulate,
    audit,
    demo,
    describe,
    fit,
    fsc,
    infer,
    merge,
    morph,
    parts,
    preprocess,
    reconstruct,
    select,
    simulate,
    states,
)
from instamap.errors import InstamapError, PartError
from instamap.plugin.registry import Registry, default

COMMANDS = (  # in the order of `instamap --help`
    reconstruct.reconstruct,
    preprocess.preprocess,
    accumulate.accumulate,
    merge.merge,
    fit.fit,
    states.states,
    infer.infer,
    select.select,
    audit.audit,
    morph.morph,
    simulate.simulate,
    demo.demo,
    fsc.fsc,
    parts.parts,
    describe.describe,
)
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Interrupted(Exception):
    """Ctrl-C, under a name that Typer lets through (it would leave without a word)."""


class Commands(TyperGroup):
    """The built-in commands, to which those of plugins are added."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted from None


class Command(TyperCommand):
    """A command whose help has a heading for each panel of options, in plain text: importing rich
    takes longer than all the rest.
    """

    def format_options(self, ctx, formatter):
        panels: dict[str, list] = {}
        for param in self.get_params(ctx):
            usual = "Arguments" if param.param_type_name == "argument" else "Options"
            panels.setdefault(getattr(param, "rich_help_panel", None) or usual, []).append(
                param.get_help_record(ctx)
            )
        for heading, records in panels.items():
            with formatter.section(heading):
                formatter.write_dl([record for record in records if record])


def main() -> None:
    """Run the command that was typed: exit code 2 and one line for a user's mistake, 130 for
    Ctrl-C.
    """
    try:
        application(default())()
    except InstamapError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, Interrupted):
        typer.echo("interrupted", err=True)
        sys.exit(130)


def application(registry: Registry) -> TyperGroup:
    """All commands. A plugin whose hook fails becomes a broken one; PartError for a command that is
    defined twice.
    """
    app = typer.Typer(
        cls=Commands,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings=SETTINGS,
    )
    app.callback()(_program)
    for command in COMMANDS:
        app.command(cls=Command)(command)
    group = get_group(app)
    for provider in registry.providers():
        for name, command in _commands_of(provider, registry).items():
            if name in group.commands:
                raise PartError(
                    f"command '{name}' of {provider} is defined already; uninstall {provider}, or"
                    f" set INSTAMAP_DISABLE_PLUGINS={provider}"
                )
            group.add_command(command, name)
    return group


def _commands_of(provider: str, registry: Registry) -> dict:
    app = typer.Typer(rich_markup_mode=None)
    try:
        registry.call(provider, "instamap_commands", app=app)
        return get_group(app).commands
    except (Exception, SystemExit) as error:  # a third party's hook may fail in any way
        registry.drop(provider, error)
        return {}


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"instamap {__version__}")
        raise typer.Exit()


def _program(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
):
    """Density maps from cryo-EM particle images with known poses."""
