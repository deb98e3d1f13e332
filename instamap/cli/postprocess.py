"""`instamap postprocess`: two half maps to a sharpened map and a resolution everywhere."""

from pathlib import Path
from typing import Annotated

import typer

from instamap.cli.terminal import show
from instamap.cli.text_table import columns

MASK_PANEL = "Mask"
SHARPENING_PANEL = "Sharpening"
LOCAL_PANEL = "Local resolution and directions"


def postprocess(
    half1: Annotated[
        Path,
        typer.Argument(metavar="HALF1.mrc", help="A half map, unfiltered.", show_default=False),
    ],
    half2: Annotated[
        Path,
        typer.Argument(metavar="HALF2.mrc", help="The other half map.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write to.")] = Path(
        "postprocess"
    ),
    force: Annotated[
        bool, typer.Option("--force", help="Replace a postprocessing that the folder holds.")
    ] = False,
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="M.mrc", help="Mask in which maps are compared.", rich_help_panel=MASK_PANEL
        ),
    ] = None,
    auto_mask: Annotated[
        bool,
        typer.Option(
            "--auto-mask",
            help="Find a mask around the particle, as `instamap mask` does.",
            rich_help_panel=MASK_PANEL,
        ),
    ] = False,
    b_factor: Annotated[
        float | None,
        typer.Option(
            metavar="Å²",
            help="B-factor, negative to sharpen, 0 for none.  [default: of the Guinier plot]",
            rich_help_panel=SHARPENING_PANEL,
        ),
    ] = None,
    fit_from: Annotated[
        float,
        typer.Option(
            metavar="Å", help="Start of the Guinier plot's line.", rich_help_panel=SHARPENING_PANEL
        ),
    ] = 10.0,
    fit_to: Annotated[
        float | None,
        typer.Option(
            metavar="Å",
            help="Its end.  [default: the resolution]",
            rich_help_panel=SHARPENING_PANEL,
        ),
    ] = None,
    mtf: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.star",
            help="MTF of the detector, as RELION keeps it, by which the map is divided first.",
            rich_help_panel=SHARPENING_PANEL,
        ),
    ] = None,
    mtf_angpix: Annotated[
        float | None,
        typer.Option(
            "--mtf-angpix",
            "--mtf_angpix",
            metavar="Å",
            help="Pixel of the detector, in which the MTF is.  [default: that of the maps]",
            rich_help_panel=SHARPENING_PANEL,
        ),
    ] = None,
    low_pass: Annotated[
        float | None,
        typer.Option(
            metavar="Å",
            help="Cut off what is finer, beside the weights of the FSC.",
            rich_help_panel=SHARPENING_PANEL,
        ),
    ] = None,
    window: Annotated[
        float | None,
        typer.Option(
            metavar="Å",
            help="Width of the window in which places are judged.  [default: 7 resolutions]",
            rich_help_panel=LOCAL_PANEL,
        ),
    ] = None,
    local: Annotated[
        bool,
        typer.Option(
            "--local/--no-local", help="Find local resolution.", rich_help_panel=LOCAL_PANEL
        ),
    ] = True,
    particles: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Particles, whose views say how often each direction was seen.",
            rich_help_panel=LOCAL_PANEL,
        ),
    ] = None,
    symmetry: Annotated[
        str,
        typer.Option(
            metavar="GROUP", help="Point group of the particle.", rich_help_panel=LOCAL_PANEL
        ),
    ] = "C1",
) -> None:
    """Sharpen a map and find its resolution: of all, around each voxel, along each direction.

    By RELION's names: postprocess.mrc, postprocess_masked.mrc, postprocess.star,
    postprocess_fsc.xml, and of local resolution postprocess_locres.mrc (Å; colour a surface by it)
    and postprocess_locres_filtered.mrc. Beside them postprocess.json with all numbers,
    postprocess_fsc.csv, and pictures. Where local resolution is the lowest that the window can
    tell, there may be nothing but noise.
    """
    from instamap.cli.progress_bars import ProgressBars
    from instamap.workflows import output, postprocess_files
    from instamap.workflows.postprocess import PostprocessSettings
    from instamap.workflows.postprocess import postprocess as run

    settings = PostprocessSettings(
        half1=half1,
        half2=half2,
        mask=mask,
        auto_mask=auto_mask,
        b_factor=b_factor,
        fit_from=fit_from,
        fit_to=fit_to,
        mtf=mtf,
        mtf_angpix=mtf_angpix,
        low_pass=low_pass,
        window=window,
        local=local,
        particles=particles,
        point_group=symmetry,
    )
    kind = postprocess_files.KIND
    with output.reserve(out, kind, force, settings.inputs) as place, place.filled() as folder:
        with ProgressBars() as bars:
            result = run(settings, bars)
        postprocess_files.write(result, folder)
    show(columns(result.summary()))
    for line in result.messages:
        show(f"note: {line}")
    picture = "fsc.png" if result.local is None else "local_resolution.png"
    show(f"everything in {out}/: look at {picture}")
