"""A workflow: a whole procedure from settings to a result, such as a map, a motion or corrected
poses.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from instamap import checksums
from instamap.plugin.choice import Choice
from instamap.plugin.options import Options
from instamap.progress import SILENT, Progress
from instamap.workflows.result import REPORT, Result
from instamap.workflows.settings import Settings

MAP_FILES = (
    "run.toml",
    checksums.LIST,
    "result.json",
    "contrast.csv",
    "log.jsonl",
    "map.mrc",
    "half1.mrc",
    "half2.mrc",
    "mask.mrc",
    "map.png",
    "fsc.csv",
    "fsc.png",
    "held_out.png",
    REPORT,
)


class Workflow(ABC):
    """A whole procedure, made as `Workflow(options)`.

    Laws: `run` writes nothing to disk; the same settings give the same result; what `unsuitable`
    lets through runs; the result names every file that `save` writes.

    objectives: names of those it can use, the one that it takes first where none is chosen; empty
    where it fits nothing. may_write: patterns of the names of all files that its results may have.
    expands_symmetry: whether what it finds of particles has a row for each copy by symmetry.
    takes_focus: whether it looks for differences inside the mask `--focus` alone.
    takes_device: whether its statistics and fits can be on a card.
    """

    Options: Any = Options
    objectives: ClassVar[tuple[str, ...]] = ()
    may_write: ClassVar[tuple[str, ...]] = MAP_FILES
    expands_symmetry: ClassVar[bool] = False
    takes_focus: ClassVar[bool] = False
    takes_device: ClassVar[bool] = False

    def __init__(self, options: Any) -> None:
        self.options = options

    @classmethod
    @abstractmethod
    def unsuitable(cls, settings: Settings) -> str | None:
        """Why it cannot carry out these settings, in words for people with a remedy; None if it
        can.

        Nothing is read for it. settings.objective is None where it is to be chosen.
        """

    @classmethod
    def composition(cls, settings: Settings) -> dict[str, Choice]:
        """The parts that its fits compose, by kind; an objective is chosen that describes them."""
        return settings.parts

    @classmethod
    def reload(cls, folder: Path, result: Result) -> Result:
        """A result that was saved, with what the workflow found beyond maps, from its folder."""
        return result

    @abstractmethod
    def run(self, settings: Settings, progress: Progress = SILENT) -> Result:
        """Carries it out. Raises InstamapError."""
