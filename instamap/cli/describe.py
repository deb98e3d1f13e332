"""`instamap describe`: one part with its options, their defaults and what they may be; stages,
preprocessing, the automatic engine.
"""

from typing import Annotated, get_args

import typer

from instamap.cli.flags import Background, Box, Crop, Normalise
from instamap.cli.text_table import columns
from instamap.plugin.component import KINDS
from instamap.plugin.options import OptionSpec
from instamap.plugin.options import describe as specs_of
from instamap.plugin.registry import default

FLAGS = {
    "representation": ("--representation", "-R"),
    "deformation": ("--deform", "-D"),
    "forward": ("--forward", "-F"),
    "likelihood": ("--likelihood", "-L"),
    "engine": ("--engine", "-E"),
}
AUTO = [
    ["TAKES", "WHERE"],
    [
        "states",
        (
            "particles go through states: --deform bending-field (from=table, Gaussian noise, no"
            " stages) or subspace"
        ),
    ],
    ["poses", "--deform rigid corrects whole particles from a table, with no regulariser or stage"],
    ["normal", "all particles share one density"],
    ["images", "anything else, and wherever noise is not Gaussian"],
]


def describe(
    kind: Annotated[
        str, typer.Argument(help=f"One of {', '.join(KINDS)}; or stage, or preprocess.")
    ],
    name: Annotated[
        str,
        typer.Argument(
            help="As `instamap parts` lists it, or engine auto; none for stage and preprocess."
        ),
    ] = "",
) -> None:
    """Show a part and its options, those of a stage of the fit, or what can be done to images
    before it.
    """
    other = {("stage", ""): _stage, ("preprocess", ""): _preprocess, ("engine", "auto"): _auto}.get(
        (kind, name)
    )
    if other:
        return other()
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

    typer.echo(
        "stage: what learns in one stage of a fit, and how fast; it ends where looks stop"
        " improving\n"
    )
    typer.echo(
        '  use  --stage "OPTION=VALUE OPTION=VALUE", once for each stage; in run.toml a table'
        " [[stage]] each"
    )
    _options(specs_of(Stage))


def _preprocess() -> None:
    typer.echo(
        "preprocess: what is done to each image when it is read, in this order; the STAR file's"
        " origins stay true\n"
    )
    typer.echo(
        "  use  of reconstruct and accumulate, or once for all of instamap preprocess; in run.toml"
        " a table [preprocess]\n"
    )
    rows = [["OPTION", "WHAT IT IS"]]
    for name, flag in {
        "crop": Crop,
        "box": Box,
        "normalise": Normalise,
        "background": Background,
    }.items():
        rows.append([f"--{name}", get_args(flag)[1].help])
    typer.echo(columns([["  " + row[0], *row[1:]] for row in rows]))


def _auto() -> None:
    typer.echo(
        "engine auto: the usual choice; says which engine it takes, and run.toml keeps that one\n"
    )
    typer.echo(columns([["  " + row[0], *row[1:]] for row in AUTO]))
    typer.echo("\n  Options (-E) are those of the engine: instamap describe engine NAME")


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
