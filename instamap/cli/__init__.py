"""The command line: one command per file and those of plugins; a user's mistake is answered in one
line, with exit code 2.

Nothing here may import torch, numpy or matplotlib before a command needs them: help and listings
answer at once.
"""

import contextlib
import os
import signal
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from instamap.cli import (
    accumulate,
    audit,
    cite,
    demo,
    describe,
    doctor,
    fit,
    fsc,
    infer,
    mask,
    merge,
    morph,
    parts,
    populations,
    postprocess,
    preprocess,
    reconstruct,
    relion_external,
    select,
    simulate,
    states,
    view,
)
from instamap.cli.memory import OUT_OF_MEMORY, check_space, spare_threads, take_large_pages
from instamap.cli.terminal import show, surviving_streams, tell
from instamap.errors import InstamapError, PartError, is_out_of_memory, line_of
from instamap.plugin.registry import Registry, default
from instamap.version import __version__

# In the order of `instamap --help`, each with the line that it has there.
COMMANDS = (
    (reconstruct.reconstruct, "Particles to half maps, a map and its resolution."),
    (doctor.doctor, "What is wrong with particles, before a run."),
    (preprocess.preprocess, "Particles to cropped, smaller or normalised ones."),
    (accumulate.accumulate, "Particles, or a shard of them, to statistics."),
    (merge.merge, "Statistics of shards to those of all particles."),
    (fit.fit, "Statistics to half maps, a map and its resolution."),
    (states.states, "Maps, half maps and a movie of the states of a motion."),
    (infer.infer, "Coordinates of new particles along a fitted motion."),
    (select.select, "Particles with certain coordinates, as a STAR file."),
    (audit.audit, "Whether to believe a motion: do independent fits agree?"),
    (populations.populations, "What share of the particles is in each conformation."),
    (morph.morph, "An atomic model, moved as the map moves."),
    (simulate.simulate, "Images of a model or a map with known poses."),
    (demo.demo, "A made-up molecule, from particles to maps in a minute."),
    (fsc.fsc, "How far two maps agree: resolution and curves."),
    (postprocess.postprocess, "Half maps to a sharpened map and local resolution."),
    (mask.mask, "A soft mask from a map or from an atomic model."),
    (relion_external.relion_external, "Particles to maps, as RELION's External job."),
    (relion_external.relion_reconstruct, "A map for relion_refine --external_reconstruct."),
    (view.view, "The maps of a run in ChimeraX."),
    (cite.cite, "The publications behind a run, as BibTeX."),
    (parts.parts, "The parts that can be chosen by name."),
    (describe.describe, "A part and its options, a stage, or the rule for auto."),
)
# Commands whose words another program makes up: they read the flags themselves.
OPEN_COMMANDS = (relion_external.relion_external,)
OPEN = {"ignore_unknown_options": True, "allow_interspersed_args": False}
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Interrupted(Exception):
    """Ctrl-C, under a name that Typer lets through (it would leave without a word)."""


class Terminated(BaseException):
    """A batch system's time limit, or a terminal that is gone, asks the program to end."""


class Commands(TyperGroup):
    """The built-in commands, to which those of plugins are added."""

    def invoke(self, ctx: Any) -> Any:
        check_space()
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted from None


class Command(TyperCommand):
    """A command whose help has a heading for each panel of options, in plain text.

    Importing rich takes longer than all the rest.
    """

    def format_options(self, ctx: Any, formatter: Any) -> None:
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
    spare_threads()
    take_large_pages()
    with contextlib.suppress(ValueError):  # signals can be set in the main thread alone
        _end_on_signals()
    with surviving_streams():
        try:
            _check_processes()
            application(default())()
        except InstamapError as error:
            if _is_told_here():
                tell(f"error: {line_of(error)}")
            sys.exit(2)
        except (MemoryError, RuntimeError, ImportError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            tell(f"error: {OUT_OF_MEMORY}")
            sys.exit(2)
        except (KeyboardInterrupt, Interrupted):
            tell("interrupted")
            sys.exit(130)
        except Terminated as ended:
            number = ended.args[0]
            tell(f"ended by {signal.Signals(number).name}; what was finished is as it was")
            sys.exit(128 + number)


def _check_processes() -> None:
    """Raises OptionError for a command that torchrun has started several times."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from instamap.workflows import processes

        processes.check_command(next(iter(sys.argv[1:]), None))


def _is_told_here() -> bool:
    """Whether this process speaks: of several that carry out one command, the first."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def _end_on_signals() -> None:
    """Lets Ctrl-C, SIGTERM and SIGHUP end the program with everything cleaned up, and a second one
    at once. What a parent has had ignored, such as SIGHUP under nohup, stays so.
    """
    usual = (signal.SIG_DFL, signal.default_int_handler)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) in usual:
            signal.signal(number, _end)


def _end(number: int, frame: object) -> None:
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(other) is _end:
            signal.signal(other, signal.SIG_DFL)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Terminated(number)


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
    for command, line in COMMANDS:
        settings = OPEN if command in OPEN_COMMANDS else None
        app.command(cls=Command, short_help=line, context_settings=settings)(command)
    group = get_group(app)
    for provider in registry.providers():
        for name, added in _commands_of(provider, registry).items():
            if name in group.commands:
                raise PartError(
                    f"command '{name}' of {provider} is defined already; uninstall {provider}, or"
                    f" set INSTAMAP_DISABLE_PLUGINS={provider}"
                )
            group.add_command(added, name)
    return group


def _commands_of(provider: str, registry: Registry) -> dict[str, Any]:
    app = typer.Typer(rich_markup_mode=None)
    try:
        registry.call(provider, "instamap_commands", app=app)
        return dict(get_group(app).commands)
    except (Exception, SystemExit) as error:  # a third party's hook may fail in any way
        registry.drop(provider, error)
        return {}


def _show_version(wanted: bool) -> None:
    if wanted:
        show(f"instamap {__version__}")
        raise typer.Exit()


def _program(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
):
    """Density maps from cryo-EM particle images with known poses.

    Begin with `instamap demo`. With particles of your own: `instamap doctor particles.star`, then
    `instamap reconstruct particles.star -o out`, and open out/report.html.
    """
