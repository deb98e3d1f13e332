"""Maps for the page's viewer: cropped to the mask, 8 bits a voxel, compressed, as text."""

import base64
import gzip
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from instamap.fourier.rescale import rescale
from instamap.geometry import grids
from instamap.motion.motion_model import HalfModel, MotionModel
from instamap.report import render
from instamap.scene import Scene

MAX_EDGE = 128  # voxels of a map in the page
MAX_MOVING_EDGE = 64  # of each conformation
MIN_EDGE = 72  # of a map: smaller ones are interpolated, or their surface has corners
MAX_FINER_BOX = 192  # voxels of a whole box that is transformed to be shown smooth
MAP_BYTES = 1_200_000  # of a map's text at most
SHRINKING = 0.85  # of the edges, until the text is short enough
COMPRESSION = 6
MARGIN = 2  # voxels around what is above zero in the mask


@dataclass(frozen=True)
class Crop:
    """A part of a box, [z, y, x]: from `start` to before `stop`."""

    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    def of(self, volume: Tensor) -> Tensor:
        """That part of a map "D D D", a view."""
        (z, y, x), (zz, yy, xx) = self.start, self.stop
        return volume[z:zz, y:yy, x:xx]

    @property
    def shape(self) -> list[int]:
        """Voxels along z, y and x."""
        return [stop - start for start, stop in zip(self.start, self.stop, strict=True)]


@dataclass(frozen=True)
class PackedMap:
    """A map as text: bytes q of voxels [z, y, x], gzipped, base64; the density is q high / 255.

    shape: voxels along z, y, x. step: Å between them. corner: Å of the first, x, y, z, from the
    box's origin. high: density of q = 255.
    """

    text: str
    shape: list[int]
    step: list[float]
    corner: list[float]
    high: float

    def plain(self) -> dict[str, Any]:
        """As the page's script reads it."""
        return {
            "data": self.text,
            "shape": self.shape,
            "step": self.step,
            "corner": self.corner,
            "high": self.high,
        }


@dataclass(frozen=True)
class Surface:
    """What the viewer shows: maps, one at a time, and the density at which their surface begins.

    names: of the maps, for people.
    """

    maps: list[PackedMap]
    names: list[str]
    level: float

    def plain(self) -> dict[str, Any]:
        """As the page's script reads it."""
        return {
            "maps": [one.plain() for one in self.maps],
            "names": self.names,
            "level": self.level,
        }


def of_map(volume: Tensor, mask: Tensor | None, pixel_size: float) -> Surface:
    """The surface of a map "D D D" in its mask."""
    volume = volume.detach().float().cpu()
    fitting = mask is not None and mask.shape == volume.shape
    crop = crop_to(mask if mask is not None and fitting else volume)
    level, _ = render.threshold(crop.of(volume).flatten())
    packed = pack(volume, crop, pixel_size, MAX_EDGE, MAP_BYTES)
    return Surface([packed], ["map"], min(level, 0.9 * packed.high))


