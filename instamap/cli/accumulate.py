"""`instamap accumulate`: particles, or a shard of them, to the statistics that a fit needs."""

from pathlib import Path
from typing import Annotated

import typer

from instamap.cli.flags import Background, Box, Crop, Normalise, Word, Words, items, part, plain


def accumulate(
    particles: Annotated[
        Path, typer.Argument(help="STAR file with poses (RELION 3.0 or later).", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder of statistics to write, or to go on with.")
    ] = Path("stats"),
    shard: Annotated[
        str,
        typer.Option(
            metavar="I/N", help="Only every N-th image, from the I-th on, such as 3/16; see merge."
        ),
    ] = "1/1",
    symmetry: Annotated[
        Word,
        plain(help="Point group, as RELION orients it: Cn, Dn, T, O, I, I1 to I4.  [default: C1]"),
    ] = None,
    weights: Annotated[
        Word, plain(help="Column of factors of each image's log-likelihood.  [default: all 1]")
    ] = None,
    seed: Annotated[
        int | None,
        plain(help="Of the halves and the held-out set; the same for all shards.  [default: 0]"),
    ] = None,
    held_out: Annotated[
        float | None,
        plain(
            help="Share of the particles kept out of both halves to judge fits.  [default: 0.05]"
        ),
    ] = None,
    datadir: Annotated[
        Path | None, plain(help="Folder that image paths are relative to, if not the STAR file's.")
    ] = None,
    together: Annotated[
        Word, plain(help="Column whose equal values stay in one half, such as rlnGroupName.")
    ] = None,
    crop: Crop = None,
    box: Box = None,
    normalise: Normalise = None,
    background: Background = None,
    force: Annotated[
        bool, typer.Option("--force", help="Start anew where the folder holds statistics.")
    ] = False,
    likelihood: Annotated[
        Word,
        part("--likelihood", "How noise is judged: gaussian or coloured.  [default: gaussian]"),
    ] = None,
    l: Annotated[Words, items("-L", "Option of the likelihood; repeatable.")] = None,  # noqa: E741
) -> None:
    """Gather statistics of images, once, for any number of fits; the same command resumes where an
    interrupted one was.
    """
    from instamap.cli import summary
    from instamap.cli.progress import Stages
    from instamap.workflows import shards
    from instamap.workflows.statistics_folder import Shard

    kept = {
        "particles": particles,
        "seed": seed,
        "held_out": held_out,
        "datadir": datadir,
        "together": together,
        "symmetry": symmetry,
        "weights": weights,
        "crop": crop,
        "box": box,
        "normalise": normalise,
        "background": background,
    }
    settings = summary.settings({}, kept, {"likelihood": likelihood}, {"likelihood": l})
    piece = Shard.parse(shard)
    with Stages() as stages:

        def announce(folder, done: dict[str, int]) -> None:
            said = folder.said
            sets = ", ".join(f"{name} {count}" for name, count in said["sets"].items())
            stages.say(
                f"shard {piece} of {said['count']} images of {said['box']} px at"
                f" {said['pixel_size']:g} Å: {sets}"
            )
            if done:
                stages.say(
                    f"resumed: {sum(done.values())} of {sum(said['sets'].values())} images were"
                    " there already"
                )

        shards.accumulate(
            settings, out, shard=piece, force=force, count=stages.read, announce=announce
        )
    typer.echo(f"statistics in {out}/")
