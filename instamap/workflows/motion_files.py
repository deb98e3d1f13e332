"""A motion among the files of a run: its models, coordinates, motion.json, and masks of domains."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from instamap.maps import mrc
from instamap.motion.motion_model import LATENTS, MotionModel
from instamap.workflows.record import read_json, write_json
from instamap.workflows.result import Artefact

RECORD = "motion.json"
PATTERNS = (
    LATENTS,
    "half*.safetensors",
    "half*_domain*_mask.mrc",
    RECORD,
)  # of the names of all files that a motion may have


def domain_mask(fit: int, domain: int) -> str:
    """The name of the file with the mask of a domain of a fit, both counted from 0."""
    return f"half{fit + 1}_domain{domain + 1}_mask.mrc"


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

    @property
    def regions(self) -> list[float]:
        """Of the regions that come and go, the share of the particles that have each."""
        return [float(region["share"]) for region in self.record.get("regions", [])]

    def files(self) -> list[str]:
        return [*self.motion.files(), *self._domain_masks(), RECORD]

    def _domain_masks(self) -> dict[str, Tensor]:
        """The masks "D D D" of the domains of each fit, where it has any, by their files' names."""
        masks = {}
        for number, half in enumerate(self.motion.halves):
            if half.domains is None:
                continue
            for m, window in enumerate(half.domains.masks):
                masks[domain_mask(number, m)] = window
        return masks

    def write(self, folder: Path) -> None:
        self.motion.save(folder)
        for name, window in self._domain_masks().items():
            mrc.write(folder / name, window, self.motion.scene.pixel_size)
        write_json(folder / RECORD, self.record)

    @staticmethod
    def open(folder: Path) -> "MotionFiles":
        """Reads what `write` wrote. Raises DataError for a folder without a motion, or with a
        damaged one.
        """
        motion = MotionModel.open(folder)
        return MotionFiles(motion, read_json(folder / RECORD))
