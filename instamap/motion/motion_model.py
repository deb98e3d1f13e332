"""A fitted motion: the two independent models, how their coordinates relate, and the coordinates of
all particles; also on disk.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from instamap import checksums
from instamap.errors import DataError, is_out_of_memory
from instamap.files import refusal
from instamap.model import Model, compose
from instamap.motion import ring
from instamap.motion.domains import Domains, Placement
from instamap.motion.posterior import weights_between
from instamap.plugin.choice import PART_KINDS, Choice, Choices, from_record
from instamap.scene import Scene
from instamap.tensor_files import DamagedFile, read_npy, read_safetensors, write_safetensors
from instamap.toml_text import read_toml

LATENTS = "latents.npy"
SETTINGS = "run.toml"
VERSION = 1  # of the files of models
STATE = "state."  # begins names of the parameters of a model
DOMAINS = "domains."  # of its domains
SCENE = "scene."  # begins names of the tensors of a scene
COORDINATES = ("turn", "offset", "nodes", "coarse_maps")
# What a whole file of another model raises; NotImplementedError and the like are RuntimeErrors.
UNFITTING = (ArithmeticError, RuntimeError, ValueError, LookupError, TypeError, AttributeError)

T = TypeVar("T")


@dataclass(frozen=True)
class HalfModel:
    """One of the independent fits.

    model: density(x, z) in its own coordinates z' = turn z + offset, where z are those that both
    halves share ("L L", "L"). nodes "K L": its own coordinates of the conformations that it was
    fitted to. coarse_maps "K N N N": of these at low resolution; they place particles. own_maps "K
    D D D": at full resolution where each conformation has its own map, or None where the model
    bends one density into all. domains: those that move as rigid bodies, with `densities` "M D D
    D", or None. closed: whether own coordinates are points of the unit circle. occupancies: how
    many of the last coordinates tell how probably a region is there, from 0 to 1. contrast_spread:
    how far the contrasts of images differed in the run, relative to their mean; 0 where they were
    not used. nuisance "Q N N N": how particles differ outside the focus of the run, at low
    resolution, which is integrated out where they are placed; None where there is none.
    """

    model: Model
    turn: Tensor
    offset: Tensor
    nodes: Tensor
    coarse_maps: Tensor
    own_maps: Tensor | None = None
    domains: Domains | None = None
    densities: Tensor | None = None
    closed: bool = False
    occupancies: int = 0
    contrast_spread: float = 0.0
    nuisance: Tensor | None = None

    @property
    def bends(self) -> bool:
        """Whether material moves from one conformation to another."""
        if self.domains is not None:
            return self.domains.nodes.shape[1] > 0
        return self.own_maps is None

    def to_own(self, z: Tensor) -> Tensor:
        """This fit's own coordinates "* L" of shared ones."""
        own = z @ self.turn.mT + self.offset
        if not self.closed:
            return own
        rows = own.reshape(-1, own.shape[-1])
        return ring.with_angle_on_circle(rows).view_as(own)

    def to_shared(self, own: Tensor) -> Tensor:
        """Shared coordinates "* L" of this fit's own."""
        return (own - self.offset) @ torch.linalg.inv(self.turn).mT

    def to(self, device: torch.device | str) -> "HalfModel":
        """The same fit, whose density and bending are computed on a device: what goes in and comes
        out is on the CPU, and so are maps of conformations, and domains.
        """
        return replace(self, model=copy.deepcopy(self.model).to(device))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @torch.no_grad()
    def window(self, x: Tensor) -> Tensor:
        """The mask "P" at points x "P 3" (Å)."""
        return self.model.window(x.to(self.device)).cpu()

    @torch.no_grad()
    def conformation(self, z: Tensor) -> Tensor:
        """The map "D D D" at shared coordinates z "L"; zero outside the mask."""
        own = self.to_own(z.float()[None])
        if self.own_maps is not None:
            weights = weights_between(self.nodes, own)[0]
            if self.model.scene.focus is not None:  # what is the same in all stays to the last bit
                first = self.own_maps[0]
                return first + torch.einsum("k,kzyx->zyx", weights, self.own_maps - first)
            return torch.einsum("k,kzyx->zyx", weights, self.own_maps)
        window = self.model.scene.mask
        inside = 1.0 if window is None else (window > 0).float()
        if self.domains is not None and self.densities is not None:
            return self.domains.map(self.densities, own[0]) * inside
        return self.model.raster(own.to(self.device)).cpu() * inside

    @torch.no_grad()
    def pull_back(self, x: Tensor, z: Tensor) -> Tensor:
        """Where in the common density the points x "P 3" (Å) of the conformation at shared
        coordinates z "L" are: x + u(x; z).
        """
        own = self.to_own(z.float()[None])
        if self.domains is not None:
            return self.domains.pull_back(x.float(), own[0])
        device = self.device
        return self.model.bind(own.to(device))(x.float()[None].to(device))[0].cpu()

    def save(self, path: Path) -> None:
        """Writes it to a file."""
        scene = self.model.scene
        facts = {one.name: getattr(scene, one.name) for one in fields(Scene)}
        state = self.model.state_dict()
        tensors = {
            **{f"{STATE}{name}": tensor for name, tensor in state.items()},
            **{f"{SCENE}{name}": one for name, one in facts.items() if isinstance(one, Tensor)},
            **{name: getattr(self, name) for name in COORDINATES},
        }
        if self.own_maps is not None:
            tensors["own_maps"] = self.own_maps
        if self.nuisance is not None:
            tensors["nuisance"] = self.nuisance
        if self.domains is not None and self.densities is not None:
            tensors["densities"] = self.densities
            tensors[f"{DOMAINS}masks"] = self.domains.masks
            tensors[f"{DOMAINS}nodes"] = self.domains.nodes
            tensors[f"{DOMAINS}turn"] = self.domains.placement.turn
            tensors[f"{DOMAINS}shift"] = self.domains.placement.shift
            if self.domains.occupancy is not None:
                tensors[f"{DOMAINS}occupancy"] = self.domains.occupancy
        plain = {name: one for name, one in facts.items() if not isinstance(one, Tensor)}
        values = {
            "version": VERSION,
            "scene": plain,
            "closed": self.closed,
            "occupancies": self.occupancies,
            "contrast_spread": self.contrast_spread,
        }
        write_safetensors(path, tensors, values)

    @staticmethod
    def load(path: Path, parts: Choices) -> "HalfModel":
        """Reads what `save` wrote of a model of these parts. Raises DamagedFile."""
        tensors, values = read_safetensors(path)
        if values.get("version") != VERSION:
            raise DamagedFile("another version of instamap wrote it")
        facts: dict[str, Any] = {**values["scene"], **_within(tensors, SCENE)}
        scene = Scene(**facts)
        model = compose(parts, scene)
        model.load_state_dict(_within(tensors, STATE))
        own = {name: tensors[name] for name in COORDINATES}
        moved = _within(tensors, DOMAINS)
        domains = None
        if moved:
            placement = Placement(moved["turn"], moved["shift"])
            domains = Domains(
                moved["masks"],
                moved["nodes"],
                placement,
                scene.pixel_size,
                scene.focus,
                moved.get("occupancy"),
            )
        return HalfModel(
            model.eval(),
            **own,
            own_maps=tensors.get("own_maps"),
            domains=domains,
            densities=tensors.get("densities"),
            closed=bool(values.get("closed", False)),
            occupancies=int(values.get("occupancies", 0)),
            contrast_spread=float(values.get("contrast_spread", 0.0)),
            nuisance=tensors.get("nuisance"),
        )


