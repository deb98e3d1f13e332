"""`instamap fsc`: how far two maps agree."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instamap.cli.terminal import show
from instamap.cli.text_table import columns

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MapComparison:
    """FSC curves by name, of maps with a box (pixels) and a pixel size (Å)."""

    curves: "dict[str, Tensor]"
    box: int
    pixel_size: float


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
    force: Annotated[
        bool, typer.Option("--force", help="Replace files of these names if they are there.")
    ] = False,
) -> None:
    """Fourier shell correlation of two maps: resolution and curves."""
    from instamap.maps import fsc as shells  # torch is imported here, not for --help
    from instamap.workflows.output import check_file

    inputs = [path for path in (a, b, mask) if path is not None]
    for written in (output, plot):
        if written is not None:
            check_file(written, force, inputs)
    compared = _compare(a, b, mask)
    curves = compared.curves
    if output:
        shells.write_csv(output, curves, compared.box, compared.pixel_size)
    if plot:
        from instamap.report import fsc_plot

        fsc_plot.plot(plot, curves, compared.box, compared.pixel_size)
    show(columns(_rows(compared)))


def _rows(compared: MapComparison) -> list[list[str]]:
    """The resolution at each threshold, and the area under the curve, of each curve."""
    from instamap.maps import fsc as shells

    thresholds = shells.RESOLUTION_THRESHOLDS
    rows = [["", *[f"FSC = {threshold:g}" for threshold in thresholds], "AUC"]]
    for name, curve in compared.curves.items():
        row = [name]
        for threshold in thresholds:
            resolution = shells.resolution(curve, compared.box, compared.pixel_size, threshold)
            row.append(f"{resolution:.2f} Å")
        rows.append([*row, f"{shells.auc(curve):.4f}"])
    return rows


def _compare(a: Path, b: Path, mask: Path | None) -> MapComparison:
    import torch

    from instamap.maps import fsc as shells
    from instamap.maps import mask as masks
    from instamap.maps import mrc

    first = mrc.read(a)
    second = mrc.read(b)
    shells.same_frame(first, second, (str(a), str(b)))
    one, pixel_size = first
    other = second[0]
    curves = {"whole": shells.fsc(one, other)}
    if mask:
        soft = masks.load(mask, len(one), pixel_size)
        generator = torch.Generator().manual_seed(0)  # the same question has the same answer
        correction = shells.correct_for_mask(one, other, soft, generator=generator)
        curves["masked"] = correction.masked
        curves["corrected"] = correction.corrected
    return MapComparison(curves, len(one), pixel_size)
