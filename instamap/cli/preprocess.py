"""`instamap preprocess`: particles to smaller ones, for any program that reads them."""

import os
from pathlib import Path
from typing import Annotated

import typer

from instamap.cli.arguments import OutFolder, Particles
from instamap.cli.flags import with_settings
from instamap.cli.terminal import show
from instamap.errors import OptionError
from instamap.workflows.read_settings import Typed

STAR = "particles.star"
STACK = "particles.mrcs"
RECORD = "preprocess.toml"


@with_settings("preprocess")
def preprocess(
    particles: Particles,
    out: OutFolder = Path("preprocessed"),
    force: Annotated[
        bool, typer.Option("--force", help="Replace particles that the folder holds.")
    ] = False,
    *,
    typed: Typed,
) -> None:
    """Crop, scale down and normalise images, and write them with a STAR file that says so.

    reconstruct and accumulate do the same while they read, with the same options. What the CTF has
    carried out of the crop is lost. The stack is named as seen from the current folder, as RELION
    does, or from the folder above the one that is written where that lies elsewhere.
    """
    from instamap.cli.progress_bars import ProgressBars
    from instamap.data.particles import Particles
    from instamap.data.preprocess import Preprocess
    from instamap.data.writers import write_particles
    from instamap.toml_text import write_toml
    from instamap.version import __version__
    from instamap.workflows import output

    values = dict(typed.plain)
    datadir = values.pop("datadir")
    normalise = bool(values.pop("normalise"))
    invert = bool(values.pop("invert"))
    steps = Preprocess(**values, normalise=normalise, invert=invert)
    if not steps:
        raise OptionError(
            f"there is nothing to do to '{particles}'; give --crop, --box, --normalise or --invert"
        )
    opened = Particles.open(particles, datadir=datadir, preprocess=steps)
    kind = output.FolderKind("particles", RECORD, (STAR, STACK, RECORD))
    inputs = (opened.path, *opened.stacks.files)
    with (
        output.reserve(out, kind, force, inputs) as place,
        place.filled() as folder,
        ProgressBars() as progress,
    ):
        if opened.lattice_change:
            progress.message(opened.lattice_change)
        progress.message(f"{opened.count} images of {opened.lattice.box} px: {steps}")
        write_particles(
            opened, folder / STAR, folder / STACK, name=_stack_name(out), progress=progress
        )
        record = {"instamap": __version__, "particles": str(particles), "files": [STAR, STACK]}
        write_toml(folder / RECORD, {**record, **steps.record()})
    show(
        f"{opened.count} images of {opened.box} px at {opened.pixel_size:g} Å in {out}/: {STAR},"
        f" {STACK}"
    )


def _stack_name(out: Path) -> str:
    """The name of the stack for readers that start at the STAR file, its folder's parents, or the
    current folder: without "..", which would mean something else from each of them.
    """
    if ".." not in out.parts:
        return str(out / STACK)
    folder = Path(os.path.abspath(out)).name
    return str(Path(folder) / STACK)
