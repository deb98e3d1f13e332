"""`instamap parts`: what can be chosen by name, and from whom it comes."""

from typing import Annotated

import typer

from instamap.cli.terminal import show
from instamap.cli.text_table import columns
from instamap.plugin.component import KINDS
from instamap.plugin.registry import default


def parts(
    kind: Annotated[str | None, typer.Option(help=f"Only one kind: {', '.join(KINDS)}.")] = None,
) -> None:
    """List the parts that can be chosen by name."""
    registry = default()
    rows = [[part.kind, part.name, part.provider, part.summary] for part in registry.parts(kind)]
    show(columns([["KIND", "NAME", "FROM", "WHAT IT IS"], *rows]))
    if registry.broken:
        show("\nBroken plugins, whose parts are missing:")
        show(columns([["  " + b.provider, b.reason] for b in registry.broken]))
