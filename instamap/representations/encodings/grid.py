"""The multiresolution grid encoding: the reference in plain torch, and the choice of
the faster kernels where they exist.

A point x in [0, 1]³ lies in one cell of each level; the level's features are the interpolation of
the entries at the cell's eight corners. A level of n cells along an axis has (n + 1)³ vertices;
where they fit into the level's share of the table each has its own entry (a dense level, stored [z,
y, x]), else vertex (x, y, z) has entry

    (1·x  xor  2654435761·y  xor  805459861·z)  modulo  2^log2_table

in 32-bit unsigned arithmetic, and colliding vertices share it. Source: Müller et al., ACM Trans.
Graph. 41, 102 (2022), section 3, equations 2-4. Here vertices lie at i / n for i = 0..n, both faces
included, so nothing wraps around at the upper face. Points outside the cube are moved to its
surface; there the gradient with respect to position is zero. NaN gives NaN.

Call `encode` once for all points rather than once per chunk: it works in blocks itself, and every
call's backward makes one gradient of the size of the table.
"""

from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from instamap.geometry import compiled, device_kernels
from instamap.representations.encodings.levels import PRIMES, Levels, check

# Points at a time in the reference: beyond this, fresh memory costs more than arithmetic.
POINTS_AT_ONCE = 1 << 15


def encode(x: Tensor, table: Tensor, levels: Levels) -> Tensor:
    """Features "n L*F" (level-major) of points `x` "n 3" in [0, 1], with the fastest kernel there
    is: see `backend`.
    """
    chosen = backend(x)
    if chosen == "numba":
        return _numba().encode_numba(x, table, levels)
    if chosen == "triton":
        return _triton().encode_triton(x, table, levels)
    return encode_torch(x, table, levels)


def backend(x: Tensor) -> Literal["numba", "triton", "torch"]:
    """The implementation that `encode` uses for points like `x`: for float32, numba on a CPU and
    Triton on a card, where they can be imported; else torch.
    """
    if x.dtype != torch.float32:
        return "torch"
    if x.device.type == "cpu" and compiled.usable():
        return "numba"
    if device_kernels.usable(x.device):
        return "triton"
    return "torch"


def _numba() -> ModuleType:
    """The kernels for CPUs, imported on first use: it takes 0.2 s."""
    from instamap.representations.encodings import grid_numba

    return grid_numba


def _triton() -> ModuleType:
    """The kernels for cards, imported on first use: Triton need not be there."""
    from instamap.representations.encodings import grid_triton

    return grid_triton


def encode_torch(x: Tensor, table: Tensor, levels: Levels) -> Tensor:
    """Features "n L*F" (level-major) of points `x` "n 3" in [0, 1]; `table` "E F" of the same
    dtype. Any device, float32 or float64.

    Differentiable once in both. The backward computes cells and weights anew: keeping them would
    take 8 L numbers a point.
    """
    check(x, table, levels)
    return _Encode.apply(x, table, levels)


class _Encode(torch.autograd.Function):
    """The encoding, and its gradients in the points and in the table."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        table: Tensor,
        levels: Levels,
    ) -> Tensor:
        ctx.save_for_backward(x, table)
        ctx.levels = levels
        count = len(levels.resolutions)
        features = table.new_empty(len(x), count, levels.features)
        for start in range(0, len(x), POINTS_AT_ONCE):
            chunk = slice(start, start + POINTS_AT_ONCE)
            points = x[chunk].T.contiguous()
            for level in range(count):
                weight, _, rows = _cells(points, levels, level)
                corners = _gather(table, rows)
                faces = torch.lerp(corners[0], corners[1], weight[2])
                edges = torch.lerp(faces[0], faces[1], weight[1])
                values = torch.lerp(edges[0], edges[1], weight[0])
                features[chunk, level] = values.view(-1, levels.features)
        return features.flatten(1)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        upstream: Tensor,
    ) -> tuple[Tensor | None, Tensor | None, None]:
        x, table = ctx.saved_tensors
        levels = ctx.levels
        wants_x, wants_table, _ = ctx.needs_input_grad
        count = len(levels.resolutions)
        by_level = upstream.unflatten(1, (count, levels.features))
        grad_x = torch.zeros_like(x) if wants_x else None
        grad_table = torch.zeros_like(table) if wants_table else None
        for start in range(0, len(x), POINTS_AT_ONCE):
            chunk = slice(start, start + POINTS_AT_ONCE)
            points = x[chunk].T.contiguous()
            for level in range(count):
                weight, slope, rows = _cells(points, levels, level)
                grad = by_level[chunk, level].flatten()
                to_edges = _split(grad, weight[0])
                to_faces = _split(to_edges, weight[1])
                if grad_table is not None:
                    to_corners = _split(to_faces, weight[2])
                    _scatter_add(grad_table, rows, to_corners)
                if grad_x is not None:
                    corners = _gather(table, rows)
                    by_weight = _weight_gradient(corners, weight, to_faces, to_edges)
                    by_feature = by_weight.unflatten(1, (-1, levels.features))
                    by_axis = by_feature.sum(2) * slope
                    grad_x[chunk] += by_axis.T
        if grad_x is not None:
            outside = (x < 0) | (x > 1)
            grad_x.masked_fill_(outside, 0)
        return grad_x, grad_table, None


def _cells(
    points: Tensor,
    levels: Levels,
    level: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Upper weights "3 n*F" (once per feature) of `points` "3 n" in their cells, these weights'
    slopes in x "3 n", and the corners' rows "2 2 2 n" [z, y, x].
    """
    n = levels.resolutions[level]
    position = points.clamp(0, 1) * n
    # The upper face belongs to the last cell; what NaN becomes, to some cell.
    cell = position.floor().long().clamp(0, n - 1)
    weight = position - cell
    slope = torch.full_like(weight, n)
    if levels.smoothstep:
        slope = 6 * n * weight * (1 - weight)
        weight = weight * weight * (3 - 2 * weight)
    rows = _rows(cell, levels, level)
    return weight.repeat_interleave(levels.features, 1), slope, rows


