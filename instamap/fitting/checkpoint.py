"""Checkpoints: the whole state of a fit that is under way, from which it goes on as if it had not
been stopped.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from instamap.errors import DataError
from instamap.progress import Evaluation
from instamap.tensor_files import DamagedFile, read_npz, reason_of, write_npz

VERSION = 3  # of the files
AGAIN = "begin the fit anew (without --resume)"
SECONDS_BETWEEN_CHECKPOINTS = 60.0


@dataclass(frozen=True)
class Position:
    """Where a fit is: `step` of all, `stage` from 1 and `stage_step`, its steps within it.

    since: evaluations after the stage began or went on from the best one. seconds: since the fit
    began, without those between a stop and its resumption.
    """

    step: int = 0
    stage: int = 1
    stage_step: int = 0
    since: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Fitted:
    """A model, its optimiser and the objective's running average at one step, in plain tensors and
    numbers.
    """

    model: dict[str, Tensor]
    optimiser: dict[str, Any]
    average: Any


@dataclass(frozen=True)
class Checkpoint:
    """All that a fit needs to go on: its own state and that of model, optimiser, objective and
    generator, at present and at the best evaluation so far.
    """

    position: Position
    evaluations: list[Evaluation]
    model: dict[str, Tensor]
    optimiser: dict[str, Any]
    objective: dict[str, Any]
    generator: Tensor
    best: Fitted

    def save(self, path: str | Path) -> None:
        """Write to a file of plain arrays (.npz), whole or not at all. Raises OutputError where the
        file system refuses.
        """
        arrays: list[Tensor] = []
        plain = {
            "position": vars(self.position),
            "evaluations": [vars(evaluation) for evaluation in self.evaluations],
            "model": self.model,
            "optimiser": self.optimiser,
            "objective": self.objective,
            "generator": self.generator,
            "best": vars(self.best),
        }
        text = json.dumps(_flatten(plain, arrays))
        named = {f"array{i}": array.cpu().numpy() for i, array in enumerate(arrays)}
        named["version"] = np.array(VERSION)
        named["structure"] = np.array(text)
        write_npz(path, named)

    @staticmethod
    def load(path: str | Path) -> "Checkpoint":
        """Read what `save` wrote, onto the CPU. Raises DataError for a file that is missing,
        damaged, not of this kind or of another version.
        """
        arrays = _read(path)
        version = arrays.get("version", np.array(0))
        if "structure" not in arrays or not np.array_equal(version, VERSION):
            raise DataError(f"'{path}' does not hold a checkpoint of version {VERSION}; {AGAIN}")
        try:
            return _checkpoint(arrays)
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
            raise DataError(f"'{path}' does not hold a checkpoint; {AGAIN}") from None


def _checkpoint(arrays: dict[str, np.ndarray]) -> Checkpoint:
    """The checkpoint that a file's arrays are."""
    tree = json.loads(str(arrays["structure"]))
    plain = _restore(tree, arrays)
    evaluations = [Evaluation(**values) for values in plain.pop("evaluations")]
    position = Position(**plain.pop("position"))
    best = Fitted(**plain.pop("best"))
    return Checkpoint(position, evaluations, best=best, **plain)


class Checkpoints(Protocol):
    """A place where the latest checkpoint of each fit is kept."""

    def save(self, name: str, checkpoint: Checkpoint) -> None:
        """Keeps the checkpoint of the fit called `name`, in the place of its last one."""


class KeptFit:
    """The latest checkpoint of one fit, in a file; written every so often, and when the fit ends.

    path: None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._written = time.monotonic()

    def load(self) -> Checkpoint | None:
        """What was kept before, if anything. Raises DataError for a damaged file."""
        if self._path is None or not self._path.exists():
            return None
        return Checkpoint.load(self._path)

    @property
    def due(self) -> bool:
        """Whether the next checkpoint is to be written."""
        if self._path is None:
            return False
        return time.monotonic() - self._written >= SECONDS_BETWEEN_CHECKPOINTS

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint in the place of the last one, if anything is kept."""
        if self._path is not None:
            checkpoint.save(self._path)
            self._written = time.monotonic()


def _read(path: str | Path) -> dict[str, np.ndarray]:
    try:
        return read_npz(path)
    except FileNotFoundError:
        raise DataError(f"checkpoint '{path}' does not exist; check the path") from None
    except (OSError, DamagedFile) as error:
        raise DataError(
            f"'{path}' is not a whole checkpoint: {reason_of(error)}; {AGAIN}"
        ) from None


def _flatten(value: Any, arrays: list[Tensor]) -> Any:
    """A value as JSON can hold it; tensors are put into `arrays`, and their numbers in it take
    their place.
    """
    if isinstance(value, Tensor):
        arrays.append(value)
        return {"array": len(arrays) - 1}
    if isinstance(value, dict):
        pairs = [[key, _flatten(item, arrays)] for key, item in value.items()]
        return {"dict": pairs}
    if isinstance(value, list | tuple):
        items = [_flatten(item, arrays) for item in value]
        return {type(value).__name__: items}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"the state of a fit holds a {type(value).__name__}; keep plain tensors and numbers in it"
    )


def _restore(tree: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The value that `_flatten` made a tree of."""
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "array":
        return torch.from_numpy(arrays[f"array{content}"])
    if kind == "dict":
        return {key: _restore(item, arrays) for key, item in content}
    items = [_restore(item, arrays) for item in content]
    return tuple(items) if kind == "tuple" else items
