"""What commands about a motion are given in words: a conformation, and the run's particles."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from instamap.cli.terminal import show
from instamap.errors import OptionError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from instamap.data.particle_table import ParticleTable
    from instamap.motion.motion_model import MotionModel


def device_for(name: str) -> "torch.device":
    """The device that a person has named; says which, where it is not the CPU. Raises OptionError
    for one that is not there.
    """
    from instamap.workflows.devices import CPU, choose_device, described

    device = choose_device(name)
    if device.type != CPU:
        show(f"device          {described(device)}")
    return device


def read_conformation(motion: "MotionModel", text: str | None) -> "Tensor":
    """The conformation "L" (float64) that is meant by numbers with commas between them, or the
    median. Raises OptionError.
    """
    import torch

    from instamap.motion.audit import reference

    if text is None:
        return reference(motion).double()
    count = motion.latents.shape[1]
    try:
        values = [float(word) for word in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count or not all(math.isfinite(value) for value in values):
        numbers = "1 number" if count == 1 else f"{count} numbers, with commas between them"
        raise OptionError(f"state is '{text}'; give {numbers}")
    return torch.tensor(values, dtype=torch.float64)


def particles_of_run(motion: "MotionModel", particles: Path | None) -> "ParticleTable":
    """The particles that a motion was fitted to. Raises DataError.

    particles: their file, if it is no longer where it was.
    """
    from instamap.data.writers import table_of_run

    return table_of_run(motion.settings, particles, len(motion.latents))


def hint_of_datadir(table: "ParticleTable", file: Path, datadir: Path | str | None) -> list[str]:
    """What is said where the images that a written file names are found with --datadir alone.

    datadir: with which the table's own were found.
    """
    from instamap.data.writers import datadir_for

    folder = datadir_for(table, file, Path(datadir) if datadir else None)
    if folder is None:
        return []
    return [f"images are named as before: read {file.name} with --datadir {folder}"]
