"""Levels of instamap's hash grid as encodings of tinycudann, and their parameters both ways.

Each level is an encoding with one level. In tinycudann an encoding of base resolution N looks a
point x up at x (N - 1) + 1/2, so with N = n + 1, and points shifted by -1/2n, a level of n cells is
met exactly. Source: tiny-cuda-nn, include/tiny-cuda-nn/encodings/grid.h.
"""

from typing import Any

import torch
from instamap import PartError
from instamap.representations.encodings.levels import Levels
from torch import Tensor

ALIGNMENT = 8  # entries of a level are a multiple of it
FEATURES = (1, 2, 4, 8)  # an entry that tinycudann is compiled for
MAX_CELLS = 1624  # along an edge: 1625³ vertices are the most that 32 bits count


def check(levels: Levels) -> None:
    """Raises PartError for levels that tinycudann cannot hold."""
    if levels.features not in FEATURES:
        raise PartError(
            f"a hash grid of {levels.features} features cannot be made by tinycudann, which has 1,"
            " 2, 4 or 8; choose one of these, or representation 'hash-grid'"
        )
    finest = max(levels.resolutions)
    if finest > MAX_CELLS:
        raise PartError(
            f"a level of {finest} cells along an edge cannot be made by tinycudann, which counts"
            f" vertices in 32 bits; choose finest at most {MAX_CELLS}, or representation"
            " 'hash-grid'"
        )


def configurations(levels: Levels) -> list[dict[str, Any]]:
    """What each level's `tinycudann.Encoding` is made of. Raises PartError for levels that it
    cannot hold.
    """
    check(levels)
    interpolation = "Smoothstep" if levels.smoothstep else "Linear"
    made = []
    for level, cells in enumerate(levels.resolutions):
        largest = entries(levels, level)
        made.append(
            {
                "otype": "Grid",
                "type": "Hash",
                "n_levels": 1,
                "n_features_per_level": levels.features,
                "log2_hashmap_size": (largest - 1).bit_length(),
                "base_resolution": cells + 1,
                "per_level_scale": 1.0,
                "interpolation": interpolation,
            }
        )
    return made


def entries(levels: Levels, level: int) -> int:
    """Entries of a level in tinycudann."""
    ours = levels.offsets[level + 1] - levels.offsets[level]
    return -(-ours // ALIGNMENT) * ALIGNMENT


def shifted(points: Tensor, cells: int) -> Tensor:
    """Points "n 3" for tinycudann, of points in [0, 1] for a level of `cells`; points outside are
    moved to the surface.
    """
    return points.clamp(0, 1) - 0.5 / cells


def to_tinycudann(table: Tensor, levels: Levels) -> list[Tensor]:
    """Parameters "entries·F" of each level's encoding, of a table "E F"; entries that no vertex has
    are zero. Differentiable.
    """
    parameters = []
    for level in range(len(levels.resolutions)):
        rows = table[levels.offsets[level] : levels.offsets[level + 1]]
        idle = entries(levels, level) - len(rows)
        padded = torch.nn.functional.pad(rows, (0, 0, 0, idle))
        parameters.append(padded.flatten())
    return parameters


def from_tinycudann(parameters: list[Tensor], levels: Levels) -> Tensor:
    """The table "E F" of each level's parameters "entries·F". Raises ValueError for parameters of
    other levels.
    """
    if len(parameters) != len(levels.resolutions):
        raise ValueError(
            f"there are parameters of {len(parameters)} encodings; these levels need"
            f" {len(levels.resolutions)}"
        )
    tables = []
    for level, flat in enumerate(parameters):
        needed = entries(levels, level) * levels.features
        if flat.shape != (needed,):
            raise ValueError(
                f"parameters of level {level} have shape {tuple(flat.shape)}; it needs ({needed},)"
            )
        rows = levels.offsets[level + 1] - levels.offsets[level]
        entry = flat.view(-1, levels.features)
        tables.append(entry[:rows])
    return torch.cat(tables)
