"""A fitted motion on disk: the two independent models, how their coordinates relate, and the
coordinates of all particles.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from instamap.errors import DataError
from instamap.model import Choice, Model, choose, compose
from instamap.motion.posterior import spacing
from instamap.scene import Scene
from instamap.workflows.record import read_toml

LATENTS = "latents.npy"
SETTINGS = "run.toml"
PARTS = ("representation", "deformation", "forward", "likelihood")
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


@dataclass(frozen=True)
class Half:
    """One of the independent fits.

    model: density(x, z) in its own coordinates z' = turn z + offset, where z are those that both
    halves share ("L L", "L"). nodes "K L": its own coordinates of the states that it was fitted to.
    maps "K N N N": of these states at low resolution; they place particles. fields "K D D D": their
    maps at full resolution where each has its own, or None where the model bends one density into
    all.
    """

    model: Model
    turn: Tensor
    offset: Tensor
    nodes: Tensor
    maps: Tensor
    fields: Tensor | None = None

    def own(self, z: Tensor) -> Tensor:
        """This fit's own coordinates "* L" of shared ones."""
        return z @ self.turn.mT + self.offset

    def shared(self, own: Tensor) -> Tensor:
        """Shared coordinates "* L" of this fit's own."""
        return (own - self.offset) @ torch.linalg.inv(self.turn).mT

    @torch.no_grad()
    def state(self, z: Tensor) -> Tensor:
        """The map "D D D" of the state with shared coordinates "L"; zero outside the mask."""
        scene = self.model.scene
        own = self.own(z.float()[None])
        if self.fields is not None:
            return torch.einsum("k,kzyx->zyx", between(self.nodes, own[0]), self.fields)
        return self.model.raster(own) * (1.0 if scene.mask is None else (scene.mask > 0).float())

    @torch.no_grad()
    def displaced(self, x: Tensor, z: Tensor) -> Tensor:
        """Where in the common density the points x "P 3" (Å) of the state with shared coordinates
        "L" are: x + u(x; z).
        """
        return self.model.deformation(x.float()[None], self.own(z.float()[None]))[0]


@dataclass(frozen=True)
class Motion:
    """halves: one or two independent fits. latents "n L": shared coordinates of all particles, in
    the STAR file's order.

    settings: what run.toml says.
    """

    halves: list[Half]
    latents: Tensor
    settings: dict

    @property
    def scene(self) -> Scene:
        """What both fits share; masks and scales may differ."""
        return self.halves[0].model.scene

    def state(self, z: Tensor) -> Tensor:
        """The map "D D D" of a state: the mean of the fits'."""
        return torch.stack([half.state(z) for half in self.halves]).mean(0)

    def save(self, folder: Path) -> None:
        """Writes the models and latents.npy into an existing folder (run.toml is the run's)."""
        np.save(folder / LATENTS, self.latents.numpy())
        for number, half in enumerate(self.halves, 1):
            scene = {f.name: getattr(half.model.scene, f.name) for f in fields(Scene)}
            kept = {
                "scene": scene,
                "state": half.model.state_dict(),
                "turn": half.turn,
                "offset": half.offset,
            }
            kept |= {"nodes": half.nodes, "maps": half.maps, "fields": half.fields}
            torch.save(kept, folder / f"half{number}.pt")

    @staticmethod
    def open(folder: str | Path) -> "Motion":
        """What `save` wrote. Raises DataError for a folder that holds no motion."""
        folder = Path(folder)
        paths = sorted(folder.glob("half*.pt"))
        if not paths or not (folder / LATENTS).exists():
            raise DataError(
                f"'{folder}' holds no motion: no {LATENTS} and half1.pt; give the folder of a run"
                " with --deform bending-field"
            )
        settings = read_toml(folder / SETTINGS)
        for kind in PARTS:
            if "name" not in settings.get(kind, {}):
                raise DataError(
                    f"settings file '{folder / SETTINGS}' names no {kind}; give the folder as the"
                    " run left it"
                )
        parts = {kind: _choice(kind, settings[kind]) for kind in PARTS}
        halves = [_read(path, lambda path: _load(path, parts)) for path in paths]
        return Motion(
            halves, _read(folder / LATENTS, lambda path: torch.from_numpy(np.load(path))), settings
        )

    def check_bends(self, folder: str | Path) -> None:
        """Raises DataError, naming the run's folder, where states have maps of their own, so that
        no material moves from one to another.
        """
        if any(half.fields is not None for half in self.halves):
            raise DataError(
                f"in '{folder}' each state has a map of its own (--deform"
                f" {self.settings['deformation']['name']}) and nothing bends: there is no field to"
                " follow; compare maps of states with `instamap states`, or run again with"
                " --deform bending-field"
            )


def between(nodes: Tensor, z: Tensor) -> Tensor:
    """Weights "K" of states at `nodes` "K L" for the map at z "L": Gaussian, with half their mean
    distance to each other as σ.
    """
    if len(nodes) == 1:
        return torch.ones(1)
    return torch.softmax(-0.5 * ((nodes - z).norm(dim=1) / (0.5 * spacing(nodes))) ** 2, 0)


def _choice(kind: str, table: dict) -> Choice:
    return choose(
        kind, table["name"], {key: value for key, value in table.items() if key != "name"}
    )


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    """What `read` makes of a file. Raises DataError where the file is damaged."""
    try:
        return read(path)
    except DAMAGED as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"'{path}' is damaged or does not belong to this run ({why}); copy it again, or repeat"
            " the run"
        ) from None


def _load(path: Path, parts: dict[str, Choice]) -> Half:
    kept = torch.load(path, weights_only=True)
    model = compose(parts, Scene(**kept["scene"]))
    model.load_state_dict(kept["state"])
    return Half(
        model.eval(), kept["turn"], kept["offset"], kept["nodes"], kept["maps"], kept["fields"]
    )
