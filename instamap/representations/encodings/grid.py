"""The multiresolution grid encoding: its levels, the reference in plain torch, and the choice of
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

import functools
from dataclasses import dataclass
from itertools import accumulate
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from instamap.errors import OptionError
from instamap.geometry import compiled

PRIMES = (1, 2654435761, 805459861)
CHUNK = (
    1 << 15
)  # points at a time in the reference: beyond this, fresh memory costs more than arithmetic


@dataclass(frozen=True)
class Levels:
    """Geometry of the table "E F": level l is `table[offsets[l] : offsets[l + 1]]`, with
    resolutions[l] cells along an axis.
    """

    resolutions: tuple[int, ...]
    offsets: tuple[int, ...]  # one more than there are levels: the last is E
    dense: tuple[bool, ...]
    features: int
    smoothstep: bool

    @property
    def entries(self) -> int:
        """E: rows of the table."""
        return self.offsets[-1]

    @property
    def width(self) -> int:
        """L F: features of an encoded point."""
        return len(self.resolutions) * self.features


def levels(
    count: int, base: int, finest: int, features: int, log2_table: int, smoothstep: bool
) -> Levels:
    """`count` levels with cells along an axis rising geometrically from `base` to `finest`, of at
    most 2^log2_table entries each.

    smoothstep: interpolate with 3w² - 2w³ in place of w, so that the gradient is continuous (Müller
    et al. 2022, appendix A). A single level has `finest` cells. Raises OptionError if there can be
    no such levels.
    """
    if count < 1 or features < 1:
        raise OptionError(
            f"a grid of {count} levels with {features} features cannot be made; both must be at"
            " least 1"
        )
    if not 1 <= base <= finest <= 1 << 16:
        raise OptionError(
            f"levels from {base} to {finest} cells cannot be made; 1 <= base <= finest <= 65536"
        )
    if not 0 <= log2_table <= 30:
        raise OptionError(
            f"a table of 2^{log2_table} entries cannot be made; the exponent must be from 0 to 30"
        )
    growth = (finest / base) ** (1 / max(count - 1, 1))
    resolutions = tuple(
        finest if level == count - 1 else round(base * growth**level) for level in range(count)
    )
    vertices = [(n + 1) ** 3 for n in resolutions]
    offsets = tuple(accumulate((min(v, 1 << log2_table) for v in vertices), initial=0))
    return Levels(
        resolutions, offsets, tuple(v <= 1 << log2_table for v in vertices), features, smoothstep
    )


def encode(x: Tensor, table: Tensor, levels: Levels) -> Tensor:
    """Features "n L*F" (level-major) of points `x` "n 3" in [0, 1], with the fastest kernel there
    is: see `backend`.
    """
    if backend(x) == "numba":
        return _kernels().encode_numba(x, table, levels)
    return encode_torch(x, table, levels)


def backend(x: Tensor) -> Literal["numba", "torch"]:
    """Which implementation `encode` uses for points like `x`: numba for float32 on a CPU where it
    can be imported, else torch.
    """
    return (
        "numba" if x.device.type == "cpu" and x.dtype == torch.float32 and _kernels() else "torch"
    )


@functools.cache
def _kernels() -> ModuleType | None:
    """The numba kernels, or None where there is no numba that works. Imported on first use: it
    takes 0.2 s.
    """
    if not compiled.usable():
        return None

    from instamap.representations.encodings import grid_numba

    return grid_numba


def encode_torch(x: Tensor, table: Tensor, levels: Levels) -> Tensor:
    """Features "n L*F" (level-major) of points `x` "n 3" in [0, 1]; `table` "E F" of the same
    dtype. Any device, float32 or float64.

    Differentiable once in both. The backward computes cells and weights anew: keeping them would
    take 8 L numbers a point.
    """
    check(x, table, levels)
    return _Encode.apply(x, table, levels)


def check(x: Tensor, table: Tensor, levels: Levels) -> None:
    """Raises ValueError unless points are "n 3" and the table is "E F" as `levels` has it, both of
    one dtype and on one device.
    """
    if x.ndim != 2 or x.shape[1] != 3:
        raise ValueError(f"points have shape {tuple(x.shape)}; they must be (n, 3)")
    if table.shape != (levels.entries, levels.features):
        raise ValueError(
            f"the table has shape {tuple(table.shape)}; these levels need"
            f" {(levels.entries, levels.features)}"
        )
    if (x.dtype, x.device) != (table.dtype, table.device):
        raise ValueError(
            f"points are {x.dtype} on {x.device}, the table is {table.dtype} on {table.device};"
            " they must be alike"
        )


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, table: Tensor, levels: Levels) -> Tensor:
        ctx.save_for_backward(x, table)
        ctx.levels = levels
        out = table.new_empty(len(x), len(levels.resolutions), levels.features)
        for start in range(0, len(x), CHUNK):
            points = x[start : start + CHUNK].T.contiguous()
            for level in range(len(levels.resolutions)):
                w, _, rows = _cells(points, levels, level)
                corners = _gather(table, rows)
                faces = torch.lerp(corners[0], corners[1], w[2])
                edges = torch.lerp(faces[0], faces[1], w[1])
                out[start : start + CHUNK, level] = torch.lerp(edges[0], edges[1], w[0]).view(
                    -1, levels.features
                )
        return out.flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        (x, table), levels = ctx.saved_tensors, ctx.levels
        grad = grad.unflatten(1, (len(levels.resolutions), levels.features))
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        grad_table = torch.zeros_like(table) if ctx.needs_input_grad[1] else None
        for start in range(0, len(x), CHUNK):
            points = x[start : start + CHUNK].T.contiguous()
            for level in range(len(levels.resolutions)):
                w, slope, rows = _cells(points, levels, level)
                to_edges = _split(grad[start : start + CHUNK, level].flatten(), w[0])
                to_faces = _split(to_edges, w[1])
                to_corners = _split(to_faces, w[2])
                if grad_table is not None:
                    _scatter_add(grad_table, rows, to_corners)
                if grad_x is not None:
                    by_weight = _weight_gradient(
                        _gather(table, rows), w, to_faces, to_edges, to_edges.sum(0)
                    )
                    grad_x[start : start + CHUNK] += (
                        by_weight.unflatten(1, (-1, levels.features)).sum(2) * slope
                    ).T
        if grad_x is not None:
            grad_x.masked_fill_((x < 0) | (x > 1), 0)
        return grad_x, grad_table, None


def _cells(points: Tensor, levels: Levels, level: int) -> tuple[Tensor, Tensor, Tensor]:
    """For `points` "3 n": upper weights "3 n*F" (once per feature), their slopes in x "3 n",
    corners' rows "2 2 2 n" [z, y, x].
    """
    n = levels.resolutions[level]
    position = points.clamp(0, 1) * n
    cell = (
        position.floor().long().clamp(0, n - 1)
    )  # the upper face belongs to the last cell; what NaN becomes, to some cell
    w = position - cell
    slope = 6 * n * w * (1 - w) if levels.smoothstep else torch.full_like(w, n)
    w = w * w * (3 - 2 * w) if levels.smoothstep else w
    return w.repeat_interleave(levels.features, 1), slope, _rows(cell, levels, level)


def _rows(cell: Tensor, levels: Levels, level: int) -> Tensor:
    """Rows of the table "2 2 2 n" [z, y, x] that hold the corners of cells "3 n"."""
    start = levels.offsets[level]
    end = levels.offsets[level + 1]
    m = levels.resolutions[level] + 1
    if levels.dense[level]:
        corner = torch.tensor(
            [0, 1, m, m + 1, m * m, m * m + 1, m * m + m, m * m + m + 1], device=cell.device
        )
        return (cell[0] + m * cell[1] + (m * m * cell[2] + start) + corner[:, None]).view(
            2, 2, 2, -1
        )
    x, y, z = (
        torch.stack([c * prime, (c + 1) * prime]) for c, prime in zip(cell, PRIMES, strict=True)
    )
    rows = (z[:, None] ^ y)[:, :, None] ^ x
    return rows.bitwise_and_(end - start - 1).add_(
        start
    )  # the low bits of 64-bit products are those of 32-bit ones


def _split(grad: Tensor, w: Tensor) -> Tensor:
    """Gradient "2 ..." with respect to both ends of an interpolation, from the one with respect to
    its result.
    """
    upper = grad * w
    return torch.stack([grad - upper, upper])


def _weight_gradient(
    corners: Tensor, w: Tensor, to_faces: Tensor, to_edges: Tensor, grad: Tensor
) -> Tensor:
    """Gradient "3 n*F" with respect to the weights: at each stage, the gradient times the
    difference of the two ends.
    """
    faces = torch.lerp(corners[0], corners[1], w[2])
    edges = torch.lerp(faces[0], faces[1], w[1])
    by_z = (to_faces * (corners[1] - corners[0])).sum((0, 1))
    by_y = (to_edges * (faces[1] - faces[0])).sum(0)
    return torch.stack([grad * (edges[1] - edges[0]), by_y, by_z])


def _gather(table: Tensor, rows: Tensor) -> Tensor:
    """Entries "2 2 2 n*F" of `table`. A pair of numbers moves several times faster as one complex
    number.
    """
    if table.shape[1] == 2:
        return torch.view_as_real(
            torch.view_as_complex(table).index_select(0, rows.flatten())
        ).view(2, 2, 2, -1)
    return table.index_select(0, rows.flatten()).view(2, 2, 2, -1)


def _scatter_add(table: Tensor, rows: Tensor, values: Tensor) -> None:
    """Adds `values` "2 2 2 n*F" to rows of `table`, in place; pairs as complex numbers, as in
    `_gather`.
    """
    values = values.view(-1, table.shape[1])
    if table.shape[1] == 2:
        torch.view_as_complex(table).index_add_(0, rows.flatten(), torch.view_as_complex(values))
    else:
        table.index_add_(0, rows.flatten(), values)
