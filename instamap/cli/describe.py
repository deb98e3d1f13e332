"""`instamap describe`: a part with its options, a stage, the preprocessing, the rule for auto."""

import dataclasses
from typing import Annotated, Any

import typer

from instamap.cli.terminal import show
from instamap.cli.text_table import columns
from instamap.errors import OptionError
from instamap.plugin.component import KINDS
from instamap.plugin.options import OptionSpec
from instamap.plugin.options import describe as specs_of
from instamap.plugin.registry import default
from instamap.workflows.choose import RULE
from instamap.workflows.settings import SETTING, SettingFacts, Settings

PREPROCESSING = ("crop", "box", "normalise", "background")
INDENT = "  "


def describe(
    kind: Annotated[
        str, typer.Argument(help=f"One of {', '.join(KINDS)}; or stage, or preprocess.")
    ],
    name: Annotated[
        str,
        typer.Argument(
            help="As `instamap parts` lists it, or workflow auto; none for stage and preprocess."
        ),
    ] = "",
) -> None:
    """Show a part and its options, a stage of the fit, or what can be done to images before it."""
    special = {
        ("stage", ""): _stage,
        ("preprocess", ""): _preprocess,
        ("workflow", "auto"): _auto,
        ("objective", "auto"): _auto,
    }
    if (kind, name) in special:
        special[kind, name]()
        return
    if kind in KINDS and not name:
        names = ", ".join(part.name for part in default().parts(kind))
        raise OptionError(f"no name of a {kind} is given; choose {names}")
    _part(kind, name)


def _part(kind: str, name: str) -> None:
    part = default().get(kind, name)
    specs = specs_of(part.load().Options)
    show(f"{part.kind} {part.name}: {part.summary}\n")
    facts = [
        ["from", part.provider],
        ["class", part.target],
        ["cite", part.cite],
        ["use", usage(kind, name, bool(specs))],
    ]
    _indented([[what, value] for what, value in facts if value])
    _options(specs)


def usage(kind: str, name: str, has_options: bool) -> str:
    """How the part is chosen on the command line."""
    facts = [_facts(field) for field in dataclasses.fields(Settings)]
    own = next((one for one in facts if one.kind == kind), None)
    if own is None:
        return "chosen by what the file is"
    return f"{own.flag} {name}" + (f" {own.options_flag} OPTION=VALUE" if has_options else "")


def _facts(field: "dataclasses.Field[Any]") -> SettingFacts:
    return field.metadata[SETTING]


def _stage() -> None:
    from instamap.fitting.stage import Stage

    show(
        "stage: what learns in one stage of a fit, and how fast; it ends where evaluations stop"
        " improving\n"
    )
    show(
        '  use  --stage "OPTION=VALUE OPTION=VALUE", once for each stage; in run.toml a table'
        " [[stage]] each"
    )
    _options(specs_of(Stage))


def _preprocess() -> None:
    show(
        "preprocess: what is done to each image when it is read, in this order; the file's"
        " origins stay true\n"
    )
    show(
        "  use  of reconstruct and accumulate, or once for all of instamap preprocess; in run.toml"
        " by the same names\n"
    )
    _indented(preprocess_table())


def preprocess_table() -> list[list[str]]:
    """What can be done to images as they are read: a row each, below a heading."""
    fields = Settings.__dataclass_fields__
    rows = [[f"--{name}", _with_default(fields[name])] for name in PREPROCESSING]
    return [["OPTION", "WHAT IT IS"], *rows]


def _with_default(field: "dataclasses.Field[Any]") -> str:
    return f"{field.metadata['help']}  [default: {_facts(field).default_words}]"


def _auto() -> None:
    show(
        "auto: the workflow and the objective that go with the parts; says which, and run.toml"
        " keeps them\n"
    )
    _indented([["WORKFLOW", "TAKEN WHERE"], *[list(row) for row in RULE]])
    show("\n  Options are those of what is taken: instamap describe workflow NAME")


def _options(specs: list[OptionSpec]) -> None:
    if specs:
        show("")
        _indented(option_table(specs))


def option_table(specs: list[OptionSpec]) -> list[list[str]]:
    """A row for each option, below a heading; the column of units only where there are any."""
    heading = ["OPTION", "DEFAULT", "ALLOWED", "UNIT", "WHAT IT IS"]
    rows = [[s.name, _written(s.default), s.allowed, s.unit, s.help] for s in specs]
    if not any(spec.unit for spec in specs):
        heading.remove("UNIT")
        rows = [row[:3] + row[4:] for row in rows]
    return [heading, *rows]


def _indented(rows: list[list[str]]) -> None:
    show(columns([[INDENT + row[0], *row[1:]] for row in rows]))


def _written(value: Any) -> str:
    """A default as it would be typed."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
