"""`instamap reconstruct`: particles to half maps, a map and its resolution."""

from pathlib import Path
from typing import Annotated

import typer

Parts = "PARTS (see `instamap parts`, and `instamap describe KIND NAME` for the options of one)"


def reconstruct(
    particles: Annotated[Path | None, typer.Argument(help="STAR file with poses (RELION 3.0 or later); may come from --config.", show_default=False)] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write to.")] = Path("out"),
    mask: Annotated[Path | None, typer.Option(help="Map of 0..1; the density is zero outside it.", show_default=False)] = None,
    halves: Annotated[bool | None, typer.Option("--halves/--no-halves", help="Two independent half maps and their mean, or one map of all particles.  [default: halves]", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help="Of every random number.  [default: 0]", show_default=False)] = None,
    datadir: Annotated[Path | None, typer.Option(help="Folder that image paths are relative to, if not the STAR file's.", show_default=False)] = None,
    together: Annotated[str | None, typer.Option(help="Column whose equal values stay in one half, such as rlnGroupName.", show_default=False)] = None,
    config: Annotated[Path | None, typer.Option(help="run.toml of an earlier run to repeat; options given here win.", show_default=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a run that the folder holds.")] = False,
    representation: Annotated[str | None, typer.Option("--representation", help="What the map is made of.  [default: hash-grid]", rich_help_panel=Parts, show_default=False)] = None,
    r: Annotated[list[str] | None, typer.Option("-R", metavar="KEY=VALUE", help="Option of the representation; repeatable, as are -D -F -L -E.", rich_help_panel=Parts, show_default=False)] = None,
    deform: Annotated[str | None, typer.Option("--deform", help="How particles differ.  [default: identity]", rich_help_panel=Parts, show_default=False)] = None,
    d: Annotated[list[str] | None, typer.Option("-D", metavar="KEY=VALUE", help="Option of the deformation.", rich_help_panel=Parts, show_default=False)] = None,
    forward: Annotated[str | None, typer.Option("--forward", help="How images are made.  [default: ray]", rich_help_panel=Parts, show_default=False)] = None,
    f: Annotated[list[str] | None, typer.Option("-F", metavar="KEY=VALUE", help="Option of the forward operator.", rich_help_panel=Parts, show_default=False)] = None,
    likelihood: Annotated[str | None, typer.Option("--likelihood", help="How noise is judged.  [default: gaussian]", rich_help_panel=Parts, show_default=False)] = None,
    l: Annotated[list[str] | None, typer.Option("-L", metavar="KEY=VALUE", help="Option of the likelihood.", rich_help_panel=Parts, show_default=False)] = None,  # noqa: E741
    engine: Annotated[str | None, typer.Option("--engine", help="images, normal, or auto: normal where the parts allow it.  [default: auto]", rich_help_panel=Parts, show_default=False)] = None,
    e: Annotated[list[str] | None, typer.Option("-E", metavar="KEY=VALUE", help="Option of the engine.", rich_help_panel=Parts, show_default=False)] = None,
) -> None:  # fmt: skip
    """Reconstruct half maps, a map and its resolution from particles with known poses."""
    from instamap.cli import run

    names = {"representation": representation, "deformation": deform, "forward": forward, "likelihood": likelihood, "engine": engine}
    items = {"representation": r, "deformation": d, "forward": f, "likelihood": l, "engine": e}
    plain = {"particles": particles, "mask": mask, "halves": halves, "seed": seed, "datadir": datadir, "together": together}
    settings = run.settings(config, plain, names, {kind: given or [] for kind, given in items.items()})
    run.run(settings, out, force)
