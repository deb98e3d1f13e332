"""A fitted motion: the two independent models, how their coordinates relate, and the coordinates of
all particles; also on disk.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from instamap.errors import DataError
from instamap.model import Model, compose
from instamap.motion.posterior import spacing
from instamap.plugin.choice import PART_KINDS, Choices, from_record
from instamap.scene import Scene
from instamap.toml_text import read_toml

LATENTS = "latents.npy"
SETTINGS = "run.toml"
RELATIVE_WIDTH = 0.5  # σ of the weights of conformations, in their mean distance to each other
LONGEST_REASON = 200  # characters of an error that are told
# What reading half a file, or one of another kind, raises; NotImplementedError and the like are
# RuntimeErrors.
DAMAGED = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    pickle.UnpicklingError,
)

T = TypeVar("T")


@dataclass(frozen=True)
class HalfModel:
    """One of the independent fits.

    model: density(x, z) in its own coordinates z' = turn z + offset, where z are those that both
    halves share ("L L", "L"). nodes "K L": its own coordinates of the conformations that it was
    fitted to. coarse_maps "K N N N": of these at low resolution; they place particles. own_maps "K
    D D D": at full resolution where each conformation has its own map, or None where the model
    bends one density into all.
    """

    model: Model
    turn: Tensor
    offset: Tensor
    nodes: Tensor
    coarse_maps: Tensor
    own_maps: Tensor | None = None

    def to_own(self, z: Tensor) -> Tensor:
        """This fit's own coordinates "* L" of shared ones."""
        return z @ self.turn.mT + self.offset

    def to_shared(self, own: Tensor) -> Tensor:
        """Shared coordinates "* L" of this fit's own."""
        return (own - self.offset) @ torch.linalg.inv(self.turn).mT

    @torch.no_grad()
    def conformation(self, z: Tensor) -> Tensor:
        """The map "D D D" at shared coordinates z "L"; zero outside the mask."""
        own = self.to_own(z.float()[None])
        if self.own_maps is not None:
            weights = weights_between(self.nodes, own[0])
            return torch.einsum("k,kzyx->zyx", weights, self.own_maps)
        window = self.model.scene.mask
        inside = 1.0 if window is None else (window > 0).float()
        return self.model.raster(own) * inside

    @torch.no_grad()
    def pull_back(self, x: Tensor, z: Tensor) -> Tensor:
        """Where in the common density the points x "P 3" (Å) of the conformation at shared
        coordinates z "L" are: x + u(x; z).
        """
        own = self.to_own(z.float()[None])
        return self.model.deformation(x.float()[None], own)[0]

    def save(self, path: Path) -> None:
        """Writes it to a file."""
        scene = self.model.scene
        kept = {
            "scene": {one.name: getattr(scene, one.name) for one in fields(Scene)},
            "state": self.model.state_dict(),
            "turn": self.turn,
            "offset": self.offset,
            "nodes": self.nodes,
            "maps": self.coarse_maps,
            "fields": self.own_maps,
        }
        torch.save(kept, path)

    @staticmethod
    def load(path: Path, parts: Choices) -> "HalfModel":
        """Reads what `save` wrote of a model of these parts."""
        kept = torch.load(path, weights_only=True)
        model = compose(parts, Scene(**kept["scene"]))
        model.load_state_dict(kept["state"])
        return HalfModel(
            model.eval(),
            kept["turn"],
            kept["offset"],
            kept["nodes"],
            kept["maps"],
            kept["fields"],
        )


@dataclass(frozen=True)
class MotionModel:
    """One or two independent fits, and shared coordinates `latents` "n L" of all particles, in the
    order of their file.

    settings: what run.toml says.
    """

    halves: list[HalfModel]
    latents: Tensor
    settings: dict[str, Any]

    @property
    def scene(self) -> Scene:
        """What both fits share; masks and scales may differ."""
        return self.halves[0].model.scene

    @property
    def bends(self) -> bool:
        """Whether one density is bent into all conformations; if not, each has its own map."""
        return all(half.own_maps is None for half in self.halves)

    def conformation(self, z: Tensor) -> Tensor:
        """The map "D D D" at shared coordinates z "L": the mean of the fits'."""
        maps = [half.conformation(z) for half in self.halves]
        return torch.stack(maps).mean(0)

    def files(self) -> list[str]:
        """The names of the files that `save` writes."""
        return [LATENTS, *(_file_of_half(number) for number in range(len(self.halves)))]

    def save(self, folder: Path) -> None:
        """Writes the models and coordinates into an existing folder (run.toml is the run's)."""
        np.save(folder / LATENTS, self.latents.numpy())
        for number, half in enumerate(self.halves):
            half.save(folder / _file_of_half(number))

    @staticmethod
    def open(folder: str | Path) -> "MotionModel":
        """Reads what `save` wrote. Raises DataError for a folder that holds no motion."""
        folder = Path(folder)
        paths = sorted(folder.glob("half*.pt"))
        if not paths or not (folder / LATENTS).exists():
            raise DataError(
                f"'{folder}' holds no motion: no {LATENTS} and half1.pt; give the folder of a run"
                " with --deform bending-field"
            )
        settings = read_toml(folder / SETTINGS)
        parts = {}
        for kind in PART_KINDS:
            if "name" not in settings.get(kind, {}):
                raise DataError(
                    f"settings file '{folder / SETTINGS}' names no {kind}; give the folder as the"
                    " run left it"
                )
            parts[kind] = from_record(kind, settings[kind])
        halves = [_read(path, lambda path: HalfModel.load(path, parts)) for path in paths]
        latents = _read(folder / LATENTS, _load_array)
        return MotionModel(halves, latents, settings)

    def check_bends(self, folder: str | Path) -> None:
        """Raises DataError, naming the run's folder, where conformations have maps of their own, so
        that no material moves from one to another.
        """
        if self.bends:
            return
        raise DataError(
            f"in '{folder}' each conformation has a map of its own (--deform"
            f" {self.settings['deformation']['name']}) and nothing bends: there is no field to"
            " follow; compare maps with `instamap states`, or run again with --deform bending-field"
        )


def weights_between(nodes: Tensor, z: Tensor) -> Tensor:
    """The weights "K" of conformations at `nodes` "K L" in the map at z "L".

    Gaussian, with half their mean distance to each other as σ.
    """
    if len(nodes) == 1:
        return torch.ones(1)
    width = RELATIVE_WIDTH * spacing(nodes)
    distance = (nodes - z).norm(dim=1)
    return torch.softmax(-0.5 * (distance / width) ** 2, 0)


def _file_of_half(number: int) -> str:
    """The name of the file of a fit, by its number from 0."""
    return f"half{number + 1}.pt"


def _load_array(path: Path) -> Tensor:
    return torch.from_numpy(np.load(path))


def _read(path: Path, read: Callable[[Path], T]) -> T:
    """What `read` makes of a file. Raises DataError where the file is damaged."""
    try:
        return read(path)
    except DAMAGED as error:
        words = " ".join(str(error).split())
        reason = words[:LONGEST_REASON] or type(error).__name__
        raise DataError(
            f"'{path}' is damaged or does not belong to this run ({reason}); copy it again, or"
            " repeat the run"
        ) from None
