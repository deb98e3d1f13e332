"""`instamap accumulate`: particles, or a shard of them, to the statistics that a fit needs."""

from pathlib import Path
from typing import Annotated

import typer

from instamap.cli import run
from instamap.cli.arguments import Particles
from instamap.cli.flags import with_settings
from instamap.cli.terminal import show
from instamap.workflows.read_settings import Typed


@with_settings("accumulate")
def accumulate(
    particles: Particles,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder of statistics to write, or to go on with.")
    ] = Path("stats"),
    shard: Annotated[
        str,
        typer.Option(
            metavar="I/N",
            help="Only every N-th image, from the I-th on, such as 3/16; see merge.",
        ),
    ] = "1/1",
    force: Annotated[
        bool, typer.Option("--force", help="Start anew where the folder holds statistics.")
    ] = False,
    *,
    typed: Typed,
) -> None:
    """Gather statistics of images, once, for any number of fits.

    The same command resumes where an interrupted one was.
    """
    typed.check_names()
    from instamap.cli.progress_bars import ProgressBars
    from instamap.geometry.compiled import reporting_compilation
    from instamap.workflows import shards
    from instamap.workflows.read_settings import read_settings
    from instamap.workflows.shard import Shard

    settings = read_settings({}, run.with_plain(typed, particles=particles))
    with ProgressBars() as progress, reporting_compilation(progress.message):
        shards.accumulate(settings, out, shard=Shard.parse(shard), force=force, progress=progress)
    show(f"statistics in {out}/")
