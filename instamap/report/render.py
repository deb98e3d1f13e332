"""A density as one sees it: a soft surface in light from the upper left, from a camera that never
moves.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.fourier.rescale import rescale

AZIMUTH = math.radians(-55)
ELEVATION = math.radians(22)  # of the camera; the map's z points up

LIGHT_DIRECTION = torch.nn.functional.normalize(torch.tensor([-0.5, 0.65, -0.75]), dim=0)
"""Where light comes from: right, up, away from the viewer."""

NEAR_COLOUR = torch.tensor([0.42, 0.66, 0.82])
FAR_COLOUR = torch.tensor([0.80, 0.86, 0.92])
SHADOW_COLOUR = torch.tensor([0.10, 0.16, 0.30])

EDGE_CONTRAST = 0.3  # share of the contrast over which the surface turns from clear to solid
OPTICAL_DEPTH = 4.0  # of one voxel of solid density
HOLLOW_DARKNESS = 2.5  # how much darker places are that lie deeper than what is around them
GLEAM = 0.25  # brightness of reflected light
GLEAM_EXPONENT = 30
PIXELS_PER_RAY = 3  # what a ray has met varies smoothly, light on it need not
HISTOGRAM_BINS = 512  # in which density is told from solvent


@dataclass(frozen=True)
class Camera:
    """A camera that looks at a surface.

    size: rays along an edge. reach: Å from the middle to an edge. level, solvent: density at the
    surface, and around it.
    """

    size: int
    reach: float
    level: float
    solvent: float


def axes() -> Tensor:
    """Rows "3 3" of the camera in the map's frame (x, y, z).

    They point to the right, up, and away from the viewer.
    """
    ca = math.cos(AZIMUTH)
    sa = math.sin(AZIMUTH)
    ce = math.cos(ELEVATION)
    se = math.sin(ELEVATION)
    right = [-sa, ca, 0.0]
    up = [-ca * se, -sa * se, ce]
    away = [-ca * ce, -sa * ce, -se]
    return torch.tensor([right, up, away])


def threshold(values: Tensor) -> tuple[float, float]:
    """The level that tells the density from the solvent in voxels "n", and the solvent's mean.

    It parts them with the least variance within. Otsu, IEEE Trans. Syst. Man Cybern. 9, 62-66
    (1979). Where all are equal: 1 above them, since nothing is to be seen.
    """
    low = float(values.min())
    high = float(values.max())
    if not high > low:
        return low + 1, low
    count = torch.histc(
        values.double(),
        HISTOGRAM_BINS,
        low,
        high,
    )
    number = torch.arange(HISTOGRAM_BINS, dtype=torch.float64)
    middle = low + (number + 0.5) * (high - low) / HISTOGRAM_BINS
    below = count.cumsum(0)
    total = below[-1]
    sums = (count * middle).cumsum(0)
    distance = sums[-1] * below / total - sums
    weight = below * (total - below)
    between = distance.square() / weight.clamp(min=1e-9)
    cut = int(between[:-1].argmax())
    half_a_bin = 0.5 * (high - low) / HISTOGRAM_BINS
    return float(middle[cut]) + half_a_bin, float(sums[cut] / below[cut])


def surface(volume: Tensor, pixel_size: float, camera: Camera) -> Tensor:
    """A picture "3S 3S 3" in 0..1 of a map "D D D": its surface at the camera's level, on white.

    The first row is at the top.
    """
    voxel = pixel_size * camera.size / (2 * camera.reach)  # in samples
    density = _seen_density(volume, pixel_size, camera, voxel)
    contrast = max(camera.level - camera.solvent, 1e-12)
    opacity = ((density - camera.level) / (EDGE_CONTRAST * contrast) + 0.5).clamp(0, 1)
    solid = opacity * (OPTICAL_DEPTH / max(voxel, 1.0))
    passed = torch.exp(-solid.cumsum(0))  # light that is left behind each sample
    weight = passed * torch.expm1(solid)
    met = _what_rays_met(density, weight)
    fine = torch.nn.functional.interpolate(
        met[None],
        scale_factor=PIXELS_PER_RAY,
        mode="bilinear",
        align_corners=False,
    )
    slope = fine[0, :3]
    depth = fine[0, 3]
    cover = (2 * fine[0, 4] - 0.5).clamp(0, 1)
    outward = torch.nn.functional.normalize(slope, dim=0, eps=1e-12)
    return _lit(outward.movedim(0, -1), depth, cover)


def _seen_density(volume: Tensor, pixel_size: float, camera: Camera, voxel: float) -> Tensor:
    """The smoothed density "S S S" at samples of the camera's cube, `voxel` samples to a voxel."""
    # trilinear cells of 1.5 samples do not show
    enough = 2 * round(len(volume) * voxel / 3)
    box = max(len(volume), min(camera.size, enough))
    fine = rescale(volume.float(), box)
    sampled = _sampled(fine, pixel_size * len(volume) / box, camera)
    smooth = torch.nn.functional.avg_pool3d(
        sampled[None, None],
        kernel_size=3,
        stride=1,
        padding=1,
    )
    return smooth[0, 0]


