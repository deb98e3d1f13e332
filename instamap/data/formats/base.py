"""What a file format is to the rest of instamap: something that is recognised and read."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from instamap.data.particle_table import ParticleTable
from instamap.plugin import options


class InputFormat(ABC):
    """A kind of file that lists particles.

    Announce one with `Component("format", name, "package.module:Class", summary)`; a file is read
    by the first format that recognises it, the built-in ones first.
    """

    Options: ClassVar[type[options.Options]] = options.Options  # none

    @classmethod
    @abstractmethod
    def recognises(cls, path: Path) -> bool:
        """Whether the file is of this format, by its name or its first bytes; False where there is
        no file.
        """

    @abstractmethod
    def read(self, path: Path, *, ctf: bool = True) -> ParticleTable:
        """The particles of a file.

        ctf: False leaves what the file says of contrast transfer alone. Raises DataError.
        """

    def read_beside(self, path: Path, datadir: Path | None, *, ctf: bool = True) -> ParticleTable:
        """The particles of a file whose stacks are in `datadir`, for formats that look at stacks to
        say which image is a particle's. Raises DataError.
        """
        return self.read(path, ctf=ctf)
