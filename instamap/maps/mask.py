"""Soft masks in 0..1: a sphere, a file's, or one that is found around the particle in a map."""

import math
from pathlib import Path

import torch
from torch import Tensor

from instamap.errors import DataError
from instamap.geometry import grids
from instamap.maps import mrc

VALUE_TOLERANCE = 1e-3
"""How far beyond 0..1 a mask's values may be: programs interpolate and round."""

MIN_PART_SHARE = 0.1
"""Parts of at least this share of the largest one's size belong to the particle."""


POINTS_AT_ONCE = 1024  # around which voxels are looked for


def sphere(
    box: int,
    pixel_size: float,
    radius: float,
    edge: float,
) -> Tensor:
    """A ball "D D D" around the origin with a soft edge.

    1 up to `radius` - `edge` (Å) from the origin, 0 from `radius` on, half a cosine in between.
    """
    along = grids.axis(box, pixel_size)
    y, x = torch.meshgrid(along, along, indexing="ij")
    distance = torch.empty(box, box, box)
    for plane, height in zip(distance, along, strict=True):  # as positions take three numbers each
        centres = torch.stack([x, y, torch.full_like(x, height)], -1)
        plane.copy_(centres.norm(dim=-1))
    return _soft(distance, radius - edge, edge)


def _soft(
    distance: Tensor,
    inner: float,
    edge: float,
) -> Tensor:
    """1 up to `inner`, 0 from `inner` + `edge` on, half a cosine in between."""
    if edge == 0:
        return (distance <= inner).to(distance.dtype)
    phase = ((distance - inner) / edge).clamp(0, 1)
    wave = torch.cos(math.pi * phase)
    return 0.5 + 0.5 * wave


def load(
    path: str | Path,
    box: int,
    pixel_size: float,
) -> Tensor:
    """The mask "D D D" of an MRC file, for maps of `box` voxels of `pixel_size` Å.

    Raises DataError where the file cannot be read, has another box or pixel size, or values that
    are not 0..1 or are all 0.
    """
    mask, size = mrc.read(path)
    if len(mask) != box:
        raise DataError(
            f"mask '{path}' has a box of {len(mask)}, the data of {box}; crop, pad or rescale the"
            " mask"
        )
    if not math.isclose(size, pixel_size, rel_tol=0.01):
        raise DataError(
            f"mask '{path}' has pixels of {size:g} Å, the data of {pixel_size:g} Å; rescale the"
            " mask or correct its header"
        )
    low = float(mask.min())
    high = float(mask.max())
    if low < -VALUE_TOLERANCE or high > 1 + VALUE_TOLERANCE:
        raise DataError(
            f"mask '{path}' has values from {low:g} to {high:g}; they must be from 0 to 1"
        )
    if high <= VALUE_TOLERANCE:
        raise DataError(f"mask '{path}' is empty: no value is above {VALUE_TOLERANCE:g}")
    return mask.clamp(0, 1)


def from_map(
    volume: Tensor,
    pixel_size: float,
    *,
    low_pass: float | None = None,
    threshold: float = 0.15,
    extend: float = 3,
    edge: float = 6,
    box: int | None = None,
) -> Tensor:
    """A soft mask "D D D" around the particle in a map "D D D" whose protein is white.

    The map is filtered to `low_pass` Å (default: 15 Å, or 2 voxels if that is more) and cut at
    `threshold` of the way from its median, which is solvent, to its highest value. The largest
    connected part remains, and others of at least a tenth of its size; it is extended by `extend`
    voxels and falls off over `edge` voxels more. box: of which the map is the middle, and the rest
    is empty; None: the map's. Raises DataError for a map without contrast.
    """
    if box is None:
        box = len(volume)
    if low_pass is None:
        low_pass = max(15.0, 2 * pixel_size)
    smooth = _low_pass(volume.detach(), pixel_size, low_pass)
    # as Scene.radius: nothing is reconstructed outside
    ball = sphere(
        len(volume),
        1.0,
        box // 2 - 0.5,
        0.0,
    )
    inside = ball.to(volume.device) > 0
    solvent = _median(smooth, box**3 - volume.numel())
    highest = smooth[inside].max()
    contrast = highest - solvent
    if not contrast > 1e-6 * smooth.abs().max():
        raise DataError(
            f"the map is flat (median {solvent:g}, highest value {highest:g}): no particle can be"
            " found in it; give a mask"
        )
    dense = smooth > solvent + threshold * contrast
    particle = _largest_parts(dense & inside)
    distance = _distance(particle, math.ceil(extend + edge))
    return _soft(distance, extend, edge)


def from_level(
    volume: Tensor,
    level: float,
    *,
    extend: float = 0,
    edge: float = 0,
    largest_parts: bool = False,
) -> Tensor:
    """A soft mask "D D D" around the voxels of a map "D D D" that are at least `level`.

    1 less than `extend` voxels from them, half a cosine over `edge` voxels from there, measured
    from the extended voxels, as relion_mask_create has it. largest_parts: only the largest
    connected part, and others of at least a tenth of its size. Raises DataError where no voxel, or
    each of them, reaches the level.
    """
    solid = volume.detach() >= level
    low = float(volume.min())
    high = float(volume.max())
    if not bool(solid.any()) or bool(solid.all()):
        many = "no voxel" if high < level else "every voxel"
        raise DataError(
            f"{many} of the map reaches level {level:g}: its values are from {low:g} to {high:g};"
            " give a level between them"
        )
    if largest_parts:
        solid = _largest_parts(solid)
    return _extended(solid, extend, edge)


