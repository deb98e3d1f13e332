"""`instamap infer`: coordinates of new particles under a motion that was fitted to others."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instamap.cli import earlier
from instamap.cli.arguments import Device, MotionRun, OutFolder
from instamap.cli.motion_inputs import device_for, hint_of_datadir
from instamap.cli.terminal import show

if TYPE_CHECKING:
    from torch import Tensor

STAR = "particles_latents.star"
RECORD = "inferred.json"


def infer(
    motion: MotionRun,
    particles: Annotated[
        Path,
        typer.Argument(
            metavar="PARTICLES",
            help="STAR file of the new particles, posed in the run's frame.",
            show_default=False,
        ),
    ],
    out: OutFolder = Path("inferred"),
    datadir: Annotated[
        Path | None,
        typer.Option(
            help="Folder that image paths are relative to, where it is not the STAR file's."
        ),
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Images with one value in it share coordinates; rlnImageName: none "
            "do.  [default: the run's]",
        ),
    ] = None,
    device: Device = "cpu",
    force: Annotated[
        bool, typer.Option("--force", help="Replace coordinates that the folder holds.")
    ] = False,
    earlier_group_by: Annotated[str | None, earlier.GROUP_BY] = None,
) -> None:
    """Place new particles along a fitted motion: latents.npy, and their STAR file with columns
    instamapLatent1 and so on.
    """
    import numpy as np

    from instamap.data.writers import write_latents
    from instamap.motion.motion_model import LATENTS, SETTINGS, MotionModel
    from instamap.version import __version__
    from instamap.workflows import embed_new, output
    from instamap.workflows.record import write_json

    column = earlier.group_by(group_by, earlier_group_by)
    kind = output.FolderKind("coordinates", RECORD, (LATENTS, "particles_latents.*", RECORD))
    output.check(out, kind, force)
    where = device_for(device)
    opened_model = MotionModel.open(motion)
    settings = earlier.translated_record(opened_model.settings, str(motion / SETTINGS))
    model = replace(opened_model, settings=settings)
    opened = embed_new.open_particles(model, particles, datadir)
    particle = embed_new.particle_numbers(model, opened, column)
    inputs = (opened.path, *opened.stacks.files)
    with output.reserve(out, kind, force, inputs) as place, place.filled() as folder:
        latents = embed_new.embed(model, opened, particle, where)
        np.save(folder / LATENTS, latents.numpy())
        write_latents(opened.table, latents, folder / STAR)
        files = output.names_in(folder)
        record = {"motion": str(motion.absolute()), "particles": str(opened.path)}
        write_json(folder / RECORD, {"instamap": __version__, "files": files, **record})
    show(_summary(latents, particle))
    for line in hint_of_datadir(opened.table, out / STAR, datadir):
        show(line)
    show(f"coordinates in {out}/: {LATENTS}, {STAR}")


def _summary(latents: "Tensor", particle: "Tensor") -> str:
    """How many particles were embedded, and where."""
    lowest = latents.amin(0).tolist()
    highest = latents.amax(0).tolist()
    ends = [f"{low:.3g} to {high:.3g}" for low, high in zip(lowest, highest, strict=True)]
    count = int(particle.max()) + 1
    images = "" if count == len(particle) else f" in {len(particle)} images"
    return f"placed {count} particles{images}; coordinates from {', '.join(ends)}"