def _what_rays_met(density: Tensor, weight: Tensor) -> Tensor:
    """What each ray has met "5 S S": an outward slope (right, up, away), its depth, and how much.

    Where it met little, slope and depth are those of what is beside it.
    """
    cover = weight.sum(0)
    # away, down, right
    slopes = [(weight * gradient).sum(0) for gradient in torch.gradient(density)]
    slope = torch.stack(slopes)[[2, 1, 0]]
    outward = slope * torch.tensor([-1.0, 1.0, -1.0])[:, None, None]
    along = torch.linspace(0, 1, len(density))[:, None, None]
    depth = (weight * along).sum(0)
    met = torch.cat([outward, depth[None], cover[None]])
    # outlines without steps, lit as what is beside them
    smooth = torch.nn.functional.avg_pool2d(
        met,
        kernel_size=3,
        stride=1,
        padding=1,
    )
    own = met[:4] / cover.clamp(min=0.5)
    around = smooth[:4] / smooth[4].clamp(min=1e-3)
    chosen = torch.where(cover > 0.5, own, around)
    return torch.cat([chosen, smooth[4:]])


def _sampled(volume: Tensor, pixel_size: float, camera: Camera) -> Tensor:
    """The map at "S S S" points of the camera's cube: away from the viewer, down, to the right."""
    along = torch.linspace(-1, 1, camera.size) * camera.reach
    box = len(volume)
    away, down, right = torch.meshgrid(along, along, along, indexing="ij")
    where = torch.stack([right, -down, away], -1) @ axes()
    where = (2 * (where / pixel_size + box // 2) + 1) / box - 1
    # Beyond the box is solvent: sampled relative to it, padding is right.
    above = volume.float() - camera.solvent
    sampled = torch.nn.functional.grid_sample(
        above[None, None],
        where[None],
        align_corners=False,
    )
    return sampled[0, 0] + camera.solvent


def _lit(outward: Tensor, depth: Tensor, cover: Tensor) -> Tensor:
    """Diffuse and reflected light, paler with depth, darker in hollows.

    Depth darkening: Luft et al., ACM Trans. Graph. 25 (2006).
    """
    diffuse = (outward @ LIGHT_DIRECTION).clamp(min=0)[..., None]
    towards_viewer = torch.tensor([0.0, 0.0, -1.0])
    halfway = torch.nn.functional.normalize(LIGHT_DIRECTION + towards_viewer, dim=0)
    gleam = (outward @ halfway).clamp(min=0)[..., None] ** GLEAM_EXPONENT
    hollow = torch.exp(-HOLLOW_DARKNESS * _hollowness(depth, cover))[..., None]
    paleness = ((depth - 0.25) / 0.75).clamp(0, 0.7)[..., None]
    colour = torch.lerp(NEAR_COLOUR, FAR_COLOUR, paleness)
    brightness = (0.30 + 0.75 * diffuse).clamp(max=1)
    shadow = SHADOW_COLOUR.expand_as(colour)
    lit = torch.lerp(shadow, colour, brightness * hollow) + GLEAM * gleam
    white = torch.ones_like(lit)
    return torch.lerp(white, lit, cover[..., None]).clamp(0, 1)


def _hollowness(depth: Tensor, cover: Tensor) -> Tensor:
    """How much deeper a place "H W" lies than what is around it."""
    radius = len(depth) // 24
    mean_depth = _blur(_blur(depth * cover, radius), radius)
    mean_cover = _blur(_blur(cover, radius), radius)
    around = mean_depth / mean_cover.clamp(min=1e-3)
    return (depth - around).clamp(min=0)


def _blur(image: Tensor, radius: int) -> Tensor:
    """The mean over squares of 2 radius + 1 pixels, zero beyond the edge."""
    blurred = torch.nn.functional.avg_pool2d(
        image[None],
        kernel_size=2 * radius + 1,
        stride=1,
        padding=radius,
    )
    return blurred[0]
