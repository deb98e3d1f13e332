"""What is read of a set of particles, whatever the program that wrote it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from instamap.errors import DataError
from instamap.scene import Optics, Views

Numbers = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
RowNumbers = npt.NDArray[np.int64]  # from 0
Condition = Callable[[Numbers], Mask]


class Columns(ABC):
    """Values of each particle, by the names that the file's program gives its columns."""

    path: Path

    @abstractmethod
    def __len__(self) -> int:
        """The number of particles."""

    @abstractmethod
    def __contains__(self, name: object) -> bool:
        """Whether the file has a column of this name."""

    @abstractmethod
    def texts(self, name: str, remedy: str = "name a column that the file has") -> list[str]:
        """Values as text, without quotes. Raises DataError if there is no such column."""

    @abstractmethod
    def as_numbers(self, name: str, remedy: str = "name a column that the file has") -> Numbers:
        """Values as numbers, not a number where a value is none. Raises DataError if there is no
        such column.
        """

    @abstractmethod
    def keys(self, name: str) -> list[object]:
        """Values by which particles are grouped: equal ones belong together, None is no value.
        Raises DataError if there is no such column.
        """

    def numbers(
        self,
        name: str,
        *,
        default: float | None = None,
        remedy: str = "name a column that the file has",
        allowed: Condition = np.isfinite,
        words: str = "a number",
    ) -> Numbers:
        """Finite values "n" that are `allowed` (in `words`); the default where there is no such
        column. Raises DataError naming the rows, counted from 1.
        """
        if default is not None and name not in self:
            return np.full(len(self), default)
        values = self.as_numbers(name, remedy)
        wrong = ~(np.isfinite(values) & allowed(values))
        if wrong.any():
            raise self._wrong(name, wrong, words)
        return values

    def _wrong(self, name: str, wrong: Mask, words: str) -> DataError:
        row = int(wrong.argmax())
        value = self.texts(name)[row]
        return DataError(
            f"{name} of row {row + 1} of '{self.path}' is {value}; it must be {words};"
            f" mend or remove that row ({wrong.sum()} of {len(self)} are wrong)"
        )


@dataclass(frozen=True)
class Rescaling:
    """How images that are written anew differ from those that were read.

    box_before, box: pixels along an edge. edge: of those before, the pixels that were kept by
    cropping; edge pixels became box pixels. Pixels grew by edge/box. pixel_size: Å of all images as
    they are now, where those that were read had several; None where they had one.
    """

    box_before: int
    edge: int
    box: int
    pixel_size: float | None = None


class Source(ABC):
    """A file of particles as it was written, which can be written again with some of it changed.

    Whatever is not changed stays to the letter: values, columns, tables and their order. Methods
    return a changed copy.

    suffix: of the files that are written.
    """

    suffix: ClassVar[str]

    @abstractmethod
    def take(self, rows: RowNumbers) -> "Source":
        """Some particles, in the order given."""

    @abstractmethod
    def with_latents(self, latents: Tensor) -> "Source":
        """Coordinates "n L" of all particles in columns of their own, in place of any that the file
        has.
        """

    @abstractmethod
    def with_poses(self, views: Views, changed: Mask) -> "Source":
        """Poses of the particles that are `changed` "n"."""

    def with_copies(self, copy: Tensor) -> "Source":
        """The number "n", from 0, of the copy that each row is of its particle, in a column of its
        own; the same source where rows have no place for it.
        """
        return self

    @abstractmethod
    def with_images(self, stack: str, rescaling: Rescaling) -> "Source":
        """Images in one stack of that name, in the file's order, of another size. Raises
        DataError.
        """

    @abstractmethod
    def write(self, path: Path) -> None:
        """Write the file. Raises OSError."""


@dataclass(frozen=True)
class ParticleTable:
    """A set of particles: lengths in Å, angles in radians, rows in the file's order.

    path: the file. image_names "n": N@stack, N from 1. rotation "n 3 3": particle frame to
    image frame. origin "n 2": Å. optics: None means no contrast transfer. group "n": optics
    group from 0; group_names: of each group. pixel_size "n": Å. box "n": pixels along an
    image's edge as the file has it, or None. premultiplied: the images were multiplied by their
    CTF. phase_flipped "n" (bool): the images' components were given the sign of the CTF; None
    if no image's were. sign "n": the factor, 1 or -1, with which protein is white; None if it
    is for all. half "n": 0 or 1, or None where the file has no halves. ignored: names of
    columns that say something which is not modelled. columns: everything else, by name. terms:
    the file's own names for "image", "box", "pixel size", "half" and "premultiplied", for
    errors. source: what can be written again. particle "n": numbers from 0 of the particles that
    the images show, or None where each image shows its own. copy "n": the number, from 0, of the
    rotation of a point group by which a row was turned (`symmetry_expansion`), or None. assumed:
    what the file does not say and is taken for granted, in words; None if nothing is.
    """

    path: Path
    image_names: list[str]
    rotation: Tensor
    origin: Tensor
    optics: Optics | None
    group: Tensor
    group_names: tuple[str, ...]
    pixel_size: Tensor
    box: Tensor | None
    premultiplied: bool
    phase_flipped: Tensor | None
    sign: Tensor | None
    half: Tensor | None
    ignored: tuple[str, ...]
    columns: Columns
    terms: Mapping[str, str]
    source: Source
    particle: Tensor | None = None
    copy: Tensor | None = None
    assumed: str | None = None

    def __len__(self) -> int:
        return len(self.image_names)