def of_motion(motion: MotionModel, places: Tensor) -> Surface:
    """The surfaces of the conformations at shared coordinates `places` "K L"."""
    scene = motion.scene
    masks = [half.model.scene.mask for half in motion.halves]
    known = [mask for mask in masks if mask is not None]
    everywhere = torch.ones(scene.box, scene.box, scene.box)
    window = torch.stack(known).amax(0) if known else everywhere
    crop = crop_to(window)
    every = max(1, -(-max(crop.shape) // MAX_MOVING_EDGE))
    volumes = [_conformation(motion, place, crop, every) for place in places]
    high = max(float(volume.max()) for volume in volumes)
    share = MAP_BYTES // len(volumes)
    maps = [_packed_conformation(one, crop, every, scene, share, high) for one in volumes]
    levels = [render.threshold(volume.flatten())[0] for volume in volumes]
    names = [_coordinates(place) for place in places]
    return Surface(maps, names, min(sum(levels) / len(levels), 0.9 * high))


def _packed_conformation(
    volume: Tensor, crop: Crop, every: int, scene: Scene, limit: int, high: float
) -> PackedMap:
    """A conformation at every so many voxels of a crop, as text."""
    if every == 1:
        whole = torch.zeros(scene.box, scene.box, scene.box)
        crop.of(whole).copy_(volume)
        return pack(whole, crop, scene.pixel_size, MAX_MOVING_EDGE, limit, high)
    depth, height, width = volume.shape
    everything = Crop((0, 0, 0), (depth, height, width))
    step = scene.pixel_size * every
    packed = pack(volume, everything, step, MAX_MOVING_EDGE, limit, high)
    corner = [scene.pixel_size * (start - scene.box // 2) for start in reversed(crop.start)]
    return replace(packed, corner=corner)


def _coordinates(place: Tensor) -> str:
    """The words for a place "L"."""
    values = place.tolist()
    return ", ".join(f"z{number} = {value:.2f}" for number, value in enumerate(values, 1))


def _conformation(motion: MotionModel, place: Tensor, crop: Crop, every: int) -> Tensor:
    """A conformation at every so many voxels of a crop: the mean of the fits'."""
    volumes = [_of_half(half, place, crop, every) for half in motion.halves]
    return torch.stack(volumes).mean(0)


@torch.no_grad()
def _of_half(half: HalfModel, place: Tensor, crop: Crop, every: int) -> Tensor:
    if half.own_maps is not None or half.domains is not None:
        return crop.of(half.conformation(place))[::every, ::every, ::every]
    scene = half.model.scene
    first = [start - scene.box // 2 for start in crop.start]
    lines = []
    for start, count in zip(first, crop.shape, strict=True):
        lines.append(scene.pixel_size * torch.arange(start, start + count, every))
    z, y, x = torch.meshgrid(*lines, indexing="ij")
    points = torch.stack([x, y, z], -1)
    inside = half.model.window(points) > 0
    own = half.to_own(place.float()[None])
    values = half.model.density(points[inside][None], own)[0]
    return torch.zeros_like(x).masked_scatter(inside, values)


def crop_to(mask: Tensor) -> Crop:
    """The smallest part of a box that holds a mask "D D D", and a margin."""
    depth, height, width = mask.shape
    found = grids.extent(mask > 0)
    if not found:
        return Crop((0, 0, 0), (depth, height, width))
    z, y, x = [(max(0, low - MARGIN), high + MARGIN) for low, high in found]
    stops = (min(z[1], depth), min(y[1], height), min(x[1], width))
    return Crop((z[0], y[0], x[0]), stops)


def pack(
    volume: Tensor,
    crop: Crop,
    pixel_size: float,
    edge: int,
    limit: int,
    high: float | None = None,
) -> PackedMap:
    """A part of a map in at most `edge` voxels a side and `limit` characters.

    high: the density of the last gray value; None means the highest.
    """
    longest = max(crop.shape)
    finer = round(min(MIN_EDGE, edge) / longest)
    finer = min(finer, MAX_FINER_BOX // len(volume))
    if finer > 1 and len(set(volume.shape)) == 1:
        volume = rescale(volume, finer * len(volume))
        starts = [finer * start for start in crop.start]
        stops = [finer * stop for stop in crop.stop]
        crop = Crop((starts[0], starts[1], starts[2]), (stops[0], stops[1], stops[2]))
        pixel_size = pixel_size / finer
    cropped = crop.of(volume)
    top = float(cropped.max()) if high is None else high
    share = min(1.0, edge / max(crop.shape))
    while True:
        packed = _packed(cropped, share, max(top, 1e-30))
        if len(packed.text) <= limit:
            break
        share *= SHRINKING
    step = [pixel_size * one for one in packed.step]
    middle = len(volume) // 2
    corner = []
    for start, own in zip(reversed(crop.start), step, strict=True):
        # the first of larger voxels lies in the middle of the small ones that it stands for
        corner.append(pixel_size * (start - middle) + 0.5 * (own - pixel_size))
    return replace(packed, step=step, corner=corner)


def _packed(cropped: Tensor, share: float, high: float) -> PackedMap:
    """A map with edges of a share of its length, whose steps are in its voxels."""
    shape = [max(2, round(share * length)) for length in cropped.shape]
    fewer = cropped
    if shape != list(cropped.shape):
        fewer = torch.nn.functional.interpolate(cropped[None, None], size=shape, mode="area")[0, 0]
    levels = (255 / high * fewer).round().clamp(0, 255).byte()
    packed = gzip.compress(levels.contiguous().numpy().tobytes(), COMPRESSION, mtime=0)
    text = base64.b64encode(packed).decode()
    step = [old / new for old, new in zip(cropped.shape, shape, strict=True)]
    return PackedMap(text, shape, step[::-1], [0.0, 0.0, 0.0], high)
