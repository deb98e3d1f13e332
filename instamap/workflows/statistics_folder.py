"""A folder of statistics on disk: what `fit` and `merge` need of the images, and what they were
gathered from.
"""

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from instamap.data.preprocess import Preprocess
from instamap.errors import DataError, OptionError, OutputError
from instamap.files import replacing
from instamap.model import choose, defaults, record
from instamap.scene import Scene
from instamap.statistics.statistics import Statistics
from instamap.workflows.record import read_toml, write_toml
from instamap.workflows.settings import Settings

SETS = ("half1", "half2", "held_out")
MARK = "accumulate.toml"
BEGUN = "unfinished.toml"  # the same text: the second becomes the first when all files are there
PLACES = (
    "instamap",
    "particles",
    "datadir",
)  # may differ where the same data are seen from another machine; the digest may not
SAID = {
    "instamap": str,
    "particles": str,
    "datadir": str,
    "together": str,
    "weights": str,
    "held_out": float,
    "seed": int,
    "symmetry": str,
    "preprocess": dict,
    "digest": str,
    "shards": list,
    "box": int,
    "pixel_size": float,
    "premultiplied": bool,
    "count": int,
    "noise_variance": list,
    "sets": dict,
    "likelihood": dict,
}
OPTIONAL = ("datadir", "together", "weights", "preprocess")
NOISE = 1e-5  # relative: the same estimate on another machine differs by rounding


@dataclass(frozen=True)
class Shard:
    """Every of-th row of a STAR file, `number` counted from 1. Raises OptionError for a number that
    is not in 1..of.
    """

    number: int = 1
    of: int = 1

    def __post_init__(self):
        if not 1 <= self.number <= self.of:
            raise OptionError(
                f"shard '{self}' does not exist; the first number must be from 1 to the second,"
                " such as 3/16"
            )

    @staticmethod
    def parse(text: str) -> "Shard":
        """The shard that "3/16" names."""
        words = text.split("/")
        if len(words) != 2 or not all(word.isascii() and word.isdigit() for word in words):
            raise OptionError(
                f"shard '{text}' cannot be read; write two whole numbers, such as 3/16"
            )
        return Shard(*map(int, words))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def holds(self, rows: torch.Tensor) -> torch.Tensor:
        """Which of the row numbers (from 0) belong to it."""
        return rows % self.of == self.number - 1

    def meets(self, other: "Shard") -> bool:
        """Whether some row number belongs to both."""
        return (self.number - other.number) % math.gcd(self.of, other.of) == 0