def _rows(cell: Tensor, levels: Levels, level: int) -> Tensor:
    """Rows of the table "2 2 2 n" [z, y, x] that hold the corners of cells "3 n"."""
    start = levels.offsets[level]
    if levels.dense[level]:
        vertices = levels.resolutions[level] + 1
        return _dense_rows(cell, vertices, start)
    hashes = _hashes(cell)
    size = levels.offsets[level + 1] - start
    # The low bits of 64-bit products are those of 32-bit ones.
    return hashes.bitwise_and_(size - 1).add_(start)


def _dense_rows(
    cell: Tensor,
    vertices: int,
    start: int,
) -> Tensor:
    """Rows "2 2 2 n" [z, y, x] of the corners of cells "3 n" of a level of `vertices` an axis that
    begins at row `start`.
    """
    line = vertices
    sheet = vertices * vertices
    above_first = sheet * cell[2] + start
    first = cell[0] + line * cell[1] + above_first
    in_sheet = [0, 1, line, line + 1]
    above = [sheet + step for step in in_sheet]
    corner = torch.tensor(in_sheet + above, device=cell.device)
    rows = first + corner[:, None]
    return rows.view(2, 2, 2, -1)


def _hashes(cell: Tensor) -> Tensor:
    """Hashes "2 2 2 n" [z, y, x] of the corners of cells "3 n"."""
    by_axis = []
    for lower, prime in zip(cell, PRIMES, strict=True):
        ends = torch.stack([lower * prime, (lower + 1) * prime])
        by_axis.append(ends)
    x, y, z = by_axis
    sheets = z[:, None] ^ y
    return sheets[:, :, None] ^ x


def _split(grad: Tensor, weight: Tensor) -> Tensor:
    """Gradient "2 ..." with respect to both ends of an interpolation, from the one with respect to
    its result.
    """
    upper = grad * weight
    return torch.stack([grad - upper, upper])


def _weight_gradient(
    corners: Tensor,
    weight: Tensor,
    to_faces: Tensor,
    to_edges: Tensor,
) -> Tensor:
    """Gradient "3 n*F" with respect to the weights: at each stage, the gradient times the
    difference of the two ends.
    """
    faces = torch.lerp(corners[0], corners[1], weight[2])
    edges = torch.lerp(faces[0], faces[1], weight[1])
    across_z = corners[1] - corners[0]
    across_y = faces[1] - faces[0]
    across_x = edges[1] - edges[0]
    by_z = (to_faces * across_z).sum((0, 1))
    by_y = (to_edges * across_y).sum(0)
    by_x = to_edges.sum(0) * across_x
    return torch.stack([by_x, by_y, by_z])


def _gather(table: Tensor, rows: Tensor) -> Tensor:
    """Entries "2 2 2 n*F" of `table`. A pair of numbers moves several times faster as one complex
    number.
    """
    index = rows.flatten()
    if table.shape[1] == 2:
        pairs = torch.view_as_complex(table)
        entries = torch.view_as_real(pairs.index_select(0, index))
    else:
        entries = table.index_select(0, index)
    return entries.view(2, 2, 2, -1)


def _scatter_add(table: Tensor, rows: Tensor, values: Tensor) -> None:
    """Adds `values` "2 2 2 n*F" to rows of `table`, in place; pairs as complex numbers, as in
    `_gather`.
    """
    index = rows.flatten()
    entries = values.view(-1, table.shape[1])
    if table.shape[1] == 2:
        pairs = torch.view_as_complex(table)
        pairs.index_add_(0, index, torch.view_as_complex(entries))
    else:
        table.index_add_(0, index, entries)
