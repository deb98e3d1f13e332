"""`instamap morph`: an atomic model moved as the map moves."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instamap.cli.arguments import BendingRun, Device, StatesFile
from instamap.cli.terminal import show
from instamap.errors import OptionError

if TYPE_CHECKING:
    from instamap.motion.atoms import Morph

STATES = 20  # where nothing else is said


def morph(
    motion: BendingRun,
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
    at: StatesFile = None,
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
    device: Device = "cpu",
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
) -> None:
    """Move an atomic model through the states of a motion: a file with a model for each.

    The model has the maps' coordinates (their origin is the first voxel), as ChimeraX shows both,
    unless --centred. Its first model counts; all atoms move, also those outside the mask, by the
    field there. Displacements are the mean of both fits'; `instamap audit` says where to believe
    them. Needs gemmi (pip install 'instamap[models]').
    """
    if states is not None and at is not None:
        raise OptionError("states are chosen in two ways; give --states or --at")
    from instamap.cli.motion_inputs import device_for, read_conformation
    from instamap.cli.progress_bars import ProgressBars
    from instamap.motion import atoms, conformation_maps
    from instamap.motion.motion_model import MotionModel
    from instamap.workflows.output import check_file

    atoms.check(out)
    check_file(out, force, [path for path in (model, at) if path is not None])
    place = device_for(device)
    moving = MotionModel.open(motion).to(place)
    moving.check_bends(motion)
    latents = moving.latents.double()
    if at is None:
        z = conformation_maps.path(latents, STATES if states is None else states, 0)
    else:
        z = conformation_maps.read(at, latents.shape[1])
    start = read_conformation(moving, state)
    with ProgressBars() as bars:
        outcome = atoms.morph(moving, model, out, start, z, centred=centred, progress=bars)
    for line in _summary(outcome, out):
        show(line)


def _summary(outcome: "Morph", out: Path) -> list[str]:
    """How far atoms moved, and which of them are in doubt."""
    least = float(outcome.rms.min())
    most = float(outcome.rms.max())
    lines = [f"{out}: {len(outcome.rms)} models, atoms moved by {least:.2f} to {most:.2f} Å rms"]
    if outcome.outside:
        lines.append(
            f"{outcome.outside} atoms are outside the box: is the model in the map's frame"
            " (--centred: its origin is the middle)?"
        )
    if outcome.lost:
        lines.append(
            f"{outcome.lost} atoms could not be followed into all states; they are up to"
            f" {outcome.error:.2f} Å off, in the common density"
        )
    return lines