def _within(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, by what follows."""
    found = {name: one for name, one in tensors.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): one for name, one in found.items()}


@dataclass(frozen=True)
class MotionModel:
    """One or two independent fits, and shared coordinates `latents` "n L" of all particles, in the
    order of their file.

    settings: what run.toml says.
    """

    halves: list[HalfModel]
    latents: Tensor
    settings: dict[str, Any]

    def __repr__(self) -> str:
        count, latent = self.latents.shape
        scene = self.scene
        return (
            f"<MotionModel: {scene.box} px of {scene.pixel_size:.4g} Å, independent fits:"
            f" {len(self.halves)}, particles: {count}, coordinates of each: {latent}>"
        )

    @property
    def scene(self) -> Scene:
        """What both fits share; masks and scales may differ."""
        return self.halves[0].model.scene

    @property
    def bends(self) -> bool:
        """Whether material moves from one conformation to another; if not, each has its own map, or
        regions come and go in their places.
        """
        return all(half.bends for half in self.halves)

    def to(self, device: torch.device | str) -> "MotionModel":
        """The same motion, whose fits compute on a device: see `HalfModel.to`."""
        return replace(self, halves=[half.to(device) for half in self.halves])

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
        """Reads what `save` wrote. Raises DataError for a folder that holds no motion, or a damaged
        one.
        """
        folder = Path(folder)
        paths = sorted(folder.glob("half*.safetensors"))
        if not paths and list(folder.glob("half*.pt")):
            raise DataError(
                f"'{folder}' holds a motion of an earlier version of instamap (half1.pt); repeat"
                f" the run with this version: instamap reconstruct --config {folder / SETTINGS}"
            )
        if not paths or not (folder / LATENTS).exists():
            raise DataError(
                f"'{folder}' holds no motion: no {LATENTS} and {_file_of_half(0)}; give the folder"
                " of a run with --deform bending-field"
            )
        settings = read_toml(folder / SETTINGS)
        checksums.check(folder, [SETTINGS, LATENTS, *(path.name for path in paths)])
        parts = {}
        for kind in PART_KINDS:
            parts[kind] = _part(folder / SETTINGS, settings, kind)
        halves = [_read(path, lambda path: HalfModel.load(path, parts)) for path in paths]
        latents = _read(folder / LATENTS, _load_latents)
        return MotionModel(halves, latents, settings)

    def check_bends(self, folder: str | Path) -> None:
        """Raises DataError, naming the run's folder, where conformations have maps of their own, so
        that no material moves from one to another.
        """
        if self.bends:
            return
        if all(half.own_maps is None for half in self.halves):
            raise DataError(
                f"in '{folder}' regions come and go and nothing moves: there is no field to follow;"
                " compare maps with `instamap states`"
            )
        raise DataError(
            f"in '{folder}' each conformation has a map of its own (--deform"
            f" {self.settings['deformation']['name']}) and nothing bends: there is no field to"
            " follow; compare maps with `instamap states`, or, where that was --deform subspace,"
            " run again with --deform bending-field"
        )


def _part(file: Path, settings: dict[str, Any], kind: str) -> Choice:
    """The part of a kind that a run's settings name. Raises DataError where they name none."""
    table = settings.get(kind)
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise DataError(
            f"settings file '{file}' names no {kind}; give the folder as the run left it"
        )
    return from_record(kind, table)


def _file_of_half(number: int) -> str:
    """The name of the file of a fit, by its number from 0."""
    return f"half{number + 1}.safetensors"


def _load_latents(path: Path) -> Tensor:
    array = read_npy(path)
    if array.ndim != 2 or array.dtype.kind != "f":
        raise DamagedFile("it holds no coordinates")
    (rows,) = np.nonzero(~np.isfinite(array).all(axis=1))
    if len(rows):
        raise DamagedFile(
            f"the coordinates of particle {rows[0] + 1} are {array[rows[0]].tolist()}"
        )
    return torch.from_numpy(array)


def _read(path: Path, read: Callable[[Path], T]) -> T:
    """What `read` makes of a file. Raises DataError where the file is damaged."""
    try:
        return read(path)
    except DamagedFile as error:
        reason = str(error)
    except OSError as error:
        reason = refusal(error)[0]
    except UNFITTING as error:
        if is_out_of_memory(error):
            raise
        reason = "its numbers are not those of the parts in run.toml"
    raise DataError(
        f"'{path}' is damaged or does not belong to this run ({reason}); copy it again, or repeat"
        " the run"
    )