def from_points(
    position: Tensor,
    box: int,
    pixel_size: float,
    *,
    radius: float,
    extend: float = 0,
    edge: float = 0,
) -> Tensor:
    """A soft mask "D D D" around points, such as a model's atoms.

    position "P 3": x, y, z in Å from the first voxel. Voxels within `radius` Å of a point are
    inside; `extend` and `edge` are in voxels, as for `from_level`. Raises DataError where all
    points are outside the box.
    """
    solid = torch.zeros(box, box, box, dtype=torch.bool)
    offset = _ball_of_offsets(radius / pixel_size)
    voxel = position.double() / pixel_size
    for points in voxel.split(POINTS_AT_ONCE):
        index = points.round().long()[:, None] + offset
        distance = (index - points[:, None]).norm(dim=-1)
        inside = ((index >= 0) & (index < box)).all(-1)
        x, y, z = index[inside & (distance * pixel_size <= radius)].unbind(-1)
        solid[z, y, x] = True
    if not bool(solid.any()):
        raise DataError(
            f"none of {len(position)} points is inside a box of {box} voxels of {pixel_size:g} Å;"
            " give a model in the map's frame, or one whose origin is the middle (--centred)"
        )
    return _extended(solid, extend, edge)


def _ball_of_offsets(radius: float) -> Tensor:
    """Steps "n 3" to all voxels that may be within `radius` voxels of a point."""
    reach = math.ceil(radius + 1)
    axis = torch.arange(-reach, reach + 1)
    steps = torch.cartesian_prod(axis, axis, axis)
    distance = steps.double().norm(dim=-1)
    return steps[distance <= radius + 1]


def _extended(solid: Tensor, extend: float, edge: float) -> Tensor:
    """1 less than `extend` voxels from the true ones, with an edge around what is then inside."""
    if extend > 0:
        solid = _distance(solid, math.ceil(extend)) < extend
    if edge <= 1:  # it reaches no other voxel
        return solid.float()
    return _soft(_distance(solid, math.ceil(edge)), 0, edge)


def _median(volume: Tensor, zeros: int) -> Tensor:
    """The lower median of a map's values and of so many zeros."""
    if not zeros:
        return volume.median()
    values = volume.flatten()
    rank = (len(values) + zeros - 1) // 2  # from 0, among all
    below = int((values < 0).sum())
    if below <= rank < below + zeros:
        return values.new_zeros(())
    if rank >= below:
        rank -= zeros
    return values.kthvalue(rank + 1).values


def _low_pass(
    volume: Tensor,
    pixel_size: float,
    cutoff: float,
) -> Tensor:
    """The map times a Gaussian in Fourier space that is one half at 1/cutoff."""
    device = volume.device
    depth, height, width = volume.shape
    z = torch.fft.fftfreq(depth, pixel_size, device=device)
    y = torch.fft.fftfreq(height, pixel_size, device=device)
    x = torch.fft.rfftfreq(width, pixel_size, device=device)
    square_z = z[:, None, None] ** 2
    square_y = y[:, None] ** 2
    square = square_z + square_y + x**2
    exponent = -math.log(2) * cutoff**2 * square
    gaussian = torch.exp(exponent)
    transform = torch.fft.rfftn(volume.float())
    return torch.fft.irfftn(transform * gaussian, s=volume.shape)


def _largest_parts(solid: Tensor) -> Tensor:
    """The largest connected part of booleans "D D D", and others of at least MIN_PART_SHARE times
    its size.
    """
    label = _components(solid)
    size = torch.bincount(label)
    kept = torch.zeros_like(solid)
    enough = MIN_PART_SHARE * size.max()
    kept[solid] = size[label] >= enough
    return kept


def _components(solid: Tensor) -> Tensor:
    """A label for each true voxel (in the order of `solid[solid]`), equal where they are joined
    face to face.

    Each voxel points at one of higher index in its part, at first itself. In turn, the targets of
    neighbours are pointed at the higher of the two, and chains of pointers are shortened, until all
    neighbours agree: a few rounds, whatever the shape.
    """
    count = int(solid.sum())
    label = torch.arange(count, device=solid.device)
    number = torch.full(solid.shape, -1, device=solid.device)
    number[solid] = label
    pairs_by_axis = [_neighbours(number, axis) for axis in range(3)]
    pairs = torch.cat(pairs_by_axis, 1)
    while True:
        left, right = label[pairs]
        if torch.equal(left, right):
            return label
        lower = torch.minimum(left, right)
        higher = torch.maximum(left, right)
        label = label.scatter_reduce(0, lower, higher, "amax")
        while not torch.equal(shorter := label[label], label):
            label = shorter


def _neighbours(number: Tensor, axis: int) -> Tensor:
    """Numbers "2 n" of voxels that are both true and adjacent along `axis`."""
    length = number.shape[axis] - 1
    here = number.narrow(axis, 0, length)
    there = number.narrow(axis, 1, length)
    pairs = torch.stack([here, there]).flatten(1)
    both_true = (pairs >= 0).all(0)
    return pairs[:, both_true]


def _distance(solid: Tensor, limit: int) -> Tensor:
    """Euclidean distance "D D D" in voxels to the nearest true one, exact up to `limit` and larger
    than it beyond.

    The square of the distance is the least of steps² over the axes, taken one axis after the other.
    """
    beyond = float((limit + 1) ** 2)
    square = torch.where(solid, 0.0, beyond)
    for axis in range(3):
        nearest = square.clone()
        length = square.shape[axis]
        farthest = min(limit, length - 1)
        for step in range(1, farthest + 1):
            for start in (0, step):  # towards either side
                here = nearest.narrow(axis, step - start, length - step)
                there = square.narrow(axis, start, length - step)
                further = there + step**2
                torch.minimum(here, further, out=here)
        square = nearest
    return square.sqrt()
