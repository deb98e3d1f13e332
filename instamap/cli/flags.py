"""Options that several commands share, or share the looks of."""

from typing import Annotated

import typer

PARTS = "PARTS (see `instamap parts`, and `instamap describe KIND NAME` for the options of one)"


def part(flag: str, help: str):
    """The choice of a part by name."""
    return typer.Option(flag, help=help, rich_help_panel=PARTS, show_default=False)


def items(flag: str, help: str):
    """Options of a part; the flag can be repeated."""
    return typer.Option(
        flag, metavar="KEY=VALUE", help=help, rich_help_panel=PARTS, show_default=False
    )


def stages():
    """Stages of the fit, in order."""
    help = (
        'Stage of the fit, such as "steps=100 deformation=0"; repeatable, in order: see `instamap'
        " describe stage`."
    )
    return typer.Option(
        "--stage", metavar="KEY=VALUE...", help=help, rich_help_panel=PARTS, show_default=False
    )


def plain(*flags: str, help: str):
    """An option that run.toml keeps: its default is the earlier run's, or the one that the help
    names.
    """
    return typer.Option(*flags, help=help, show_default=False)


Word = str | None
Words = list[str] | None
Crop = Annotated[
    int | None,
    plain(help="Keep only the middle of each image, of this many pixels.  [default: all]"),
]
Box = Annotated[
    int | None,
    plain(
        help="Then scale it down to this many pixels, which makes them larger.  [default: as it is]"
    ),
]
Normalise = Annotated[
    bool | None,
    plain(
        "--normalise/--no-normalise",
        help="Then level the background and scale its noise to 1.  [default: no-normalise]",
    ),
]
Background = Annotated[
    float | None,
    plain(help="Radius in Å beyond which it is background.  [default: 0.375 of the edge]"),
]
