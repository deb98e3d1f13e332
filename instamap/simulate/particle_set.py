"""Particle sets with a known answer: of an atomic model, of a map, or of a made-up molecule."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instamap.errors import OptionError
from instamap.progress import SILENT, Progress
from instamap.simulate import atomic_model, random_poses
from instamap.simulate.beads import Beads, molecule
from instamap.simulate.density_map import DensityMap
from instamap.simulate.exposure import Exposure
from instamap.simulate.sliced_potential import SlicedPotential
from instamap.simulate.write_set import Specimen, VariedSpecimen, Written, write_set

DEFAULT_COUNT = 10_000  # particles
DEFAULT_BOX = 64  # pixels
DEFAULT_PIXEL_SIZE = 3.0  # Å
DEFAULT_DEFOCUS = (8e3, 2e4)  # Å
MIN_BOX = 8  # pixels


@dataclass(frozen=True)
class Plan:
    """How particles are seen.

    count: how many (None: 10,000, or the rows of the STAR file). star: the file whose poses and
    optics they have (None: uniform ones). shift: standard deviation of their origins in Å (None:
    one pixel). defocus: the lowest and highest in Å (None: 8,000 and 20,000). Raises OptionError
    for values that cannot be, and for a shift or defocus besides a STAR file, which has both.
    """

    count: int | None = None
    star: Path | None = None
    shift: float | None = None
    defocus: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.count is not None:
            _check_at_least("count", self.count, 1)
        if self.shift is not None:
            _check_at_least("shift", self.shift, 0)
        low, high = self.defocus or DEFAULT_DEFOCUS
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise OptionError(f"defocus is {low:g} to {high:g} Å; give the lower end first")
        for name, value in (("shift", self.shift), ("defocus", self.defocus)):
            if self.star is not None and value is not None:
                raise OptionError(
                    f"{name} is given, but poses come from '{self.star}', which has its own; leave"
                    f" out --{name}"
                )

    def record(self, pixel_size: float) -> dict[str, Any]:
        """The plan as plain values."""
        if self.star is not None:
            return {"poses": str(self.star)}
        return {
            "poses": "uniform",
            "shift": self._shift(pixel_size),
            "defocus": list(self.defocus or DEFAULT_DEFOCUS),
        }

    def draw(self, pixel_size: float, generator: torch.Generator) -> random_poses.Poses:
        """The poses and optics of the particles.

        Raises DataError or OptionError for a STAR file that cannot be used, or is too short.
        """
        if self.star is not None:
            return random_poses.from_star(self.star, self.count, generator)
        return random_poses.uniform(
            self.count or DEFAULT_COUNT,
            shift=self._shift(pixel_size),
            defocus=self.defocus or DEFAULT_DEFOCUS,
            generator=generator,
        )

    def _shift(self, pixel_size: float) -> float:
        return pixel_size if self.shift is None else self.shift


def of_model(
    path: Path,
    box: int = DEFAULT_BOX,
    pixel_size: float = DEFAULT_PIXEL_SIZE,
    *,
    b_factor: float | None = None,
    solvent: float = 0.0,
    point_mass: float = 0.0,
) -> SlicedPotential:
    """The potential of a PDB or mmCIF file's atoms.

    b_factor: Å², of every atom instead of the file's. Raises DataError, OptionError.
    """
    _check_lattice(box, pixel_size)
    _check_share("solvent", solvent)
    _check_share("point_mass", point_mass)
    if b_factor is not None and not (b_factor >= 0 and math.isfinite(b_factor)):
        raise OptionError(f"b_factor is {b_factor}; it must be at least 0 Å²")
    return SlicedPotential(
        atomic_model.read(path, b_factor),
        box,
        pixel_size,
        solvent=solvent,
        point_mass=point_mass,
    )


def of_map(
    volume: Tensor,
    size: float,
    box: int | None = None,
    pixel_size: float | None = None,
) -> DensityMap:
    """A map "M M M" [z, y, x] of voxels of `size` Å as a specimen.

    It is taken as it is unless box or pixel_size say otherwise. Raises OptionError.
    """
    _check_lattice(
        DEFAULT_BOX if box is None else box,
        DEFAULT_PIXEL_SIZE if pixel_size is None else pixel_size,
    )
    return DensityMap(volume, size, box, pixel_size)


def simulate(
    out: Path,
    specimen: Specimen | VariedSpecimen,
    plan: Plan,
    exposure: Exposure,
    *,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Written:
    """Write particles.star (RELION 3.1), particles.mrcs and truth.mrc to the folder `out`.

    `seed` draws all that is random. Raises DataError, OptionError, or OutputError if one of the
    files is there.
    """
    generator = torch.Generator().manual_seed(seed)
    poses = plan.draw(specimen.pixel_size, generator)
    return write_set(
        out,
        specimen,
        poses,
        exposure,
        generator=generator,
        progress=progress,
    )


def demo(
    out: Path,
    *,
    count: int = 600,
    box: int = 32,
    pixel_size: float = 6.0,
    snr: float = 0.1,
    seed: int = 0,
) -> Path:
    """Write particles.star (RELION 3.1), particles.mrcs and truth.mrc to the folder `out`.

    Returns the path of the STAR file. The molecule is the same whatever the seed; poses (uniform),
    origins (σ of one pixel), defocus (0.8 to 2 µm), halves and noise are drawn with it. snr is the
    variance of the images' pixels after contrast transfer over that of the noise, which is 1;
    truth.mrc is in the same unit per Å. Raises OptionError, or OutputError if one of the files is
    there.
    """
    _check_lattice(box, pixel_size)
    place, mass = molecule()
    specimen = Beads(place * box * pixel_size, mass, box, pixel_size)
    written = simulate(
        Path(out),
        specimen,
        Plan(count),
        Exposure(snr),
        seed=seed,
    )
    return written.star


def _check_lattice(box: int, pixel_size: float) -> None:
    _check_at_least("box", box, MIN_BOX)
    if not (pixel_size > 0 and math.isfinite(pixel_size)):
        raise OptionError(f"pixel_size is {pixel_size}; it must be above 0")


def _check_at_least(name: str, value: float, low: int) -> None:
    if not (value >= low and math.isfinite(value)):
        raise OptionError(f"{name} is {value}; it must be at least {low}")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise OptionError(f"{name} is {value}; it must be from 0 to 1")
