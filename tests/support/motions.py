"""Motions that are known exactly, in folders as a fit leaves them: a Gaussian blob that moves along
x as its coordinate says.
"""

from pathlib import Path

import torch
from torch import Tensor

from instamap.geometry import grids
from instamap.model import compose, default_parts
from instamap.motion.motion_model import HalfModel, MotionModel
from instamap.plugin.choice import choose, to_record
from instamap.scene import Scene
from instamap.simulate.write_set import VariedSpecimen
from instamap.toml_text import write_toml

BOX = 16
PIXEL = 4.0
SIGMA = 6.0
REACH = 12.0  # Å: the blob's width, and its way from coordinate 0 to 1
MOTION = {"name": "motion"}


def blob(
    place: tuple[float, float, float] = (0.0, 0.0, 0.0), box: int = BOX, pixel_size: float = PIXEL
) -> Tensor:
    """A map "D D D" of a Gaussian of height 1 at x, y, z in Å."""
    square = (grids.voxel_centres(box, pixel_size) - torch.tensor(place)).square().sum(-1)
    return torch.exp(-square / (2 * SIGMA**2))


class Blobs(VariedSpecimen):
    """A specimen that moves so (see `instamap.simulate.write_set`): the i-th image shows the
    conformation z_i.
    """

    box = BOX
    pixel_size = PIXEL

    def __init__(self, z: Tensor):
        self.z = z

    def project_rows(self, rows: Tensor, rotation: Tensor, origin: Tensor) -> Tensor:
        landed = REACH * self.z[rows, None] * rotation[:, :2, 0] - origin
        square = (
            (grids.pixel_centres(BOX, PIXEL, dtype=torch.float64) - landed[:, None, None])
            .square()
            .sum(-1)
        )
        return torch.exp(-square / (2 * SIGMA**2)) * (SIGMA * (2 * torch.pi) ** 0.5)

    def density(self) -> Tensor:
        return blob()


def save(
    folder: Path,
    star: Path,
    latents: Tensor,
    densities: tuple[Tensor, ...] | None = None,
    **settings,
) -> MotionModel:
    """Write a motion with coordinates "n L" of the particles in `star`, one fit for each of
    `densities` (two blobs by default).

    The state z has the density at x - REACH (z1, z2, 0): what SiLU(t) - SiLU(-t) = t makes exact.
    """
    latent = latents.shape[1]
    parts = default_parts("bending-field") | {
        "representation": choose("representation", "voxel", ["floor=none"]),
        "deformation": choose("deformation", "bending-field", [f"latent={latent}", "points=5"]),
    }
    halves = [_half(parts, latent, density) for density in densities or (blob(), blob())]
    folder.mkdir(exist_ok=True)
    said = {"particles": str(star), **settings, **to_record(parts), "workflow": MOTION}
    write_toml(folder / "run.toml", said)
    motion = MotionModel(halves, latents, said)
    motion.save(folder)
    return motion


def _half(parts: dict, latent: int, density: Tensor) -> HalfModel:
    model = compose(parts, Scene(BOX, PIXEL, noise_variance=torch.ones(1, BOX // 2 + 1))).eval()
    first, _, second, _, last = model.deformation.decoder
    with torch.no_grad():
        model.representation.values[0, 0] = density
        for parameter in model.deformation.decoder.parameters():
            parameter.zero_()
        for i in range(min(latent, 2)):
            pair = slice(2 * i, 2 * i + 2)
            first.weight[pair, i] = torch.tensor([1.0, -1.0])
            second.weight[pair, pair] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
            # x + u is where the density is taken from
            unit = -REACH * 32 / model.deformation.half_edge
            last.weight.view(3, -1, last.in_features)[i, :, pair] = torch.tensor([unit, -unit])
    nodes = torch.linspace(-1, 1, 5)[:, None].expand(-1, latent)
    return HalfModel(model, torch.eye(latent), torch.zeros(latent), nodes, torch.zeros(5, 8, 8, 8))


def save_maps(folder: Path, star: Path, latents: Tensor) -> MotionModel:
    """Write a motion in which nothing bends: five states between coordinates -1 and 1 have blobs of
    their own (`--deform subspace`).
    """
    latent = latents.shape[1]
    parts = default_parts("subspace") | {
        "representation": choose("representation", "voxel", []),
        "deformation": choose("deformation", "subspace", [f"latent={latent}"]),
    }
    nodes = torch.linspace(-1, 1, 5)[:, None].expand(-1, latent)
    fields = torch.stack([blob((REACH * float(z[0]), 0.0, 0.0)) for z in nodes])
    model = compose(parts, Scene(BOX, PIXEL, noise_variance=torch.ones(1, BOX // 2 + 1))).eval()
    half = HalfModel(model, torch.eye(latent), torch.zeros(latent), nodes, fields, fields)
    folder.mkdir(exist_ok=True)
    said = {"particles": str(star), **to_record(parts), "workflow": MOTION}
    write_toml(folder / "run.toml", said)
    motion = MotionModel([half, half], latents, said)
    motion.save(folder)
    return motion
