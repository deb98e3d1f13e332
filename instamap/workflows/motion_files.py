"""A motion among the files of a run: its models, coordinates and motion.json."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from instamap.motion.motion_model import LATENTS, MotionModel
from instamap.workflows.record import read_json, write_json
from instamap.workflows.result import Artefact

RECORD = "motion.json"
PATTERNS = (
    LATENTS,
    "half*.safetensors",
    RECORD,
)  # of the names of all files that a motion may have


@dataclass(frozen=True)
class MotionFiles(Artefact):
    """A motion, and what motion.json says of it."""

    motion: MotionModel
    record: dict[str, Any]

    @property
    def latents(self) -> Tensor:
        return self.motion.latents

    def files(self) -> list[str]:
        return [*self.motion.files(), RECORD]

    def write(self, folder: Path) -> None:
        self.motion.save(folder)
        write_json(folder / RECORD, self.record)

    @staticmethod
    def open(folder: Path) -> "MotionFiles":
        """Reads what `write` wrote. Raises DataError for a folder without a motion."""
        motion = MotionModel.open(folder)
        return MotionFiles(motion, read_json(folder / RECORD))
