"""`instamap preprocess`: particles to smaller ones, for any program that reads them."""

from pathlib import Path
from typing import Annotated

import typer

from instamap.cli.flags import Background, Box, Crop, Normalise, plain
from instamap.errors import OptionError, OutputError

STAR = "particles.star"
STACK = "particles.mrcs"


def preprocess(
    particles: Annotated[
        Path, typer.Argument(help="STAR file with poses (RELION 3.0 or later).", show_default=False)
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write to.")] = Path(
        "preprocessed"
    ),
    crop: Crop = None,
    box: Box = None,
    normalise: Normalise = None,
    background: Background = None,
    datadir: Annotated[
        Path | None, plain(help="Folder that image paths are relative to, if not the STAR file's.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace particles that the folder holds.")
    ] = False,
) -> None:
    """Crop, scale down and normalise images, and write them with a STAR file that says what they
    are now.

    reconstruct and accumulate do the same while they read, with the same options. What the CTF has
    carried out of the crop is lost. The stack is named as seen from the current folder, as RELION
    does.
    """
    from instamap.cli.progress import Stages
    from instamap.data.particles import Particles
    from instamap.data.preprocess import Preprocess
    from instamap.data.writers import write_particles
    from instamap.workflows import output

    steps = Preprocess(crop, box, bool(normalise), background)
    if not steps:
        raise OptionError(
            f"there is nothing to do to '{particles}'; give --crop, --box or --normalise"
        )
    given = Particles.open(particles, datadir=datadir, preprocess=steps)
    if (out / output.MARK).exists():
        raise OutputError(f"output folder '{out}' holds a run; choose another")
    for target in (out / STAR, out / STACK):
        check_target(target, (given.path, *given.stacks.files), force)
    with output.staged(out, force) as folder, Stages() as stages:
        stages.say(f"{given.count} images of {given.stacks.box} px: {steps}")
        write_particles(
            given, folder / STAR, folder / STACK, name=str(out / STACK), watch=stages.read
        )
    typer.echo(
        f"{given.count} images of {given.box} px at {given.pixel_size:g} Å in {out}/: {STAR},"
        f" {STACK}"
    )


def check_target(target: Path, sources: tuple[Path, ...], force: bool) -> None:
    """Raise OutputError if the target would replace what is read, or, unless forced, anything."""
    if not target.exists():
        return
    if any(target.samefile(source) for source in sources):
        raise OutputError(f"'{target}' is one of the files that are read; choose another folder")
    if not force:
        raise OutputError(
            f"'{target}' is already there; choose another folder or add --force to replace it"
        )
