"""The laws of input formats: whatever the program that wrote a file, what is read of it is the same
particles, in Å and as rotations, and what is written again is the letter.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from instamap.data.formats.base import InputFormat
from instamap.data.particle_table import ParticleTable
from instamap.geometry import rotations
from instamap.plugin.registry import default
from instamap.scene import Optics, Views
from instamap.testing.part import difference

COUNT = 7
# Programs write some 6 digits, in degrees or pixels.
ROUNDING = 1e-5
# what no format of particles may take for its own
FOREIGN_FILES = {
    "picture.png": b"\x89PNG\r\n\x1a\n" + bytes(64),
    "notes.txt": b"grids of Tuesday\n",
    "table.csv": b"x,y\n1,2\n",
    "empty": b"",
}


@dataclass(frozen=True)
class Sample:
    """Particles that a file is to list.

    image_names: N@stack. rotation "n 3 3", origin "n 2" in Å, half "n": 0 or 1. pixel_size: Å.
    box: pixels along an image's edge.
    """

    image_names: list[str]
    rotation: Tensor
    origin: Tensor
    optics: Optics
    half: Tensor
    pixel_size: float = 1.7
    box: int = 12


def sample() -> Sample:
    """Particles of one optics group, in an order of images that is not that of their numbers."""
    generator = torch.Generator().manual_seed(0)

    def draw(low: float, high: float) -> Tensor:
        uniform = torch.rand(COUNT, generator=generator, dtype=torch.float64)
        return low + (high - low) * uniform

    def same(value: float) -> Tensor:
        return torch.full((COUNT,), value, dtype=torch.float64)

    order = torch.randperm(COUNT, generator=generator)
    defocus = draw(9e3, 2e4)
    optics = Optics(
        voltage=same(300.0),
        spherical_aberration=same(2.7),
        amplitude_contrast=same(0.1),
        defocus_u=defocus + 150,
        defocus_v=defocus,
        defocus_angle=draw(0, 1.5),
        phase_shift=draw(0, 0.5),
        b_factor=same(0.0),
        scale=same(1.0),
    )
    return Sample(
        image_names=[f"{int(number) + 1}@images.mrcs" for number in order],
        rotation=rotations.random(COUNT, generator=generator).double(),
        origin=torch.stack([draw(-5, 5), draw(-5, 5)], 1),
        optics=optics,
        half=torch.arange(COUNT) % 2,
    )


class FormatLaws:
    """Subclass with `name = "..."` of a registered format, and a method that writes a file of it.

    has_halves: the format can say which half set a particle is in. keeps_image_names: it names the
    image of each particle.
    """

    kind: ClassVar[str] = "format"
    name: ClassVar[str]
    has_halves: ClassVar[bool] = True
    keeps_image_names: ClassVar[bool] = True

    def write(self, particles: Sample, folder: Path) -> Path:
        """Write a file of the format that lists the particles, as its program would."""
        raise NotImplementedError("say how a file of the format is written")

    def write_unmodelled(self, particles: Sample, folder: Path) -> tuple[Path, str] | None:
        """Such a file that also says something which is not modelled, and the name under which it
        must be listed; None where the format can say nothing of the kind.
        """
        return None

    def format(self) -> InputFormat:
        """The format under test."""
        cls: type[InputFormat] = default().get(self.kind, self.name).load()
        return cls()

    def read(self, folder: Path) -> ParticleTable:
        """What is read of the sample."""
        return self.format().read(self.write(sample(), folder))

    def test_recognises_its_own_files_alone(self, tmp_path: Path) -> None:
        """A file is read by the first format that recognises it, so none may take what is not
        its own.
        """
        cls = type(self.format())
        assert cls.recognises(self.write(sample(), tmp_path))
        assert not cls.recognises(tmp_path / "nothing.here")
        assert not cls.recognises(tmp_path)
        for name, content in FOREIGN_FILES.items():
            path = tmp_path / name
            path.write_bytes(content)
            assert not cls.recognises(path), name

    def test_poses_are_rotations(self, tmp_path: Path) -> None:
        """Proper ones, in float64, from the particle's frame to the image's."""
        rotation = self.read(tmp_path).rotation
        assert rotation.dtype == torch.float64
        identity = torch.eye(3, dtype=torch.float64).expand(COUNT, 3, 3)
        assert difference(rotation @ rotation.mT, identity) < ROUNDING
        assert (rotation.det() > 0).all()
        assert difference(rotation, sample().rotation) < ROUNDING

    def test_lengths_are_in_angstrom(self, tmp_path: Path) -> None:
        """Origins and pixel sizes."""
        table = self.read(tmp_path)
        truth = sample()
        assert difference(table.origin, truth.origin) < ROUNDING
        assert table.pixel_size.tolist() == pytest.approx([truth.pixel_size] * COUNT, rel=ROUNDING)

    def test_optics_are_those_of_the_microscope(self, tmp_path: Path) -> None:
        """Each number in the unit that Optics says; none of it where the CTF is not asked for."""
        path = self.write(sample(), tmp_path)
        optics = self.format().read(path).optics
        assert optics is not None
        for field in fields(Optics):
            found = getattr(optics, field.name)
            truth = getattr(sample().optics, field.name)
            if truth is None:
                assert found is None, field.name
                continue
            assert difference(found, truth) < ROUNDING, field.name
        assert self.format().read(path, ctf=False).optics is None

    def test_rows_are_in_the_order_of_the_file(self, tmp_path: Path) -> None:
        """Row by row, so that coordinates and weights go to the particles that they are of."""
        table = self.read(tmp_path)
        assert len(table) == len(table.columns) == COUNT
        if self.keeps_image_names:
            numbers = [name.partition("@")[0].lstrip("0") for name in table.image_names]
            assert numbers == [name.partition("@")[0] for name in sample().image_names]
        assert table.group.tolist() == [0] * COUNT

    def test_halves_are_0_and_1(self, tmp_path: Path) -> None:
        """Or None where a format has no halves."""
        half = self.read(tmp_path).half
        if not self.has_halves:
            assert half is None
            return
        assert half is not None
        assert half.tolist() == sample().half.tolist()

    def test_reading_twice_gives_the_same(self, tmp_path: Path) -> None:
        """To the bit."""
        path = self.write(sample(), tmp_path)
        one = self.format().read(path)
        two = self.format().read(path)
        assert one.image_names == two.image_names
        assert torch.equal(one.rotation, two.rotation)
        assert torch.equal(one.origin, two.origin)

    def test_what_is_not_modelled_is_listed(self, tmp_path: Path) -> None:
        """Nothing that changes images is left out without a word."""
        assert self.read(tmp_path).ignored == ()
        written = self.write_unmodelled(sample(), tmp_path)
        if written is None:
            pytest.skip(f"{self.name} says nothing that is not modelled")
        path, name = written
        assert name in self.format().read(path).ignored

    def test_written_again_it_is_the_same(self, tmp_path: Path) -> None:
        """What is written of it says the same, and written once more it is the same bytes."""
        table = self.read(tmp_path)
        once = tmp_path / f"once-{table.path.name}"
        twice = tmp_path / f"twice-{table.path.name}"
        table.source.write(once)
        again = self.format().read(once)
        again.source.write(twice)
        assert once.read_bytes() == twice.read_bytes()
        assert torch.equal(again.rotation, table.rotation)
        assert torch.equal(again.origin, table.origin)
        assert again.image_names == table.image_names

    def test_some_rows_are_those_rows(self, tmp_path: Path) -> None:
        """In the order in which they are asked for."""
        table = self.read(tmp_path)
        rows = [4, 0, 5]
        path = tmp_path / f"some-{table.path.name}"
        table.source.take(np.array(rows)).write(path)
        some = self.format().read(path)
        assert torch.equal(some.rotation, table.rotation[rows])
        assert torch.equal(some.origin, table.origin[rows])

    def test_poses_that_are_written_are_read(self, tmp_path: Path) -> None:
        """Those of changed rows; all others stay what they were, to the bit."""
        table = self.read(tmp_path)
        views = Views.of(table.rotation.flip(0), table.origin.flip(0) + 1)
        changed = np.arange(COUNT) < 4
        path = tmp_path / f"poses-{table.path.name}"
        table.source.with_poses(views, changed).write(path)
        new = self.format().read(path)
        assert difference(new.rotation[:4], views.rotation[:4]) < ROUNDING
        assert difference(new.origin[:4], views.origin[:4]) < ROUNDING
        assert torch.equal(new.rotation[4:], table.rotation[4:])
        assert torch.equal(new.origin[4:], table.origin[4:])

    def test_coordinates_leave_all_else_alone(self, tmp_path: Path) -> None:
        """Coordinates of each particle are columns more; poses stay what they were."""
        table = self.read(tmp_path)
        latents = torch.arange(2.0 * COUNT).reshape(COUNT, 2)
        path = tmp_path / f"latents-{table.path.name}"
        table.source.with_latents(latents).write(path)
        new = self.format().read(path)
        assert torch.equal(new.rotation, table.rotation)
        assert torch.equal(new.origin, table.origin)
        assert new.image_names == table.image_names
