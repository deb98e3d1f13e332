"""`instamap select`: particles by their coordinates, as a STAR file."""

from pathlib import Path
from typing import Annotated

import typer

from instamap.errors import DataError, OptionError


def select(
    motion: Annotated[
        Path,
        typer.Argument(help="Folder of a run with --deform bending-field.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="SUBSET.star", help="STAR file to write.")
    ] = Path("subset.star"),
    within: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LOW,HIGH",
            help="Bounds, such as 0.2,0.5, or 0.2, without an upper one: of "
            "the first coordinate, and once more for each further one.",
        ),
    ] = None,
    lasso: Annotated[
        Path | None,
        typer.Option(
            metavar="POLYGON.csv",
            help="Corners of a polygon, a row each, in the first two coordinates "
            "or in those that a header names (z1,z3).",
        ),
    ] = None,
    particles: Annotated[
        Path | None, typer.Option(help="STAR file of the run, if it is no longer where it was.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the STAR file if it is there.")
    ] = False,
) -> None:
    """Write the particles with certain coordinates as a STAR file.

    Rows keep their order, and tables and columns what they say; columns instamapLatent1 and so on
    are added. With both --within and --lasso, particles must satisfy both. Images are named as
    before.
    """
    from instamap.cli.preprocess import check_target
    from instamap.data import writers
    from instamap.motion import selection as choose
    from instamap.motion.motion_model import MotionModel

    if not within and lasso is None:
        raise OptionError("nothing says which particles to select; give --within or --lasso")
    given = MotionModel.open(motion)
    table = writers.table_of_run(given.settings, particles, len(given.latents))
    check_target(output, (table.path,), force)
    chosen = choose.within(given.latents, within or [])
    if lasso is not None:
        chosen &= choose.lasso(given.latents, lasso)
    rows = chosen.nonzero()[:, 0]
    if not len(rows):
        raise DataError(
            f"none of the {len(chosen)} particles of '{motion}' is selected; look at latents.png of"
            " `instamap states`"
        )
    writers.write_latents(table, given.latents, output, rows)
    typer.echo(f"{len(rows)} of {len(chosen)} particles in {output}")
    datadir = given.settings.get("datadir")
    place = writers.datadir_for(table, output, Path(datadir) if datadir else None)
    if place:
        typer.echo(f"images are named as before: read it with --datadir {place}")
