"""`instamap demo`: a made-up molecule, from particles to half maps, in under a minute and without
data.
"""

from pathlib import Path
from typing import Annotated

import typer

from instamap.cli.simulate import check_seed


def demo(
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for the particles and, below it, the maps.")
    ] = Path("demo-out"),
    seed: Annotated[int, typer.Option(help="Of the particles and of the reconstruction.")] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier demo that the folder holds.")
    ] = False,
) -> None:
    """Simulate particles of a small molecule and reconstruct them."""
    from instamap.cli import summary
    from instamap.simulate import particle_set
    from instamap.workflows import output
    from instamap.workflows.map import Settings

    check_seed(seed)
    output.check(out / "map", force)
    with output.staged(out, force=True) as stage:
        particle_set.demo(stage, seed=seed)
    typer.echo(f"simulated particles in {out}/: particles.star, particles.mrcs, truth.mrc")
    summary.run(Settings(particles=out / "particles.star", seed=seed), out / "map", force)
    typer.echo(
        f"look at {out}/map/map.png and {out}/map/fsc.png; the molecule itself is {out}/truth.mrc"
    )
