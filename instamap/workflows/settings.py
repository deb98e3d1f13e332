"""All that a person decides of a reconstruction."""

from dataclasses import dataclass, field
from pathlib import Path

from instamap import __version__
from instamap.data.preprocess import NOTHING, Preprocess
from instamap.fit.objective import EngineOptions
from instamap.fit.stages import Stage
from instamap.geometry import symmetry
from instamap.model import Choice, defaults, record
from instamap.plugin.options import to_dict

AUTO = Choice("auto", EngineOptions())


@dataclass(frozen=True)
class Settings:
    """All that decides the outcome of a reconstruction; run.toml keeps it. Raises OptionError for
    an unknown symmetry.

    preprocess: what is done to each image when it is read. together: a column whose equal values
    stay in one half, as rows of the same image do anyway. held_out: share of the particles (but at
    least three) kept out of both halves. symmetry: point group. weights: a column of factors of
    each image's log p. statistics: a folder of what the images say (see `folder`), instead of which
    nothing is read; the settings that it was made with must then be the same (`Folder.settings`
    gives them), and seed is the fit's alone. stages: of each fit; None means the usual ones.
    """

    particles: Path
    datadir: Path | None = None
    mask: Path | None = None
    preprocess: Preprocess = NOTHING
    halves: bool = True
    together: str | None = None
    held_out: float = 0.05
    seed: int = 0
    symmetry: str = "C1"
    weights: str | None = None
    statistics: Path | None = None
    engine: Choice = AUTO
    parts: dict[str, Choice] = field(default_factory=defaults)
    stages: tuple[Stage, ...] | None = None

    def __post_init__(self):
        object.__setattr__(self, "symmetry", symmetry.canonical(self.symmetry))

    def record(self, engine: Choice) -> dict:
        """As a dict of plain values for run.toml, with the engine that was used; unset ones are
        left out.
        """
        names = (
            "particles",
            "datadir",
            "mask",
            "halves",
            "together",
            "held_out",
            "seed",
            "symmetry",
            "weights",
            "statistics",
        )
        plain = {
            n: str(v.resolve()) if isinstance(v, Path) else v
            for n in names
            if (v := getattr(self, n)) is not None
        }
        stages = {} if self.stages is None else {"stage": [to_dict(stage) for stage in self.stages]}
        done = {"preprocess": self.preprocess.record()} if self.preprocess else {}
        return {
            "instamap": __version__,
            **plain,
            **done,
            **record({"engine": engine, **self.parts}),
            **stages,
        }
