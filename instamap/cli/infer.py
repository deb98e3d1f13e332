"""`instamap infer`: coordinates of new particles under a motion that was fitted to others."""

from pathlib import Path
from typing import Annotated

import typer


def infer(
    motion: Annotated[Path, typer.Argument(help="Folder of a run with --deform bending-field or subspace.", show_default=False)],
    particles: Annotated[Path, typer.Argument(help="STAR file of the new particles, posed in the run's frame.", show_default=False)],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write to.")] = Path("inferred"),
    datadir: Annotated[Path | None, typer.Option(help="Folder that image paths are relative to, if not the STAR file's.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace coordinates that the folder holds.")] = False,
) -> None:
    """Place new particles along a fitted motion: latents.npy, and their STAR file with columns instamapLatent1 and so on."""
    import numpy as np

    from instamap.errors import OutputError
    from instamap.motion import latent_star, place
    from instamap.motion.folder import LATENTS, Motion

    if (out / LATENTS).exists() and not force:
        raise OutputError(f"output folder '{out}' already holds coordinates; choose another or add --force to replace them")
    given = Motion.open(motion)
    some = place.particles(given, particles, datadir)
    latents = place.place(given, some)
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / LATENTS, latents.numpy())
    latent_star.write(latent_star.source({}, particles, len(latents)), latents, out / "particles_latents.star")
    ends = ", ".join(f"{low:.3g} to {high:.3g}" for low, high in zip(latents.amin(0), latents.amax(0), strict=True))
    typer.echo(f"placed {len(latents)} particles; coordinates from {ends}")
    typer.echo(f"coordinates in {out}/: {LATENTS}, particles_latents.star")
