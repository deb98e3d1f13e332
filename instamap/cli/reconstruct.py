"""`instamap reconstruct`: particles to half maps, a map and its resolution."""

from pathlib import Path
from typing import Annotated

import typer

from instamap.cli import run
from instamap.cli.arguments import (
    JsonLines,
    OptionalParticles,
    OutFolder,
    Quiet,
    ReplaceRun,
    Resume,
)
from instamap.cli.flags import with_settings
from instamap.workflows.read_settings import Typed


@with_settings("reconstruct")
def reconstruct(
    particles: OptionalParticles = None,
    out: OutFolder = Path("out"),
    config: Annotated[
        Path | None,
        typer.Option(
            help="run.toml of an earlier run to repeat; options given here win.",
            show_default=False,
        ),
    ] = None,
    force: ReplaceRun = False,
    resume: Resume = False,
    quiet: Quiet = False,
    json: JsonLines = False,
    *,
    typed: Typed,
) -> None:
    """Reconstruct half maps, a map and its resolution from particles with known poses.

    Usually `instamap reconstruct particles.star -o out` is all. How far particles move is found
    with --deform bending-field, and their poses are corrected with --deform rigid.
    """
    place = run.Place(out, force, resume, quiet, json)
    run.run(config, run.with_plain(typed, particles=particles), place)
