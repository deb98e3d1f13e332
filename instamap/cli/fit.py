"""`instamap fit`: statistics to half maps, a map and its resolution, without the images."""

from pathlib import Path
from typing import Annotated

import typer

from instamap.cli import run
from instamap.cli.flags import with_settings
from instamap.workflows.read_settings import Typed


@with_settings("fit")
def fit(
    statistics: Annotated[
        Path,
        typer.Argument(
            metavar="STATS", help="Folder that accumulate or merge wrote.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write to.")] = Path("out"),
    force: Annotated[
        bool, typer.Option("--force", help="Replace a run that the folder holds.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on where a run that was stopped in the folder had come."),
    ] = False,
    *,
    typed: Typed,
) -> None:
    """Fit half maps to statistics: what reconstruct makes of the images, as often as you like.

    `instamap reconstruct --config` repeats it from run.toml.
    """
    typed.check_names()
    from instamap.workflows.statistics_folder import StatisticsFolder

    record = StatisticsFolder.open(statistics).settings.record()
    run.run_record(record, typed, run.Place(out, force, resume))
