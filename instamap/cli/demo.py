"""`instamap demo`: a made-up molecule, from particles to half maps, in under a minute."""

from pathlib import Path
from typing import Annotated

import typer

from instamap.cli import run
from instamap.cli.simulate import check_seed
from instamap.cli.terminal import show

RECORD = "demo.toml"


def demo(
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for the particles and, below it, the maps.")
    ] = Path("demo-out"),
    seed: Annotated[int, typer.Option(help="Seed of the particles and of the reconstruction.")] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier demo that the folder holds.")
    ] = False,
) -> None:
    """Simulate particles of a small molecule and reconstruct them; no data is needed."""
    from instamap.simulate import particle_set
    from instamap.simulate.write_set import FILES
    from instamap.toml_text import write_toml
    from instamap.workflows import output
    from instamap.workflows.choose import resolve
    from instamap.workflows.result import run_folder
    from instamap.workflows.settings import Settings

    check_seed(seed)
    settings = resolve(Settings(particles=out / "particles.star", seed=seed))
    output.check(out / "map", run_folder(settings), force)
    kind = output.FolderKind("a demo", RECORD, (*FILES, RECORD))
    with output.reserve(out, kind, force) as place, place.filled() as folder:
        particle_set.demo(folder, seed=seed)
        write_toml(folder / RECORD, {"seed": seed, "files": list(FILES)})
    show(f"simulated particles in {out}/: particles.star, particles.mrcs, truth.mrc")
    run.run_settings(settings, run.Place(out / "map", force), ["workflow", "objective"])
    show(f"look at {out}/map/map.png and {out}/map/fsc.png; the molecule itself is {out}/truth.mrc")
