"""`instamap relion-external` and `instamap relion-reconstruct`: what RELION calls."""

from pathlib import Path
from typing import Annotated

import typer

from instamap.cli.terminal import show


def relion_external(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="--o FOLDER --in_parts STAR...",
            help="What RELION passes on: also --in_mask, --j and --SETTING VALUE.",
            show_default=False,
        ),
    ],
) -> None:
    """Reconstruct as RELION's External job, which names this command as its executable.

    Exit files and output nodes are written as RELION expects them. Labels of parameters are the
    settings of `instamap reconstruct`, with hyphens or underscores: --held_out 0.1.
    """
    from instamap.cli import run
    from instamap.cli.progress_bars import ProgressBars
    from instamap.workflows import relion_job

    folder = relion_job.output_folder(words)
    with relion_job.exit_files(folder):
        job = relion_job.read(words)
        with ProgressBars(run.introduction(job.settings, job.automatic)) as bars:
            result = relion_job.run(job, bars)
        for line in run.conclusion(result, folder):
            show(line)


def relion_reconstruct(
    request: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.star", help="The file that relion_refine wrote.", show_default=False
        ),
    ],
) -> None:
    """Make the map that `relion_refine --external_reconstruct` asks for.

    RELION finds this command by RELION_EXTERNAL_RECONSTRUCT_EXECUTABLE="instamap
    relion-reconstruct" in its environment.
    """
    from instamap.workflows.relion_reconstruct import reconstruct_file

    show(f"map in {reconstruct_file(request)}")
