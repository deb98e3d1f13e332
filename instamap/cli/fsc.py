"""`instamap fsc`: how far two maps agree."""

from pathlib import Path
from typing import Annotated

import typer

from instamap.cli.text_table import columns


def fsc(
    a: Annotated[Path, typer.Argument(metavar="A.mrc", help="A map.", show_default=False)],
    b: Annotated[
        Path,
        typer.Argument(
            metavar="B.mrc", help="Another, such as the other half map.", show_default=False
        ),
    ],
    mask: Annotated[
        Path | None,
        typer.Option(metavar="M.mrc", help="Compare inside this mask too, and correct for it."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FSC.csv", help="Write the curves.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FSC.png", help="Draw the curves.")] = None,
) -> None:
    """Fourier shell correlation of two maps: resolution and curves."""
    from instamap.maps import fsc as shells  # torch is imported here, not for --help

    curves, box, pixel_size = _curves(a, b, mask)
    if output:
        shells.write_csv(output, curves, box, pixel_size)
    if plot:
        from instamap.report import fsc_plot

        fsc_plot.plot(plot, curves, box, pixel_size)
    rows = [["", *[f"FSC = {t:g}" for t in shells.RESOLUTION_THRESHOLDS], "AUC"]]
    for name, curve in curves.items():
        found = [
            f"{shells.resolution(curve, box, pixel_size, t):.2f} Å"
            for t in shells.RESOLUTION_THRESHOLDS
        ]
        rows.append([name, *found, f"{shells.auc(curve):.4f}"])
    typer.echo(columns(rows))


def _curves(a: Path, b: Path, mask: Path | None) -> tuple[dict, int, float]:
    """The curves by name, the box and the pixel size in Å."""
    import torch

    from instamap.maps import fsc as shells
    from instamap.maps import mask as masks
    from instamap.maps import mrc

    first = mrc.read(a)
    second = mrc.read(b)
    shells.same_frame(first, second, (str(a), str(b)))
    (one, pixel_size), other = first, second[0]
    curves = {"whole": shells.fsc(one, other)}
    if mask:
        soft = masks.load(mask, len(one), pixel_size)
        generator = torch.Generator().manual_seed(0)  # the same question has the same answer
        curves["masked"] = shells.fsc(shells.levelled(one, soft), shells.levelled(other, soft))
        curves["corrected"] = shells.phase_randomised(one, other, soft, generator=generator)
    return curves, len(one), pixel_size
