"""`instamap view`: the maps of a run in ChimeraX."""

import shutil
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from instamap.cli.terminal import show

PROGRAMS = ("chimerax", "ChimeraX")  # names of ChimeraX on the search path
SCRIPT = "view.cxc"


def view(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="Folder of a run, states or an audit.", show_default=False
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE.cxc", help="Script to write.  [default: RUN/view.cxc]"
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file of that name if it is there.")
    ] = False,
    start: Annotated[
        bool, typer.Option(help="Open the script in ChimeraX, where that is installed.")
    ] = True,
) -> None:
    """Write a ChimeraX script that shows the map, the states of a motion as a series, or an audit's
    map coloured by what to believe of it; opens it where ChimeraX is installed.
    """
    from instamap.report import chimerax
    from instamap.workflows.output import check_file

    file = output or run / SCRIPT
    check_file(file, force)
    chimerax.write(file, run)
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if start and program is not None:
        subprocess.Popen([program, str(file)], start_new_session=True)
        show(f"opened {file} in ChimeraX")
        return
    show(f"wrote {file}; open it in ChimeraX (File > Open, or: open {file})")
