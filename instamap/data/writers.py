"""Files of particles, written again with what is known now; all else stays to the letter."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from instamap.data import formats, stacks
from instamap.data.particle_table import ParticleTable, Rescaling
from instamap.data.particles import Particles
from instamap.data.stacks import Stacks
from instamap.data.symmetry_expansion import Expansion
from instamap.errors import DataError
from instamap.files import replacing
from instamap.geometry.symmetry import point_group
from instamap.progress import SILENT, Progress
from instamap.scene import Views

_PIXELS_AT_ONCE = 1 << 22  # of images as they are on disk


def write_latents(
    table: ParticleTable, latents: Tensor, file: Path, rows: Tensor | None = None
) -> None:
    """Write the particles `rows` "m" (all if None), in the file's order, with columns
    instamapLatent1, 2, ... of the coordinates "n L".

    Columns of these names from an earlier run are replaced. Raises OutputError.
    """
    source = table.source.with_latents(latents)
    if rows is not None:
        source = source.take(rows.sort().values.numpy())
    with replacing(named_for(table, file)) as sibling:
        source.write(sibling)


def write_poses(particles: Particles, views: Views, changed: Tensor, file: Path) -> None:
    """Write the particles with the poses of `views`: angles and origins, in Å and in pixels,
    whichever the file has.

    Rows that are not `changed` "n" (bool) stay to the letter. Raises OutputError.
    """
    source = particles.table.source.with_poses(views, changed.numpy())
    with replacing(named_for(particles.table, file)) as sibling:
        source.write(sibling)


def write_particles(
    particles: Particles,
    file: Path,
    stack: Path,
    *,
    name: str,
    images: Callable[[Tensor], Tensor] | None = None,
    count: int | None = None,
    progress: Progress = SILENT,
) -> None:
    """Write the first `count` particles (all by default), as they are preprocessed: `file`, and
    their images in `stack` in float32.

    name: by which the file calls the stack. images(rows "B") -> "B D D" instead of the particles'
    own. Tables, columns, rows and their order are kept, and each value to the letter but for names
    of images and, where they change, the images' size and pixel size (by a magnification: that) and
    origins in pixels. Raises DataError, OutputError.
    """
    count = particles.count if count is None else min(count, particles.count)
    done = particles.preprocessor
    pixel_size = particles.pixel_size if particles.lattice_change else None
    rescaling = Rescaling(particles.stacks.box, done.edge, done.box, pixel_size)
    first = particles.table.source.take(np.arange(count))
    first.with_images(name, rescaling).write(named_for(particles.table, file))
    read = images or particles.images
    with stacks.new_stack(stack, count, particles.box, particles.pixel_size) as writer:
        for rows in torch.arange(count).split(max(1, _PIXELS_AT_ONCE // particles.stacks.box**2)):
            writer.write(int(rows[0]), read(rows).numpy())
            progress.images_read(int(rows[-1]) + 1, count)


def named_for(table: ParticleTable, file: Path) -> Path:
    """The file, or, where its name is that of a STAR file and the particles are those of another
    program, the one with that program's suffix.
    """
    return file.with_suffix(table.source.suffix) if file.suffix == ".star" else file


def table_of_run(
    settings: Mapping[str, Any], replacement: Path | None, count: int
) -> ParticleTable:
    """The particles of a run with `settings`, or those of the file that takes the place of its own.

    They must have `count` rows, those of symmetric particles being expanded where the run's were.
    Raises DataError.
    """
    if replacement is None and "particles" not in settings:
        raise DataError(
            "run.toml does not name the particles; give their STAR file with --particles"
        )
    path = Path(settings["particles"]) if replacement is None else replacement
    if not path.exists():
        raise DataError(
            f"the particles' STAR file '{path}' does not exist (seen from '{Path.cwd()}'); give it"
            " with --particles"
        )
    table = formats.read(path)
    symmetry = settings.get("symmetry", "C1")
    if symmetry != "C1":
        expansion = Expansion(point_group(symmetry))
        if count == expansion.copies * len(table):
            return expansion.table(table)
    if len(table) != count:
        raise DataError(
            f"'{path}' has {len(table)} rows, but the run has coordinates of {count}; give the STAR"
            " file that was fitted"
        )
    return table


def datadir_for(table: ParticleTable, file: Path, datadir: Path | None) -> Path | None:
    """The folder with which the images that `table` names are found for a file `file` that names
    them likewise.

    None where they are found without, or the run itself (with its `datadir`) would not find them.
    """
    of_stacks = {name.rpartition("@")[2]: name for name in table.image_names}
    names = list(of_stacks.values())  # one of each stack
    found = _stack_files(names, table.path, datadir)
    if found is None or _stack_files(names, file, None) == found:
        return None
    start = table.path.absolute().parent
    folders = [start, *start.parents] if datadir is None else [datadir]
    for folder in folders:
        if _stack_files(names, file, folder) == found:
            return folder
    return None


def _stack_files(names: list[str], file: Path, folder: Path | None) -> list[Path] | None:
    """The stacks that are found for a file of particles, or None."""
    try:
        stacks = Stacks(names, file, folder)
    except DataError:
        return None
    return [path.resolve() for path in stacks.files]
