"""Particles written anew: their images in one stack, and the STAR file with what they say of
themselves made true.
"""

from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import starfile
import torch
from torch import Tensor

from instamap.data.formats import star_tables
from instamap.data.particles import Particles
from instamap.errors import DataError

_CHUNK = 1 << 22  # pixels, of images as they are on disk, in memory at once
_LENGTHS = (
    "rlnImagePixelSize",
    "rlnPixelSize",
)  # Å per pixel of an image; those of the micrograph stay as they are
_PIXELS = tuple(
    f"rlnOrigin{axis}{of}" for axis in "XYZ" for of in ("", "Prior")
)  # in pixels of an image, as RELION wrote up to 3.0
_SAME = 1e-3  # relative difference of pixel sizes that may be rounding of a magnification


def rewrite(
    particles: Particles,
    star: Path,
    stack: Path,
    *,
    name: str,
    images: Callable[[Tensor], Tensor] | None = None,
    count: int | None = None,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the first `count` particles (all by default), as they are preprocessed: the file
    `star`, and `stack` in float32.

    name: by which the STAR file calls the stack. images(rows "B") -> "B D D" instead of the
    particles' own. Tables, columns, rows and their order are kept, and each value to the letter but
    for names of images and, where they change, the images' size and pixel size (by a magnification:
    that) and origins in pixels. watch(done, total) is told of images. Raises DataError.
    """
    count = particles.count if count is None else min(count, particles.count)
    found = _true(particles)
    main = particles.table.columns.name
    found[main] = (
        found[main].iloc[:count].assign(rlnImageName=[f"{i + 1:06d}@{name}" for i in range(count)])
    )
    starfile.write(found, star, na_rep="nan", overwrite=True)
    with mrcfile.new_mmap(
        stack, (count, particles.box, particles.box), mrc_mode=2, overwrite=True
    ) as file:
        for rows in torch.arange(count).split(max(1, _CHUNK // particles.stacks.box**2)):
            file.data[int(rows[0]) : int(rows[-1]) + 1] = (images or particles.images)(rows).numpy()
            watch(int(rows[-1]) + 1, count)
        file.set_image_stack()
        file.voxel_size = particles.pixel_size


def _true(particles: Particles) -> dict[str, pd.DataFrame | dict]:
    """The file's tables as text, in which sizes, pixel sizes and origins in pixels are those of the
    preprocessed images.
    """
    columns = particles.table.columns
    done = particles.preprocessor
    found = star_tables.texts(columns)
    found = {
        name: pd.DataFrame([t]) if isinstance(t, dict) and name in (columns.name, "optics") else t
        for name, t in found.items()
    }
    described = [found[name] for name in (columns.name, "optics") if name in found]
    if done.box != particles.stacks.box:
        for table in [t for t in described if "rlnImageSize" in t] or described[1:]:
            table["rlnImageSize"] = str(done.box)
    if done.edge != done.box:
        shrinking = (*_PIXELS, "rlnMagnification") if _magnified(particles) else _PIXELS
        for table in described:
            _scale(table, _LENGTHS, done.edge, done.box, particles.path)
            _scale(table, shrinking, done.box, done.edge, particles.path)
    return found


def _magnified(particles: Particles) -> bool:
    """Whether rlnDetectorPixelSize and rlnMagnification speak of the images, not of the micrographs
    that they were scaled down from.
    """
    columns = particles.table.columns
    if "rlnDetectorPixelSize" not in columns or "rlnMagnification" not in columns:
        return False
    said = columns.numbers("rlnDetectorPixelSize") * 1e4 / columns.numbers("rlnMagnification")
    return bool(np.allclose(said, particles.table.pixel_size, rtol=_SAME, atol=0))


def _scale(table: pd.DataFrame, names: tuple[str, ...], above: int, below: int, path: Path) -> None:
    """Multiply columns by above/below, in place. Raises DataError for a value that is no number."""
    for name in names:
        if name not in table:
            continue
        values = pd.to_numeric(table[name], errors="coerce")
        if values.isna().any():
            raise DataError(
                f"{name} of '{path}' is {table[name][values.isna()].iloc[0]}, which cannot be"
                " scaled; make it a number"
            )
        table[name] = [repr(float(value) * above / below) for value in values]
