"""`instamap select`: particles by their coordinates, as a STAR file."""

from pathlib import Path
from typing import Annotated

import typer

from instamap.cli.arguments import MotionRun, ParticlesOfRun
from instamap.cli.terminal import show
from instamap.errors import DataError, OptionError


def select(
    motion: MotionRun,
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
    particles: ParticlesOfRun = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the STAR file if it is there.")
    ] = False,
) -> None:
    """Write the particles with certain coordinates as a STAR file.

    Rows keep their order, and tables and columns what they say; columns instamapLatent1 and so on
    are added. With both --within and --lasso, particles must satisfy both. Images are named as
    before.
    """
    if not within and lasso is None:
        raise OptionError("nothing says which particles to select; give --within or --lasso")
    from instamap.cli.motion_inputs import hint_of_datadir, particles_of_run
    from instamap.data.writers import write_latents
    from instamap.motion import selection
    from instamap.motion.motion_model import MotionModel
    from instamap.workflows.output import check_file

    model = MotionModel.open(motion)
    table = particles_of_run(model, particles)
    inputs = [path for path in (table.path, lasso) if path is not None]
    check_file(output, force, inputs)
    chosen = selection.within(model.latents, within or [])
    if lasso is not None:
        chosen &= selection.lasso(model.latents, lasso)
    (rows,) = chosen.nonzero(as_tuple=True)
    if not len(rows):
        raise DataError(
            f"none of the {len(chosen)} particles of '{motion}' is selected; look at latents.png of"
            " `instamap states`"
        )
    write_latents(table, model.latents, output, rows)
    show(f"{len(rows)} of {len(chosen)} particles in {output}")
    for line in hint_of_datadir(table, output, model.settings.get("datadir")):
        show(line)
