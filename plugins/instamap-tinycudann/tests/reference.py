"""tinycudann's grid encoding written out in torch: what the conversion is held against on machines
without a card.

Source: tiny-cuda-nn, include/tiny-cuda-nn/encodings/grid.h and common_device.h: with b the base
resolution and s the scale per level, level l has

    scale       2^(l log2 s) b - 1
    resolution  ceil(scale) + 1 vertices along an axis
    entries     resolution³ rounded up to a multiple of 8, at most 2^log2_hashmap_size

A point x is at x · scale + 1/2. Vertex (x, y, z) has the entry x + y resolution + z resolution²
where a level has as many entries, else the exclusive or of x, y and z times the primes 1,
2654435761 and 805459861 in 32 bits; either modulo the entries.
"""

import math

import torch
from torch import Tensor, nn

PRIMES = (1, 2654435761, 805459861)
WORD = 1 << 32


class Encoding(nn.Module):
    """Features "n L*F" of points "n 3", by the rule above; parameters lie level by level, entry by
    entry.
    """

    def __init__(self, dimensions: int, configuration: dict, dtype: torch.dtype) -> None:
        super().__init__()
        assert dimensions == 3
        assert (configuration["otype"], configuration["type"]) == ("Grid", "Hash")
        assert configuration["n_features_per_level"] in (1, 2, 4, 8)
        self.features = configuration["n_features_per_level"]
        self.smoothstep = configuration["interpolation"] == "Smoothstep"
        self.levels = []
        growth = math.log2(configuration["per_level_scale"])
        most = 1 << configuration["log2_hashmap_size"]
        for level in range(configuration["n_levels"]):
            scale = 2 ** (level * growth) * configuration["base_resolution"] - 1
            resolution = math.ceil(scale) + 1
            aligned = (resolution**3 + 7) // 8 * 8
            self.levels.append((scale, resolution, min(aligned, most)))
        count = sum(entries for _, _, entries in self.levels) * self.features
        self.params = nn.Parameter(torch.zeros(count, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        encoded = []
        start = 0
        for scale, resolution, entries in self.levels:
            stop = start + entries * self.features
            table = self.params[start:stop].view(entries, self.features)
            encoded.append(self._level(x, table, scale, resolution))
            start = stop
        return torch.cat(encoded, 1)

    def _level(self, x: Tensor, table: Tensor, scale: float, resolution: int) -> Tensor:
        position = x * scale + 0.5
        cell = position.floor()
        upper = position - cell
        if self.smoothstep:
            upper = upper * upper * (3 - 2 * upper)
        total = torch.zeros(len(x), self.features, dtype=table.dtype)
        for corner in range(8):
            weight = torch.ones(len(x), dtype=upper.dtype)
            vertex = []
            for axis in range(3):
                step = corner >> axis & 1
                along = upper[:, axis]
                weight = weight * (along if step else 1 - along)
                vertex.append((cell[:, axis].long() + step) % WORD)
            row = index(vertex, resolution, len(table))
            total = total + weight[:, None] * table[row]
        return total


def index(vertex: list[Tensor], resolution: int, entries: int) -> Tensor:
    """The entry of each vertex (x, y, z)."""
    x, y, z = vertex
    if entries < resolution**3:
        x, y, z = (a * prime % WORD for a, prime in zip(vertex, PRIMES, strict=True))
        return (x ^ y ^ z) % entries
    return (x + y * resolution + z * resolution**2) % WORD % entries
