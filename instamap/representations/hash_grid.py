"""Multiresolution hash grid with a small decoder: instant-NGP for densities."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from instamap.parts import Representation
from instamap.plugin.options import RepresentationOptions, option
from instamap.representations.decoder import decoder, in_chunks
from instamap.representations.encodings.grid import encode
from instamap.representations.encodings.levels import levels
from instamap.scene import Scene

# As powers of two of entries of a level, where the options say nothing.
LEAST_TABLE_SIZE = 18
MAX_TABLE_SIZE = 24


class HashGrid(Representation):
    """ρ(x) = decoder(interpolated features of every level at x). Source: Müller et al. 2022; the
    paper's representation.

    A level is a dense lattice where that fits its table, and a spatial hash otherwise. The box is
    mapped to [0, 1]³.
    """

    @dataclass(frozen=True)
    class Options(RepresentationOptions):
        levels: int = option(6, "lattices, from coarse to fine", low=1, high=32)
        features: int = option(2, "numbers kept at each lattice point", low=1, high=16)
        table_size: int | None = option(
            None,
            "largest table of a level, as the power of two of its entries; none means 18, or more"
            " where the mask has more voxels",
            low=4,
            high=26,
        )
        base: int = option(8, "cells along an edge of the coarsest level", low=1)
        finest: int | None = option(
            None,
            "cells along an edge of the finest level; none means three for every two pixels",
            low=1,
        )
        interpolation: Literal["linear", "smoothstep"] = option(
            "linear", "within a cell; smoothstep has no kinks"
        )
        width: int = option(16, "units of a hidden layer of the decoder", low=1)
        depth: int = option(1, "hidden layers of the decoder, 0 makes it linear", low=0, high=8)
        learning_rate: float = option(0.2, "step size of Adam for this part", low=0.0)
        sampled: float = option(
            0.15, "factor of the step size where each step sees a part of the images", low=0.0
        )

    # Features at birth are uniform between its opposite and this.
    INITIAL_FEATURE = 1e-4

    def __init__(self, options: Options, scene: Scene) -> None:
        super().__init__(options, scene)
        wanted = options.finest or scene.box * 3 // 2
        self.levels = levels(
            count=options.levels,
            base=options.base,
            finest=max(wanted, options.base),
            features=options.features,
            log2_table=options.table_size or _table_size(scene),
            smoothstep=options.interpolation == "smoothstep",
        )
        table = torch.empty(self.levels.entries, options.features)
        table.uniform_(-self.INITIAL_FEATURE, self.INITIAL_FEATURE)
        self.table = nn.Parameter(table)
        self.decoder = decoder(self.levels.width, options.width, options.depth)

    def forward(self, x: Tensor) -> Tensor:
        """The field "*n" at points "*n 3"."""
        points = x.reshape(-1, 3)
        edge = self.scene.box * self.scene.pixel_size
        unit = points / edge + 0.5
        features = encode(unit, self.table, self.levels)
        values = in_chunks(self.decoder, features)
        return values.reshape(x.shape[:-1])


def _table_size(scene: Scene) -> int:
    """The power of two of entries that is not below the number of voxels in the mask: with fewer,
    the finest levels have less room than there is detail.
    """
    if scene.mask is None:
        return LEAST_TABLE_SIZE
    voxels = int((scene.mask > 0).sum())
    return min(MAX_TABLE_SIZE, max(LEAST_TABLE_SIZE, (voxels - 1).bit_length()))
