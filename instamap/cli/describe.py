"""`instamap describe`: one part with its options, their defaults and what they may be."""

from typing import Annotated

import typer

from instamap.cli.table import columns
from instamap.components import KINDS
from instamap.options import OptionSpec
from instamap.options import describe as specs_of
from instamap.registry import default

FLAGS = {"representation": ("--representation", "-R"), "deformation": ("--deform", "-D"), "forward": ("--forward", "-F"),
         "likelihood": ("--likelihood", "-L"), "engine": ("--engine", "-E")}  # fmt: skip


def describe(
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(KINDS)}; or stage.")],
    name: Annotated[str, typer.Argument(help="As `instamap parts` lists it; none for stage.")] = "",
) -> None:
    """Show a part and its options, or those of a stage of the fit."""
    if kind == "stage":
        return _stage()
    part = default().get(kind, name)
    specs = specs_of(part.load().Options)
    choice, option = FLAGS[part.kind]
    use = f"{choice} {part.name}" + (f" {option} OPTION=VALUE" if specs else "")
    typer.echo(f"{part.kind} {part.name}: {part.summary}\n")
    facts = [["from", part.provider], ["class", part.target], ["cite", part.cite], ["use", use]]
    typer.echo(columns([["  " + what, value] for what, value in facts if value]))
    _options(specs)


def _stage() -> None:
    from instamap.fit.stages import Stage

    typer.echo("stage: what learns in one stage of a fit, and how fast; it ends where looks stop improving\n")
    typer.echo('  use  --stage "OPTION=VALUE OPTION=VALUE", once for each stage; in run.toml a table [[stage]] each')
    _options(specs_of(Stage))


def _options(specs: list[OptionSpec]) -> None:
    if specs:
        head = ["OPTION", "DEFAULT", "ALLOWED", "UNIT", "WHAT IT IS"]
        rows = [head, *[[s.name, _written(s.default), s.allowed, s.unit, s.help] for s in specs]]
        if not any(s.unit for s in specs):
            rows = [row[:3] + row[4:] for row in rows]
        typer.echo("\n" + columns([["  " + row[0], *row[1:]] for row in rows]))


def _written(value) -> str:
    """A default as it would be typed."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
