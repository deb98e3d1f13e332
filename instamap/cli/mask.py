"""`instamap mask`: a soft mask from a map or from an atomic model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instamap.cli.terminal import show
from instamap.errors import DataError, OptionError

if TYPE_CHECKING:
    from torch import Tensor

    from instamap.maps.mrc import Origin


def mask(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A map (.mrc), or an atomic model (PDB or mmCIF).",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write.")] = Path("mask.mrc"),
    level: Annotated[
        float | None,
        typer.Option(
            metavar="DENSITY",
            help="Density from which on a voxel is inside.  [default: found in the map]",
        ),
    ] = None,
    extend: Annotated[
        float, typer.Option(metavar="VOXELS", help="Extend what is inside by this.")
    ] = 3.0,
    edge: Annotated[
        float, typer.Option(metavar="VOXELS", help="Width of the soft edge around that.")
    ] = 6.0,
    low_pass: Annotated[
        float | None,
        typer.Option(
            metavar="Å",
            help="Filter the map first.  [default: 15 Å without --level, none with it]",
        ),
    ] = None,
    largest: Annotated[
        bool,
        typer.Option(
            "--largest", help="With --level: leave out parts below a tenth of the largest."
        ),
    ] = False,
    like: Annotated[
        Path | None,
        typer.Option(metavar="MAP.mrc", help="With a model: a map with the mask's box and voxels."),
    ] = None,
    radius: Annotated[
        float, typer.Option(metavar="Å", help="With a model: how far an atom reaches.")
    ] = 3.0,
    centred: Annotated[
        bool,
        typer.Option(
            "--centred", help="With a model: its origin is the middle of the box (voxel box // 2)."
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
) -> None:
    """Make a soft mask, from a map or from an atomic model.

    With --level it is relion_mask_create's of the same level, extension, edge and filter. Without
    it, the map is filtered to 15 Å and cut at 15 % of the way from solvent to the highest density,
    and small parts are left out. A model has the map's coordinates, as ChimeraX shows both, unless
    --centred. Models need gemmi (pip install 'instamap[models]').
    """
    from instamap.maps import mrc
    from instamap.simulate import atomic_model
    from instamap.workflows.output import check_file

    inputs = [source] if like is None else [source, like]
    check_file(out, force, inputs)
    _check_lengths(extend=extend, edge=edge, radius=radius)
    if atomic_model.is_model(source):
        made, pixel_size, origin = _from_model(source, like, radius, centred, extend, edge)
        words = f"mask from a model, extended by {extend:g} voxels, edge of {edge:g}"
    else:
        if like is not None or centred:
            raise OptionError(
                f"--like and --centred are for models, and '{source}' is a map; leave them out"
            )
        made, pixel_size, origin = _from_map(source, level, extend, edge, low_pass, largest)
        words = f"mask from a map, extended by {extend:g} voxels, edge of {edge:g}"
    mrc.write(out, made, pixel_size, origin=origin, label=words)
    inside = float((made > 0.5).double().mean())
    show(f"{out}: {inside:.1%} of the box is inside, {len(made)} voxels of {pixel_size:g} Å")


def _check_lengths(**lengths: float) -> None:
    for name, value in lengths.items():
        if not 0 <= value < float("inf"):
            raise OptionError(f"--{name} is {value:g}; give a length of at least 0")


def _from_map(
    source: Path,
    level: float | None,
    extend: float,
    edge: float,
    low_pass: float | None,
    largest: bool,
) -> "tuple[Tensor, float, Origin]":
    """The mask of a map, its pixel size and where it is."""
    from instamap.maps import mask as masks
    from instamap.maps import mrc, sharpening

    volume, pixel_size = mrc.read(source)
    origin = mrc.read_origin(source)
    if level is None:
        made = masks.from_map(volume, pixel_size, low_pass=low_pass, extend=extend, edge=edge)
        return made, pixel_size, origin
    if low_pass is not None:
        volume = sharpening.low_pass(volume, pixel_size, low_pass)
    made = masks.from_level(volume, level, extend=extend, edge=edge, largest_parts=largest)
    return made, pixel_size, origin


def _from_model(
    source: Path,
    like: Path | None,
    radius: float,
    centred: bool,
    extend: float,
    edge: float,
) -> "tuple[Tensor, float, Origin]":
    """The mask of a model in the box of a map, its pixel size and where it is."""
    import torch

    from instamap.maps import mask as masks
    from instamap.maps import mrc
    from instamap.simulate import atomic_model

    if like is None:
        raise DataError(f"model '{source}' has no box; give --like MAP.mrc, a map with the mask's")
    volume, pixel_size = mrc.read(like)
    origin = mrc.read_origin(like)
    box = len(volume)
    position = atomic_model.read(source).position
    if centred:
        position = position + box // 2 * pixel_size
    else:
        position = position - torch.tensor(origin, dtype=position.dtype)
    made = masks.from_points(
        position,
        box,
        pixel_size,
        radius=radius,
        extend=extend,
        edge=edge,
    )
    return made, pixel_size, origin
