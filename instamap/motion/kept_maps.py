"""Maps that are kept in a file while a command is under way, so that a stopped one can go on."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from instamap.tensor_files import DamagedFile, read_npz, write_npz


def load(file: Path | None) -> dict[str, Tensor] | None:
    """What was kept in a file, by name; None where nothing was, or it is damaged."""
    if file is None:
        return None
    try:
        arrays = read_npz(file)
    except (OSError, DamagedFile):
        return None
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def save(file: Path | None, tensors: Mapping[str, Tensor]) -> None:
    """Keeps tensors in a file, whole or not at all, if anything is kept."""
    if file is None:
        return
    write_npz(file, {name: tensor.numpy() for name, tensor in tensors.items()})
