"""Arguments that several commands have, in the same words."""

from pathlib import Path
from typing import Annotated

import typer

FORMATS = "STAR file with poses (RELION 3.0 or later), or a file of cryoSPARC or cryoDRGN"

Particles = Annotated[
    Path, typer.Argument(metavar="PARTICLES", help=f"{FORMATS}.", show_default=False)
]
OptionalParticles = Annotated[
    Path | None,
    typer.Argument(
        metavar="PARTICLES", help=f"{FORMATS}; may come from --config.", show_default=False
    ),
]
MotionRun = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="Folder of a run with --deform bending-field or subspace.",
        show_default=False,
    ),
]
BendingRun = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", help="Folder of a run with --deform bending-field.", show_default=False
    ),
]
ParticlesOfRun = Annotated[
    Path | None, typer.Option(help="STAR file of the run, if it is no longer where it was.")
]
StatesFile = Annotated[
    Path | None,
    typer.Option(metavar="Z.csv", help="States: a row each, under a header z1,z2,... or without."),
]
OutFolder = Annotated[Path, typer.Option("-o", "--out", help="Folder to write to.")]
ReplaceRun = Annotated[bool, typer.Option("--force", help="Replace a run that the folder holds.")]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on where a run that was stopped in the folder had come."),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        help="Where it is computed: cpu, cuda, cuda:1, mps, or auto, a CUDA card where torch sees "
        "one.",
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="Tell nothing while it runs, but what goes wrong.")
]
JsonLines = Annotated[
    bool,
    typer.Option("--json", help="Tell what happens as JSON lines on standard error, for programs."),
]
