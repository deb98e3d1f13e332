"""`instamap merge`: statistics of shards to those of all their images."""

from pathlib import Path
from typing import Annotated

import typer

from instamap.cli.terminal import show


def merge(
    statistics: Annotated[
        list[Path],
        typer.Argument(
            metavar="STATS...", help="Folders of accumulate or merge.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of statistics to write.")] = Path(
        "stats"
    ),
    force: Annotated[
        bool, typer.Option("--force", help="Replace statistics that the folder holds.")
    ] = False,
) -> None:
    """Add statistics of disjoint shards that were gathered with the same settings."""
    from instamap.workflows import shards
    from instamap.workflows.shard import missing_share

    folder = shards.merge(statistics, out, force=force)
    sets = ", ".join(f"{name} {count}" for name, count in folder.counts.items())
    missing = missing_share(folder.shards)
    rest = f"; shards of {float(missing):.1%} of the images are missing" if missing else ""
    show(f"statistics of {sets} images in {out}/{rest}")
