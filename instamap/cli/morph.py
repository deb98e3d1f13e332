"""`instamap morph`: an atomic model moved as the map moves."""

from pathlib import Path
from typing import Annotated

import typer

from instamap.errors import OptionError, OutputError

STATES = 20  # where nothing else is said


def morph(
    motion: Annotated[
        Path,
        typer.Argument(help="Folder of a run with --deform bending-field.", show_default=False),
    ],
    model: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="PDB or mmCIF file, perhaps gzipped, built in --state.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="File to write: motion.pdb or motion.cif.")
    ] = Path("motion.pdb"),
    states: Annotated[
        int | None,
        typer.Option(
            metavar="N", help=f"States along the motion, end to end.  [default: {STATES}]"
        ),
    ] = None,
    at: Annotated[
        Path | None,
        typer.Option(
            metavar="Z.csv", help="States: a row each, under a header z1,z2,... or without."
        ),
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(
            metavar="Z[,Z...]", help="State that the model was built in.  [default: median]"
        ),
    ] = None,
    centred: Annotated[
        bool,
        typer.Option(
            "--centred", help="The model's origin is the middle of the box (voxel box // 2)."
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
) -> None:
    """Move an atomic model through the states of a motion: a file with a model for each.

    The model has the maps' coordinates (their origin is the first voxel), as ChimeraX shows both,
    unless --centred. Its first model counts; all atoms move, also those outside the mask, by the
    field there. Displacements are the mean of both fits'; `instamap audit` says where to believe
    them. Needs gemmi (pip install 'instamap[models]').
    """
    from instamap.cli.audit import reference
    from instamap.cli.progress import Stages
    from instamap.motion import atoms
    from instamap.motion import conformation_maps as choose
    from instamap.motion.motion_model import MotionModel

    if states is not None and at is not None:
        raise OptionError("states are chosen in two ways; give --states or --at")
    atoms.check(out)
    if out.exists() and (not force or (model.exists() and out.samefile(model))):
        raise OutputError(
            f"output '{out}' already exists; choose another name or add --force (the model itself"
            " is never replaced)"
        )
    given = MotionModel.open(motion)
    given.check_bends(motion)
    latents = given.latents.double()
    z = (
        choose.path(latents, STATES if states is None else states, 0)
        if at is None
        else choose.read(at, latents.shape[1])
    )
    start = reference(given, state)
    with Stages() as stages:
        done = atoms.morph(given, model, out, start, z, centred=centred, progress=stages)
    typer.echo(
        f"{out}: {len(z)} models, atoms moved by {float(done.rms.min()):.2f} to"
        f" {float(done.rms.max()):.2f} Å rms"
    )
    if done.outside:
        typer.echo(
            f"{done.outside} atoms are outside the box: is the model in the map's frame (--centred:"
            " its origin is the middle)?"
        )
    if done.lost:
        typer.echo(
            f"{done.lost} atoms could not be followed into all states; they are up to"
            f" {done.error:.2f} Å off, in the common density"
        )
