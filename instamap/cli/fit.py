"""`instamap fit`: statistics to half maps, a map and its resolution, without the images."""

from pathlib import Path
from typing import Annotated

import typer

from instamap.cli.flags import Word, Words, items, part, plain, stages


def fit(
    statistics: Annotated[
        Path,
        typer.Argument(
            metavar="STATS", help="Folder that accumulate or merge wrote.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write to.")] = Path("out"),
    mask: Annotated[
        Path | None,
        plain(help="Map of 0..1; the density is zero outside it.  [default: found in a first map]"),
    ] = None,
    halves: Annotated[
        bool | None,
        plain(
            "--halves/--no-halves",
            help="Two independent half maps and their mean, or one map of all.  [default: halves]",
        ),
    ] = None,
    seed: Annotated[
        int | None, plain(help="Of the fit's random numbers.  [default: that of the statistics]")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a run that the folder holds.")
    ] = False,
    representation: Annotated[
        Word, part("--representation", "What the map is made of.  [default: hash-grid]")
    ] = None,
    r: Annotated[Words, items("-R", "Option of the representation; repeatable, as is -E.")] = None,
    engine: Annotated[
        str, part("--engine", "One that needs no images.  [default: normal]")
    ] = "normal",
    e: Annotated[Words, items("-E", "Option of the engine.")] = None,
    stage: Annotated[Words, stages()] = None,
) -> None:
    """Fit half maps to statistics: what reconstruct makes of the images, as often as you like.

    `instamap reconstruct --config` repeats it from run.toml.
    """
    from instamap.cli import summary
    from instamap.workflows.settings import AUTO
    from instamap.workflows.statistics_folder import Folder

    before = Folder.open(statistics).settings.record(AUTO)
    names = {"representation": representation, "engine": engine}
    given = {"representation": r, "engine": e, "stage": stage}
    summary.run(
        summary.settings(before, {"mask": mask, "halves": halves, "seed": seed}, names, given),
        out,
        force,
    )
