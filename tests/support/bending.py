"""Motions whose field is known: bending fields that are linear in space and in their coordinates,
in models of one blob.
"""

from pathlib import Path

import torch
from torch import Tensor

from instamap.deform.bending_field import BendingField
from instamap.geometry import grids
from instamap.model import compose, default_parts
from instamap.motion.motion_model import HalfModel, MotionModel
from instamap.plugin.choice import choose, to_record
from instamap.scene import Scene
from instamap.toml_text import write_toml

BOX = 16
PIXEL = 4.0
POINTS = 8
SCENE = Scene(BOX, PIXEL, count=7, noise_variance=torch.ones(1, BOX // 2 + 1))


def set_linear(field: BendingField, *u: tuple[list | Tensor, list | Tensor]) -> BendingField:
    """Makes u(x; z) = Σ_j z_j (M_j x + t_j) within the box, for a pair (M "3 3", t "3") for each
    coordinate.

    x σ(x) - (-x) σ(-x) = x: two SiLU units of opposite sign pass a number on as it is, so that the
    decoder is linear in z. Splines reproduce linear functions, and so does their linear
    interpolation. Control point 1 is on the box's lower face.
    """
    latent = len(u)
    n = field.options.points
    layers = [layer for layer in field.decoder if hasattr(layer, "weight")]
    interval = 2 * field.half_edge / (n - 3)
    axis = (torch.arange(n, dtype=torch.float64) - 1) * interval - field.half_edge
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    at = torch.stack([x, y, z], -1)
    with torch.no_grad():
        for layer in layers:
            layer.weight.zero_()
            layer.bias.zero_()
        for j, (matrix, shift) in enumerate(u):
            layers[0].weight[[2 * j, 2 * j + 1], j] = torch.tensor([1.0, -1.0]).to(layers[0].weight)
            for layer in layers[1:-1]:
                for row, signs in enumerate(([1.0, -1.0], [-1.0, 1.0])):
                    pair = torch.tensor(signs).to(layer.weight)
                    layer.weight[2 * j + row, [2 * j, 2 * j + 1]] = pair
            turn = torch.as_tensor(matrix, dtype=torch.float64)
            offset = torch.as_tensor(shift, dtype=torch.float64)
            control = at @ turn.mT + offset
            unit = torch.movedim(control, -1, 0).flatten() * 32 / field.half_edge
            last = layers[-1].weight
            last[:, 2 * j] = unit.to(last)
            last[:, 2 * j + 1] = -unit.to(last)
    assert latent == layers[0].weight.shape[1]
    return field


def shift(*t: float) -> tuple[Tensor, list]:
    """u = t."""
    return torch.zeros(3, 3), list(t)


def motion(
    *fits: list, latents: Tensor, offsets: tuple[float, ...] = (0.0, 0.0), centre=(0.0, 0.0, 0.0)
) -> MotionModel:
    """A motion of one or two fits with these fields (see `set_linear`), whose common density is a
    blob of σ = 10 Å about `centre`.
    """
    latent = latents.shape[1]
    parts = {
        **default_parts("bending-field"),
        "representation": choose("representation", "voxel", []),
        "deformation": choose(
            "deformation", "bending-field", [f"latent={latent}", f"points={POINTS}"]
        ),
    }
    x = grids.voxel_centres(BOX, PIXEL)
    blob = 3 * torch.exp(-0.5 * ((x - torch.tensor(centre)) / 10).square().sum(-1))
    halves = []
    for u, offset in zip(fits, offsets, strict=False):
        model = compose(parts, SCENE)
        set_linear(model.deformation, *u)
        with torch.no_grad():
            model.representation.values.copy_(blob)
        nodes = torch.linspace(-1, 1, 5)[:, None].expand(-1, latent)
        halves.append(
            HalfModel(
                model.eval(),
                torch.eye(latent),
                torch.full((latent,), offset),
                nodes,
                torch.zeros(len(nodes), 8, 8, 8),
            )
        )
    return MotionModel(halves, latents.double(), to_record(parts))


def save(motion: MotionModel, folder: Path) -> Path:
    """The motion as a run leaves it."""
    folder.mkdir()
    motion.save(folder)
    write_toml(folder / "run.toml", motion.settings)
    return folder
