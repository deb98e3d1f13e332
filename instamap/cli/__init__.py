"""The command line: one command per file and those of plugins; a user's mistake is answered in one
line, with exit code 2.

Nothing here may import torch, numpy or matplotlib before a command needs them: help and listings
answer at once.
"""

import contextlib
import signal
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

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
from instamap.files import escaped
from instamap.plugin.registry import Registry, default
from instamap.version import __version__

if TYPE_CHECKING:
    from click import Context, HelpFormatter

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


class Terminated(BaseException):
    """A batch system's time limit, or a terminal that is gone, asks the program to end."""


class Commands(TyperGroup):
    """The built-in commands, to which those of plugins are added."""

    def invoke(self, ctx: "Context") -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted from None


class Command(TyperCommand):
    """A command whose help has a heading for each panel of options, in plain text.

    Importing rich takes longer than all the rest.
    """

    def format_options(self, ctx: "Context", formatter: "HelpFormatter") -> None:
        panels: dict[str, list[tuple[str, str] | None]] = {}
        for param in self.get_params(ctx):
            usual = "Arguments" if param.param_type_name == "argument" else "Options"
            panel = getattr(param, "rich_help_panel", None) or usual
            panels.setdefault(panel, []).append(param.get_help_record(ctx))
        for heading, records in panels.items():
            shown = [record for record in records if record]
            with formatter.section(heading):
                formatter.write_dl(shown)


def main() -> None:
    """Runs the command that was typed.

    Exit code 2 and one line for a user's mistake, 130 for Ctrl-C, 128 and the signal's number for a
    signal that ends the program.
    """
    with contextlib.suppress(ValueError):  # signals can be set in the main thread alone
        _end_on_signals()
    try:
        application(default())()
    except InstamapError as error:
        _tell(f"error: {escaped(' '.join(str(error).split()))}")
        sys.exit(2)
    except (KeyboardInterrupt, Interrupted):
        _tell("interrupted")
        sys.exit(130)
    except Terminated as ended:
        number = ended.args[0]
        _tell(f"ended by {signal.Signals(number).name}; what was finished is as it was")
        sys.exit(128 + number)


def _end_on_signals() -> None:
    """Lets SIGTERM and SIGHUP end the program as Ctrl-C does, cleaning up; nohup's SIGHUP stays."""

    def end(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
        raise Terminated(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)


def _tell(line: str) -> None:
    """Prints a line on standard error, if there is still somebody who reads it."""
    with contextlib.suppress(OSError, ValueError):
        typer.echo(line, err=True)


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
