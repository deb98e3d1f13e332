"""A folder of statistics on disk: what `fit` and `merge` need of the images, and their origin."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from instamap import checksums
from instamap.errors import DataError, InstamapError, OptionError, OutputError
from instamap.geometry.cube import Cube
from instamap.scene import Scene
from instamap.statistics.statistics import Statistics
from instamap.toml_text import read_toml, write_toml
from instamap.workflows import output
from instamap.workflows.settings import Settings, facts_of, plain_settings
from instamap.workflows.shard import Shard

SETS = ("half1", "half2", "held_out")
MARK = "accumulate.toml"
UNFINISHED = "unfinished.toml"  # the same text: becomes the mark when all files are there
NOISE_ROUNDING = 1e-5  # relative: the same estimate on another machine differs by rounding
FILES = "files"  # in the record: the names of the files of sets
SUM = "sha256"  # in the record: of what else it says
AGAIN = "accumulate again"

STATISTICS = output.FolderKind(
    "statistics",
    MARK,
    tuple(f"{name}{suffix}.npz" for name in SETS for suffix in ("", "-merged", "-[0-9]*of[0-9]*")),
)
UNFINISHED_STATISTICS = replace(STATISTICS, mark=UNFINISHED)

MANIFEST: dict[str, type] = {
    "instamap": str,
    "digest": str,
    "shards": list,
    "images": int,
    "image_box": int,
    "cube": list,
    "pixel_size": float,
    "premultiplied": bool,
    "noise_variance": list,
    "sets": dict,
}
"""What accumulate.toml says beside the settings: the STAR file's digest, the shards, the images as
preprocessed (their number, box, pixel size, whether they are premultiplied, their noise), the
first voxel of the cube that was gathered and the one after its last, and how many images there are
in each set.
"""


@dataclass(frozen=True)
class StatisticsFolder:
    """A folder of statistics: one .npz per set, and `manifest`, the values of accumulate.toml."""

    path: Path
    manifest: dict[str, Any]

    def __repr__(self) -> str:
        scene = self.scene
        images = sum(self.counts.values())
        shards = ", ".join(map(str, self.shards))
        return (
            f"<StatisticsFolder '{self.path}': {images} images of {scene.box} px of"
            f" {scene.pixel_size:.4g} Å, shards {shards}>"
        )

    @staticmethod
    def open(path: Path) -> "StatisticsFolder":
        """A folder that is complete. Raises DataError for an unfinished, damaged or other one."""
        if not (path / MARK).exists():
            if (path / UNFINISHED).exists():
                raise DataError(
                    f"statistics in '{path}' are unfinished; run the command that began them"
                    " again, it resumes where it was"
                )
            raise DataError(
                f"folder '{path}' holds no statistics ({MARK} is missing); give one that"
                " accumulate or merge has written"
            )
        if (path / output.READY).exists():
            raise DataError(
                f"statistics in '{path}' are being replaced; wait for it or, where that was"
                " stopped, run its command again"
            )
        manifest, as_written = _read_manifest(path / MARK)
        folder = StatisticsFolder(path, manifest)
        _check_manifest(manifest, path / MARK)
        try:
            noise = torch.tensor(folder.manifest["noise_variance"])
            whole = noise.ndim == 2 and len(folder.shards) > 0 and folder.scene is not None
            whole = whole and folder.cube.edge > 0
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError):
            whole = False
        if not whole:
            raise DataError(f"'{path / MARK}' is damaged; {AGAIN}")
        if not as_written:
            raise DataError(
                f"'{path / MARK}' is not as it was written (its checksum differs): it is damaged;"
                f" copy the whole folder again, or {AGAIN}"
            )
        return folder

    @property
    def settings(self) -> Settings:
        """The settings with which the statistics are taken from here.

        Change mask, halves, seed, objective and the other parts at will.
        """
        record = {**self.manifest, "statistics": str(self.path)}
        return Settings.from_record(record)

    @property
    def scene(self) -> Scene:
        """The images' box, pixel size, number and noise."""
        manifest = self.manifest
        noise = torch.tensor(manifest["noise_variance"], dtype=torch.float32)
        return Scene(
            box=manifest["image_box"],
            pixel_size=manifest["pixel_size"],
            count=manifest["images"],
            premultiplied=manifest["premultiplied"],
            noise_variance=noise,
        )

    @property
    def cube(self) -> Cube:
        """The voxels that were gathered."""
        low, high = self.manifest["cube"]
        return Cube(self.manifest["image_box"], low, high)

    @property
    def counts(self) -> dict[str, int]:
        """The number of images of each set."""
        return self.manifest["sets"]

    @property
    def shards(self) -> list[Shard]:
        """The shards whose images are in the statistics."""
        return [Shard.parse(text) for text in self.manifest["shards"]]

    def file(self, name: str) -> Path:
        """The file of the set called `name`; its own name says which shard it is of."""
        shards = self.shards
        suffix = ""
        if len(shards) > 1:
            suffix = "-merged"
        elif shards[0].of > 1:
            suffix = f"-{shards[0].number}of{shards[0].of}"
        return self.path / f"{name}{suffix}.npz"

    def statistics(self, name: str) -> Statistics:
        """The statistics of the set called `name`.

        Raises DataError if the file is not the one that accumulate.toml speaks of.
        """
        found = Statistics.load(self.file(name))
        count = self.counts[name]
        box = self.manifest["image_box"]
        expected = (box, self.manifest["pixel_size"], count)
        cube = found.cube
        if (cube.box, found.pixel_size, found.count) != expected:
            raise DataError(
                f"'{self.file(name)}' holds {found.count} images of {cube.box} px, but {MARK}"
                f" speaks of {count} of {box} px; put back the file that was written with it, or"
                f" {AGAIN}"
            )
        if cube != self.cube:
            raise DataError(
                f"'{self.file(name)}' is of {cube}, but {MARK} speaks of {self.cube}; put back the"
                f" file that was written with it, or {AGAIN}"
            )
        return found

    def check(self, settings: Settings) -> None:
        """Raises OptionError if `settings` ask for statistics other than these."""
        own = self.settings.data_record()
        asked = settings.data_record()
        for name in dict.fromkeys([*own, *asked]):
            if facts_of(name).role == "draw" or own.get(name) == asked.get(name):
                continue
            raise OptionError(
                f"{name} is '{asked.get(name)}', but the statistics in '{self.path}' were gathered"
                f" with '{own.get(name)}'; {AGAIN}"
            )

    def difference(self, other: "StatisticsFolder", beside: tuple[str, ...] = ()) -> str | None:
        """The first thing, in words, that both were not gathered with alike.

        Places, and what is named `beside`, are left out.
        """
        ignored = {"instamap", *_places(), *beside}
        for name in dict.fromkeys([*self.manifest, *other.manifest]):
            one = self.manifest.get(name)
            two = other.manifest.get(name)
            if name in ignored or one == two:
                continue
            if name == "noise_variance" and _close(one, two):
                continue
            words = {"noise_variance": "their noise differs", "digest": "their STAR files differ"}
            return words.get(name, f"{name} is {one} and {two}")
        return None

    @contextmanager
    def writable(self, held: output.OutputFolder, force: bool) -> Iterator["StatisticsFolder"]:
        """The folder to begin and to end: this one, which is `held`, or, where complete statistics
        are replaced by `force`, another whose files take their place when the block has succeeded.
        """
        if not force or not (self.path / MARK).exists():
            yield self
            return
        with held.filled() as inside:
            yield StatisticsFolder(inside, self.manifest)

    def begin(self, force: bool) -> Literal["new", "resumed", "done"]:
        """Makes the folder and marks it as unfinished.

        "resumed" if it was so already, or lacks files; "done" if it is complete. force: as new in
        any case. Raises OutputError if it holds statistics that were gathered otherwise, or cannot
        be a folder.
        """
        for mark in () if force else (MARK, UNFINISHED):
            if not (self.path / mark).exists():
                continue
            self._check_same(mark)
            files = [self.file(name) for name in SETS]
            if mark == MARK and all(_is_whole(file) for file in files):
                return "done"
            self._reopen()
            return "resumed"
        self._make()
        return "new"

    def _check_same(self, mark: str) -> None:
        """Raises OutputError where the statistics that are there were gathered otherwise."""
        there, _ = _read_manifest(self.path / mark)
        reason = self.difference(StatisticsFolder(self.path, there))
        if reason:
            raise OutputError(
                f"'{self.path}' holds other statistics ({reason}); choose another folder or"
                " replace them: --force"
            )

    def _make(self) -> None:
        """Makes the folder, without files of earlier statistics, and marks it as unfinished."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for old in _own_files(self.path):
                (self.path / old).unlink(missing_ok=True)
        except OSError as error:
            raise self._unusable(error) from None
        record = {**self.manifest, FILES: [self.file(name).name for name in SETS]}
        write_toml(self.path / UNFINISHED, {**record, SUM: checksums.of_values(record)})

    def _reopen(self) -> None:
        """Lets files that are gone or damaged be written again."""
        try:
            for file in map(self.file, SETS):
                if file.exists() and not _is_whole(file):
                    file.unlink()
            if (self.path / MARK).exists():
                (self.path / MARK).replace(self.path / UNFINISHED)
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> OutputError:
        return OutputError(
            f"output folder '{self.path}' cannot be used: {error.strerror}; choose another"
        )

    def end(self) -> None:
        """Marks the folder as complete."""
        (self.path / UNFINISHED).replace(self.path / MARK)


def _is_whole(file: Path) -> bool:
    """Whether a file of statistics is there and undamaged."""
    try:
        Statistics.load(file)
    except DataError:
        return False
    return True


@contextmanager
def hold(path: Path) -> Iterator[output.OutputFolder]:
    """Holds the folder `path` for one writer of statistics; another is refused meanwhile.

    Raises OutputError where it is no folder, is held, or has a file that statistics would replace
    and that no earlier ones list as their own.
    """
    with output.hold(path, STATISTICS) as held:
        output.check_foreign(path, STATISTICS, _own_files(path))
        yield held


def _own_files(path: Path) -> list[str]:
    """The names of the files of statistics, complete or not, that are there."""
    complete = output.recorded_files(path, STATISTICS)
    return [*complete, *output.recorded_files(path, UNFINISHED_STATISTICS)]


def _read_manifest(path: Path) -> tuple[dict[str, Any], bool]:
    """What a record of statistics says, and whether that is as it was written. Raises DataError."""
    values = read_toml(path)
    digest = values.pop(SUM, None)
    as_written = digest == checksums.of_values(values)
    values.pop(FILES, None)  # which the shards say too
    return values, as_written


def _places() -> set[str]:
    """The settings that may differ where the same data are seen from another machine."""
    return {spec.field for spec in plain_settings() if facts_of(spec.field).role == "place"}


def _check_manifest(manifest: Mapping[str, Any], where: Path) -> None:
    """Raises DataError, with the value, for one that is missing, unknown or of another type."""
    for key, kind in MANIFEST.items():
        if key not in manifest:
            raise DataError(f"'{where}' is damaged: '{key}' is missing; {AGAIN}")
        value = manifest[key]
        if not _is(value, kind):
            raise DataError(
                f"'{where}' is damaged: '{key}' is {value!r}, which is no {kind.__name__}; {AGAIN}"
            )
    for name in SETS:
        count = manifest["sets"].get(name)
        if not _is(count, int):
            raise DataError(
                f"'{where}' is damaged: '{name}' in the table sets is {count!r}, which is no int;"
                f" {AGAIN}"
            )
    _check_settings({k: v for k, v in manifest.items() if k not in MANIFEST}, where)


def _check_settings(record: Mapping[str, Any], where: Path) -> None:
    """Raises DataError where the settings are not those of statistics."""
    expected = set(Settings(particles=Path("any.star"), datadir=Path("any")).data_record())
    unset = {"datadir"} | {s.field for s in plain_settings() if s.default is None}
    for key in sorted(expected - set(record) - unset):
        raise DataError(f"'{where}' is damaged: '{key}' is missing; {AGAIN}")
    known = {s.field for s in plain_settings()} | {"likelihood"}
    for key in record:
        if key not in known or facts_of(key).role == "fit":
            raise DataError(
                f"'{where}' is damaged: '{key}' is unknown; {AGAIN} with this version of instamap"
            )
    try:
        Settings.from_record(record)
    except InstamapError as error:
        raise DataError(f"'{where}' is damaged: {error}; {AGAIN}") from None


def _is(value: Any, kind: type) -> bool:
    """Whether a value of TOML has a type; whole numbers are numbers, truth values are not."""
    allowed = (int, float) if kind is float else kind
    return isinstance(value, allowed) and isinstance(value, bool) == (kind is bool)


def _close(one: Any, two: Any) -> bool:
    return np.shape(one) == np.shape(two) and np.allclose(one, two, rtol=NOISE_ROUNDING, atol=0)
