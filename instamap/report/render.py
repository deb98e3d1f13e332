"""A density as one sees it: a soft surface in light from the upper left, looked at from a camera
that never moves.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.geometry.sampling import sample_volume
from instamap.statistics.particle_statistics import rescaled

AZIMUTH = math.radians(-55)
ELEVATION = math.radians(22)  # of the camera; the map's z points up
LIGHT = torch.nn.functional.normalize(
    torch.tensor([-0.5, 0.65, -0.75]), dim=0
)  # where from: right, up, away from the viewer
COLOUR, FAR, SHADOW = (
    torch.tensor(c) for c in ([0.42, 0.66, 0.82], [0.80, 0.86, 0.92], [0.10, 0.16, 0.30])
)
EDGE = 0.3  # share of the contrast over which the surface turns from clear to solid
SOLID = 4.0  # optical depth of one voxel of solid density
HOLLOW = 2.5  # how much darker places are that lie deeper than what is around them
FINER = 3  # pixels for each ray: what a ray has met varies smoothly, light on it need not
BINS = 512  # of the histogram in which density is told from solvent


@dataclass(frozen=True)
class Camera:
    """size: rays along an edge. reach: Å from the middle to an edge. level, solvent: density at the
    surface, and around it.
    """

    size: int
    reach: float
    level: float
    solvent: float


def axes() -> Tensor:
    """Rows "3 3" of the camera in the map's frame (x, y, z): to the right, up, and away from the
    viewer.
    """
    ca = math.cos(AZIMUTH)
    sa = math.sin(AZIMUTH)
    ce = math.cos(ELEVATION)
    se = math.sin(ELEVATION)
    return torch.tensor([[-sa, ca, 0.0], [-ca * se, -sa * se, ce], [-ca * ce, -sa * ce, -se]])


def threshold(values: Tensor) -> tuple[float, float]:
    """The level that tells the density from the solvent in voxels "n", and the solvent's mean: that
    which parts them with the least variance within. Otsu, IEEE Trans. Syst. Man Cybern. 9, 62-66
    (1979). Where all are equal: 1 above them, since nothing is to be seen.
    """
    low = float(values.min())
    high = float(values.max())
    if not high > low:
        return low + 1, low
    count = torch.histc(values.double(), BINS, low, high)
    middle = low + (torch.arange(BINS, dtype=torch.float64) + 0.5) * (high - low) / BINS
    below = count.cumsum(0)
    sums = (count * middle).cumsum(0)
    between = (sums[-1] * below / below[-1] - sums).square() / (below * (below[-1] - below)).clamp(
        min=1e-9
    )
    cut = int(between[:-1].argmax())
    return float(middle[cut]) + 0.5 * (high - low) / BINS, float(sums[cut] / below[cut])


def surface(map: Tensor, pixel_size: float, camera: Camera) -> Tensor:
    """A picture "3S 3S 3" in 0..1, first row at the top, of `map` "D D D": its surface at the
    camera's level, on white.
    """
    voxel = pixel_size * camera.size / (2 * camera.reach)  # in samples
    finer = max(
        len(map), min(camera.size, 2 * round(len(map) * voxel / 3))
    )  # trilinear cells of 1.5 samples do not show
    seen = _sampled(rescaled(map.float(), finer), pixel_size * len(map) / finer, camera)
    seen = torch.nn.functional.avg_pool3d(seen[None, None], 3, 1, 1)[0, 0]
    contrast = max(camera.level - camera.solvent, 1e-12)
    solid = ((seen - camera.level) / (EDGE * contrast) + 0.5).clamp(0, 1) * (
        SOLID / max(voxel, 1.0)
    )
    passed = torch.exp(-solid.cumsum(0))  # light that is left behind each sample
    weight = passed * torch.expm1(solid)
    cover = weight.sum(0)
    slope = torch.stack([(weight * g).sum(0) for g in torch.gradient(seen)])  # away, down, right
    along = torch.linspace(0, 1, len(seen))[:, None, None]
    met = torch.cat(
        [
            slope[[2, 1, 0]] * torch.tensor([-1.0, 1.0, -1.0])[:, None, None],
            (weight * along).sum(0)[None],
            cover[None],
        ]
    )
    smooth = torch.nn.functional.avg_pool2d(
        met, 3, 1, 1
    )  # outlines without steps, lit as what is beside them
    met = torch.cat(
        [
            torch.where(
                cover > 0.5, met[:4] / cover.clamp(min=0.5), smooth[:4] / smooth[4].clamp(min=1e-3)
            ),
            smooth[4:],
        ]
    )
    met = torch.nn.functional.interpolate(
        met[None], scale_factor=FINER, mode="bilinear", align_corners=False
    )[0]
    return _lit(
        torch.nn.functional.normalize(met[:3], dim=0, eps=1e-12).movedim(0, -1),
        met[3],
        (2 * met[4] - 0.5).clamp(0, 1),
    )


def _sampled(map: Tensor, pixel_size: float, camera: Camera) -> Tensor:
    """The map at "S S S" points of the camera's cube: away from the viewer, down, to the right."""
    along = torch.linspace(-1, 1, camera.size) * camera.reach
    away, down, right = torch.meshgrid(along, along, along, indexing="ij")
    where = torch.stack([right, -down, away], -1) @ axes()
    # Beyond the box is solvent: sampled relative to it, padding is right.
    rest = map.float() - camera.solvent
    return sample_volume(rest, where, pixel_size) + camera.solvent


def _lit(outward: Tensor, depth: Tensor, cover: Tensor) -> Tensor:
    """Diffuse and reflected light, paler with depth, darker in hollows (depth darkening: Luft et
    al., ACM Trans. Graph. 25, 2006).
    """
    diffuse = (outward @ LIGHT).clamp(min=0)[..., None]
    half = torch.nn.functional.normalize(LIGHT + torch.tensor([0.0, 0.0, -1.0]), dim=0)
    gleam = (outward @ half).clamp(min=0)[..., None] ** 30
    wide = 2 * (len(depth) // 24) + 1

    def pool(image):
        return torch.nn.functional.avg_pool2d(image[None], wide, 1, wide // 2)[0]

    around = pool(pool(depth * cover)) / pool(pool(cover)).clamp(min=1e-3)
    hollow = torch.exp(-HOLLOW * (depth - around).clamp(min=0))[..., None]
    colour = torch.lerp(COLOUR, FAR, ((depth - 0.25) / 0.75).clamp(0, 0.7)[..., None])
    colour = (
        torch.lerp(SHADOW.expand_as(colour), colour, (0.30 + 0.75 * diffuse).clamp(max=1) * hollow)
        + 0.25 * gleam
    )
    return torch.lerp(torch.ones_like(colour), colour, cover[..., None]).clamp(0, 1)
