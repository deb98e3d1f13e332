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

    @property
    def moving(self) -> bool:
        """Whether anything moves."""
        return bool(self.record["motion_found"])

    @property
    def description(self) -> str | None:
        """How particles differ; None where they do not."""
        value = self.record.get("description")
        return None if value is None else str(value)

    @property
    def closed(self) -> bool:
        """Whether the coordinate closes upon itself."""
        return bool(self.record.get("closed", False))

    @property
    def gains(self) -> dict[str, float]:
        """What the held-out particles of each fit gain over one rigid map, in nats."""
        fits = self.record["fits"]
        return {name: float(fit["gain_over_rigid"]) for name, fit in fits.items()}

    @property
    def agreement(self) -> float | None:
        """How far the fits' coordinates correlate; None where there are none to compare."""
        value = self.record["agreement"]
        return None if value is None else float(value)

    def files(self) -> list[str]:
        return [*self.motion.files(), RECORD]

    def write(self, folder: Path) -> None:
        self.motion.save(folder)
        write_json(folder / RECORD, self.record)

    @staticmethod
    def open(folder: Path) -> "MotionFiles":
        """Reads what `write` wrote. Raises DataError for a folder without a motion, or with a
        damaged one.
        """
        motion = MotionModel.open(folder)
        return MotionFiles(motion, read_json(folder / RECORD))
