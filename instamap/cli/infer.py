"""`instamap infer`: coordinates of new particles under a motion that was fitted to others."""

from pathlib import Path
from typing import Annotated

import typer

from instamap.cli.output_checks import check_folder

STAR = "particles_latents.star"


def infer(
    motion: Annotated[
        Path,
        typer.Argument(
            help="Folder of a run with --deform bending-field or subspace.", show_default=False
        ),
    ],
    particles: Annotated[
        Path,
        typer.Argument(
            help="STAR file of the new particles, posed in the run's frame.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write to.")] = Path(
        "inferred"
    ),
    datadir: Annotated[
        Path | None,
        typer.Option(help="Folder that image paths are relative to, if not the STAR file's."),
    ] = None,
    together: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Images with one value in it share coordinates; rlnImageName: none "
            "do.  [default: the run's]",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace coordinates that the folder holds.")
    ] = False,
) -> None:
    """Place new particles along a fitted motion: latents.npy, and their STAR file with columns
    instamapLatent1 and so on.
    """
    import numpy as np

    from instamap.cli.preprocess import check_target
    from instamap.data import writers
    from instamap.motion.motion_model import LATENTS, MotionModel
    from instamap.workflows import embed_new, output

    check_folder(out, (LATENTS, STAR), "coordinates", force)
    check_target(out / STAR, (particles,) if particles.exists() else (), force)
    given = MotionModel.open(motion)
    some = embed_new.open_particles(given, particles, datadir)
    unit = embed_new.particle_numbers(given, some, together)
    with output.staged(out, force) as folder:
        latents = embed_new.embed(given, some, unit)
        np.save(folder / LATENTS, latents.numpy())
        writers.write_latents(some.table, latents, folder / STAR)
    ends = ", ".join(
        f"{low:.3g} to {high:.3g}"
        for low, high in zip(latents.amin(0), latents.amax(0), strict=True)
    )
    images = "" if int(unit.max()) + 1 == len(unit) else f" in {len(unit)} images"
    typer.echo(f"placed {int(unit.max()) + 1} particles{images}; coordinates from {ends}")
    found = writers.datadir_for(some.table, out / STAR, datadir)
    if found:
        typer.echo(f"images are named as before: read {STAR} with --datadir {found}")
    typer.echo(f"coordinates in {out}/: {LATENTS}, {STAR}")
