"""Blobs seen at poses that are wrong by known amounts, their images in closed form."""

import math

import torch

from instamap.geometry import grids, rotations
from instamap.poses.expansion import PoseImages
from instamap.scene import Batch, Views
from instamap.statistics.particle_statistics import ParticleStatistics

BOX = 24
PIXEL = 4.0
WIDTH = 4.0
_DIRECTIONS = torch.randn(9, 3, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
_DISTANCES = torch.linspace(12, 32, 9, dtype=torch.float64)
CENTRES = torch.nn.functional.normalize(_DIRECTIONS) * _DISTANCES[:, None]
MASSES = torch.tensor([3.0, 1, 2, 1, 2, 1, 4, 2, 1], dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    """A generator of random numbers."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def density() -> torch.Tensor:
    """The blobs as a map "D D D" [z, y, x]."""
    centres = grids.voxel_centres(BOX, PIXEL, dtype=torch.float64)
    square = (centres[..., None, :] - CENTRES).square().sum(-1)
    return (torch.exp(-square / (2 * WIDTH**2)) @ MASSES).float()


def images(views: Views) -> torch.Tensor:
    """The blobs' projections "n D D" in closed form: one at x lands at (A x)[:2] - origin."""
    where = (CENTRES @ views.rotation.mT)[..., :2] - views.origin[:, None]
    axis = grids.axis(BOX, PIXEL, dtype=torch.float64)
    along = [torch.exp(-((axis - where[..., i, None]) ** 2) / (2 * WIDTH**2)) for i in (0, 1)]
    summed = torch.einsum("npy,npx,p->nyx", along[1], along[0], MASSES)
    return math.sqrt(2 * math.pi) * WIDTH * summed


def noisy(views: Views, noise: float, seed: int = 7) -> torch.Tensor:
    """The projections with white noise, as strong as `noise` times their standard deviation."""
    seen = images(views)
    return seen + noise * seen.std() * normal(*seen.shape, seed=seed)


def poses(count: int, seed: int = 0) -> Views:
    """Random rotations, and origins of some 4 Å."""
    rotation = rotations.random(count, generator=seeded(seed))
    return Views.of(rotation, 4 * normal(count, 2, seed=seed + 1))


def wrong(count: int, angle: float, shift: float, seed: int = 5) -> torch.Tensor:
    """Corrections "n 5" with `angle` degrees about each axis and `shift` Å along each."""
    size = torch.tensor([math.radians(angle)] * 3 + [shift] * 2, dtype=torch.float64)
    return normal(count, 5, seed=seed) * size


def rms_error(given: Views, truth: Views) -> tuple[float, float]:
    """Rms of the angle in degrees and of the shift in Å between poses."""
    turn = rotations.to_rotvec(given.rotation.double().mT @ truth.rotation).norm(dim=1)
    shift = (given.origin - truth.origin).norm(dim=1)
    return float(torch.rad2deg(turn).square().mean().sqrt()), float(shift.square().mean().sqrt())


class InMemory:
    """A set of images in memory, with what the readers of particles ask for."""

    def __init__(self, seen: torch.Tensor, views: Views) -> None:
        self.seen = seen.float()
        self.views = views
        self.box = BOX
        self.pixel_size = PIXEL
        self.premultiplied = False

    def batch(self, rows: torch.Tensor) -> Batch:
        return Batch(self.seen[rows], self.views[rows].to(torch.float32))


def pose_images(truth: Views, given: Views, noise: float, limit: float = BOX / 2) -> PoseImages:
    """Noisy images of the blobs at `truth` whose poses are said to be `given`."""
    size = float((max(noise, 1e-2) * images(truth).std()) ** 2)
    variance = torch.full((1, BOX // 2 + 1), size)
    rows = torch.arange(len(given))
    particles = InMemory(noisy(truth, noise), given)
    return PoseImages(ParticleStatistics.read(particles, rows, variance, rows), given, limit)