@dataclass(frozen=True)
class Folder:
    """A folder of statistics: one .npz per set, and `said`, the plain values of accumulate.toml.

    said: those of Settings that decide the statistics; digest of the STAR file; shards; box,
    pixel_size, premultiplied, count and noise_variance as in Scene, of images as preprocessed;
    tables `sets` (images of each), `likelihood` and, if anything, `preprocess`.
    """

    path: Path
    said: dict

    @staticmethod
    def open(path: Path) -> "Folder":
        """One that is complete. Raises DataError for a folder that is unfinished, damaged or of
        another kind.
        """
        if not (path / MARK).exists():
            if (path / BEGUN).exists():
                raise DataError(
                    f"statistics in '{path}' are unfinished; run the command that began them again,"
                    " it resumes where it was"
                )
            raise DataError(
                f"folder '{path}' holds no statistics ({MARK} is missing); give one that accumulate"
                " or merge has written"
            )
        folder = Folder(path, read_toml(path / MARK))
        folder._check_types()
        try:
            whole = (
                set(folder.said["sets"]) == set(SETS)
                and folder.settings
                and folder.scene.noise_variance.ndim == 2
                and folder.shards
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            whole = False
        if not whole:
            raise DataError(f"'{path / MARK}' is damaged; accumulate again")
        return folder

    def _check_types(self) -> None:
        """Raises DataError, with the value, for one that is missing, unknown or of another type."""
        said = self.said
        where = f"'{self.path / MARK}'"
        for key in dict.fromkeys([*SAID, *said]):
            kind = SAID.get(key)
            value = said.get(key)
            if key not in said and key not in OPTIONAL:
                raise DataError(f"{where} is damaged: '{key}' is missing; accumulate again")
            if kind is None:
                raise DataError(
                    f"{where} is damaged: '{key}' is unknown; accumulate again with this version of"
                    " instamap"
                )
            if key in said and not _is(value, kind):
                raise DataError(
                    f"{where} is damaged: '{key}' is {value!r}, which is no {kind.__name__};"
                    " accumulate again"
                )
        for name, count in said["sets"].items():
            if not _is(count, int):
                raise DataError(
                    f"{where} is damaged: '{name}' in the table sets is {count!r}, which is no int;"
                    " accumulate again"
                )

    @property
    def settings(self) -> Settings:
        """With which `prepare` takes the statistics from here; change mask, halves, seed, engine
        and the other parts at will.
        """
        said, place = self.said, lambda name: Path(self.said[name]) if name in self.said else None
        likelihood = dict(said["likelihood"])
        parts = {
            **defaults(),
            "likelihood": choose("likelihood", likelihood.pop("name"), likelihood),
        }
        return Settings(
            particles=place("particles"),
            datadir=place("datadir"),
            preprocess=Preprocess(**said.get("preprocess", {})),
            together=said.get("together"),
            held_out=said["held_out"],
            seed=said["seed"],
            symmetry=said["symmetry"],
            weights=said.get("weights"),
            statistics=self.path,
            parts=parts,
        )

    @property
    def scene(self) -> Scene:
        """The images' box, pixel size, number and noise."""
        names = ("box", "pixel_size", "count", "premultiplied")
        return Scene(
            **{n: self.said[n] for n in names},
            noise_variance=torch.tensor(self.said["noise_variance"], dtype=torch.float32),
        )

    @property
    def shards(self) -> list[Shard]:
        return [Shard.parse(text) for text in self.said["shards"]]

    def file(self, name: str) -> Path:
        """Where the set called `name` is kept; the name says which shard it is of."""
        shards = self.shards
        suffix = (
            "-merged"
            if len(shards) > 1
            else ""
            if shards[0].of == 1
            else f"-{shards[0].number}of{shards[0].of}"
        )
        return self.path / f"{name}{suffix}.npz"

    def statistics(self, name: str) -> Statistics:
        """Of the set called `name`. Raises DataError if the file is not the one that
        accumulate.toml speaks of.
        """
        found = Statistics.load(self.file(name))
        said = self.said
        if (found.box, found.pixel_size, found.count) != (
            said["box"],
            said["pixel_size"],
            said["sets"][name],
        ):
            raise DataError(
                f"'{self.file(name)}' holds {found.count} images of {found.box} px, but {MARK}"
                f" speaks of {said['sets'][name]} of {said['box']} px; put back the file that was"
                " written with it, or accumulate again"
            )
        return found

    def check(self, settings: Settings) -> None:
        """Raises OptionError if `settings` ask for statistics other than these."""
        own = self.settings
        for name in (
            "particles",
            "datadir",
            "preprocess",
            "together",
            "held_out",
            "symmetry",
            "weights",
        ):
            value = getattr(settings, name)
            kept = getattr(own, name)
            if value != kept:
                raise OptionError(
                    f"{name} is '{value}', but the statistics in '{self.path}' were gathered with"
                    f" '{kept}'; accumulate again"
                )
        value, kept = (
            record({"likelihood": s.parts["likelihood"]})["likelihood"] for s in (settings, own)
        )
        if value != kept:
            raise OptionError(
                f"likelihood is {value}, but the statistics in '{self.path}' were gathered with"
                f" {kept}; accumulate again"
            )

    def difference(self, other: "Folder", beside: tuple[str, ...] = ()) -> str | None:
        """The first thing, in words, that both were not gathered with alike, places and what is
        named `beside` left out.
        """
        for name in dict.fromkeys([*self.said, *other.said]):
            one = self.said.get(name)
            two = other.said.get(name)
            if (
                name in (*PLACES, *beside)
                or one == two
                or (name == "noise_variance" and _close(one, two))
            ):
                continue
            if name in ("noise_variance", "digest"):
                return {
                    "noise_variance": "their noise differs",
                    "digest": "their STAR files differ",
                }[name]
            return f"{name} is {one} and {two}"
        return None

    def begin(self, force: bool) -> Literal["new", "resumed", "done"]:
        """Make the folder and mark it as unfinished; `resumed` if it was so already, or lacks
        files, `done` if it is complete.

        force: as new in any case.

        Raises OutputError if it holds statistics that were gathered otherwise, or cannot be a
        folder.
        """
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"output '{self.path}' is a file; name a folder")
        for mark in () if force else (MARK, BEGUN):
            if (self.path / mark).exists():
                reason = self.difference(Folder(self.path, read_toml(self.path / mark)))
                if reason:
                    raise OutputError(
                        f"'{self.path}' holds other statistics ({reason}); choose another folder or"
                        " replace them: --force"
                    )
                if mark == MARK and all(zipfile.is_zipfile(self.file(name)) for name in SETS):
                    return "done"
                self._reopen()
                return "resumed"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for old in [*map(self.file, SETS), self.path / MARK, self.path / BEGUN]:
                old.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"output folder '{self.path}' cannot be used: {error.strerror}; choose another"
            ) from None
        with replacing(self.path / BEGUN) as sibling:
            write_toml(sibling, self.said)
        return "new"

    def _reopen(self) -> None:
        """Files that are gone or cut off are to be written again."""
        try:
            for file in map(self.file, SETS):
                if file.exists() and not zipfile.is_zipfile(file):
                    file.unlink()
            if (self.path / MARK).exists():
                (self.path / MARK).replace(self.path / BEGUN)
        except OSError as error:
            raise OutputError(
                f"output folder '{self.path}' cannot be used: {error.strerror}; choose another"
            ) from None

    def end(self) -> None:
        """Mark as complete."""
        (self.path / BEGUN).replace(self.path / MARK)


def _is(value, kind: type) -> bool:
    """Whether a value of TOML has a type; whole numbers are also numbers, and truth values are not."""
    return isinstance(value, (int, float) if kind is float else kind) and isinstance(
        value, bool
    ) == (kind is bool)


def _close(one, two) -> bool:
    return np.shape(one) == np.shape(two) and np.allclose(one, two, rtol=NOISE, atol=0)
