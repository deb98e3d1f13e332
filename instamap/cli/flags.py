"""Options that several commands share the looks of."""

import typer

PARTS = "PARTS (see `instamap parts`, and `instamap describe KIND NAME` for the options of one)"


def part(flag: str, help: str):
    """The choice of a part by name."""
    return typer.Option(flag, help=help, rich_help_panel=PARTS, show_default=False)


def items(flag: str, help: str):
    """Options of a part; the flag can be repeated."""
    return typer.Option(flag, metavar="KEY=VALUE", help=help, rich_help_panel=PARTS, show_default=False)


def plain(*flags: str, help: str):
    """An option that run.toml keeps: its default is the earlier run's, or the one that the help names."""
    return typer.Option(*flags, help=help, show_default=False)


Word, Words = str | None, list[str] | None
