"""`instamap fit`: statistics to half maps, a map and its resolution, without the images."""

from pathlib import Path
from typing import Annotated

import typer

from instamap.cli import run
from instamap.cli.arguments import JsonLines, OutFolder, Quiet, ReplaceRun, Resume
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
    out: OutFolder = Path("out"),
    force: ReplaceRun = False,
    resume: Resume = False,
    quiet: Quiet = False,
    json: JsonLines = False,
    *,
    typed: Typed,
) -> None:
    """Fit half maps to statistics: what reconstruct makes of the images, as often as you like.

    `instamap reconstruct --config` repeats it from run.toml.
    """
    typed.check_names()
    from instamap.workflows.statistics_folder import StatisticsFolder

    record = StatisticsFolder.open(statistics).settings.record()
    run.run_record(record, typed, run.Place(out, force, resume, quiet, json))
