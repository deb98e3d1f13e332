"""`instamap reconstruct`: particles to half maps, a map and its resolution."""

from pathlib import Path
from typing import Annotated

import typer

from instamap.cli.flags import (
    Background,
    Box,
    Crop,
    Normalise,
    Word,
    Words,
    items,
    part,
    plain,
    stages,
)


def reconstruct(
    particles: Annotated[
        Path | None,
        typer.Argument(
            help="STAR file with poses (RELION 3.0 or later); may come from --config.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write to.")] = Path("out"),
    mask: Annotated[
        Path | None,
        plain(help="Map of 0..1; the density is zero outside it.  [default: found in a first map]"),
    ] = None,
    halves: Annotated[
        bool | None,
        plain(
            "--halves/--no-halves",
            help=(
                "Two independent half maps and their mean, or one map of all particles.  [default:"
                " halves]"
            ),
        ),
    ] = None,
    seed: Annotated[int | None, plain(help="Of every random number.  [default: 0]")] = None,
    datadir: Annotated[
        Path | None, plain(help="Folder that image paths are relative to, if not the STAR file's.")
    ] = None,
    together: Annotated[
        Word, plain(help="Column whose equal values stay in one half, such as rlnGroupName.")
    ] = None,
    held_out: Annotated[
        float | None,
        plain(help="Share of the particles that only judge when fits stop.  [default: 0.05]"),
    ] = None,
    symmetry: Annotated[
        Word,
        plain(help="Point group, as RELION orients it: Cn, Dn, T, O, I, I1 to I4.  [default: C1]"),
    ] = None,
    weights: Annotated[
        Word, plain(help="Column of factors of each image's log-likelihood.  [default: all 1]")
    ] = None,
    crop: Crop = None,
    box: Box = None,
    normalise: Normalise = None,
    background: Background = None,
    config: Annotated[
        Path | None, plain(help="run.toml of an earlier run to repeat; options given here win.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a run that the folder holds.")
    ] = False,
    representation: Annotated[
        Word, part("--representation", "What the map is made of.  [default: hash-grid]")
    ] = None,
    r: Annotated[
        Words, items("-R", "Option of the representation; repeatable, as are -D -F -L -E.")
    ] = None,
    deform: Annotated[Word, part("--deform", "How particles differ.  [default: identity]")] = None,
    d: Annotated[Words, items("-D", "Option of the deformation.")] = None,
    forward: Annotated[
        Word,
        part(
            "--forward",
            "How engine images makes images.  [default: slice; ray where particles differ]",
        ),
    ] = None,
    f: Annotated[Words, items("-F", "Option of the forward operator.")] = None,
    likelihood: Annotated[
        Word, part("--likelihood", "How noise is judged.  [default: gaussian]")
    ] = None,
    l: Annotated[Words, items("-L", "Option of the likelihood.")] = None,  # noqa: E741
    engine: Annotated[
        Word,
        part(
            "--engine",
            "normal, images, states, poses, or auto: what goes with the parts.  [default: auto]",
        ),
    ] = None,
    e: Annotated[Words, items("-E", "Option of the engine.")] = None,
    stage: Annotated[Words, stages()] = None,
) -> None:
    """Reconstruct half maps, a map and its resolution from particles with known poses."""
    from instamap.cli import summary

    names = {
        "representation": representation,
        "deformation": deform,
        "forward": forward,
        "likelihood": likelihood,
        "engine": engine,
    }
    given = {
        "representation": r,
        "deformation": d,
        "forward": f,
        "likelihood": l,
        "engine": e,
        "stage": stage,
    }
    kept = {
        "particles": particles,
        "mask": mask,
        "halves": halves,
        "seed": seed,
        "datadir": datadir,
        "together": together,
        "held_out": held_out,
        "symmetry": symmetry,
        "weights": weights,
        "crop": crop,
        "box": box,
        "normalise": normalise,
        "background": background,
    }
    summary.run(summary.settings(summary.earlier(config), kept, names, given), out, force)
