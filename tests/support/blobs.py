"""Images of Gaussian blobs: their transforms are known, and so is what they say of maps."""

import math

import torch
from torch import Tensor

from instamap.geometry import grids, rotations
from instamap.maps import mask
from instamap.statistics import initial_map
from instamap.statistics.fourier_plane import FourierPlane
from instamap.statistics.particle_statistics import ParticleStatistics

BOX = 16
PIXEL = 5.0
SIGMA = 1.6  # of blobs, in voxels
WINDOW = mask.sphere(BOX, 1.0, BOX / 2 - 0.5, 1.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(
    centre: Tensor, height: Tensor, level: float, generator: torch.Generator, per: int = 1
) -> ParticleStatistics:
    """`per` images of each particle, at random poses: Gaussians at `centre` "m B 3" (x, y, z in
    voxels) of `height` "m B".

    level: of 1 / (D² σ²), infinite for no noise.
    """
    part = FourierPlane(BOX)
    unit = torch.arange(len(centre)).repeat_interleave(per)
    frames = rotations.random(len(unit), generator=generator)[:, :2]
    q = torch.einsum("pk,nkx->npx", part.points.double(), frames) / BOX
    shape = (
        (2 * math.pi) ** 1.5
        * SIGMA**3
        * torch.exp(-2 * (math.pi * SIGMA) ** 2 * q.square().sum(-1))
    )
    turn = torch.exp(-2j * math.pi * torch.einsum("npx,nbx->npb", q, centre.double()[unit]))
    seen = shape * (turn * height.double()[unit, None]).sum(-1)
    power = (1.0 if math.isinf(level) else level) * part.share.double().expand(len(unit), -1)
    noise = torch.randn(*seen.shape, 2, generator=generator, dtype=torch.float64)
    noise[..., 1] *= (part.shell > 0).double()  # the mean of an image is real
    if not math.isinf(level):
        seen = seen + torch.view_as_complex(noise) / (2 * power).sqrt()
    frames = frames.float().contiguous()
    return ParticleStatistics(
        BOX,
        PIXEL,
        (power * seen).to(torch.complex64),
        power.float().contiguous(),
        frames,
        part.points,
        unit,
    )


def blob(*centre: float) -> Tensor:
    """The map of one Gaussian at x, y, z in voxels."""
    return torch.exp(
        -(grids.voxel_centres(BOX, 1.0) - torch.tensor(centre)).square().sum(-1) / (2 * SIGMA**2)
    )


def pair(here: Tensor, generator: torch.Generator, level: float = 0.02) -> ParticleStatistics:
    """A blob beside which there is as much of another as `here` "m" says."""
    centre = torch.tensor([[-3.0, 0, 0], [3, 1, -1]]).expand(len(here), -1, -1)
    return images(centre, torch.stack([torch.ones_like(here), here], 1), level, generator)


def mean_map(coarse: ParticleStatistics) -> Tensor:
    return initial_map.solve(
        coarse.statistics(torch.ones(coarse.count, dtype=torch.float64)), WINDOW, 5
    )
