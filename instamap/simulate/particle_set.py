"""Particle sets with a known answer: of an atomic model, of a map, or of a made-up molecule."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from instamap.data.noise import Transfer
from instamap.errors import OptionError
from instamap.simulate import atomic_model, random_poses
from instamap.simulate.beads import Beads, molecule
from instamap.simulate.density_map import DensityMap
from instamap.simulate.exposure import Exposure
from instamap.simulate.potential import Potential
from instamap.simulate.write_set import Source, Watch, Written, write_set

COUNT = 10_000
BOX = 64
PIXEL_SIZE = 3.0
DEFOCUS = (8e3, 2e4)  # particles, pixels, Å, Å
LEAST_BOX = 8


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

    def __post_init__(self):
        if self.count is not None:
            _at_least("count", self.count, 1)
        if self.shift is not None:
            _at_least("shift", self.shift, 0)
        low, high = self.defocus or DEFOCUS
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise OptionError(f"defocus is {low:g} to {high:g} Å; give the lower end first")
        for name in ("shift", "defocus"):
            if self.star is not None and getattr(self, name) is not None:
                raise OptionError(
                    f"{name} is given, but poses come from '{self.star}', which has its own; leave"
                    f" out --{name}"
                )

    def record(self, pixel_size: float) -> dict:
        """As plain values."""
        if self.star is not None:
            return {"poses": str(self.star)}
        shift = pixel_size if self.shift is None else self.shift
        return {"poses": "uniform", "shift": shift, "defocus": list(self.defocus or DEFOCUS)}

    def draw(self, pixel_size: float, generator: torch.Generator) -> random_poses.Poses:
        """Raises DataError or OptionError for a STAR file that cannot be used, or is too short."""
        if self.star is not None:
            return random_poses.from_star(self.star, self.count, generator)
        shift = pixel_size if self.shift is None else self.shift
        return random_poses.uniform(
            self.count or COUNT, shift=shift, defocus=self.defocus or DEFOCUS, generator=generator
        )


def of_model(
    path: Path,
    box: int = BOX,
    pixel_size: float = PIXEL_SIZE,
    *,
    b_factor: float | None = None,
    solvent: float = 0.0,
    point_mass: float = 0.0,
) -> Potential:
    """The potential of a PDB or mmCIF file's atoms. b_factor: Å², of every atom instead of the
    file's. Raises DataError, OptionError.
    """
    _lattice(box, pixel_size)
    for name, value, high in (
        ("solvent", solvent, 1),
        ("point_mass", point_mass, 1),
        ("b_factor", b_factor or 0.0, math.inf),
    ):
        if not (0 <= value <= high and math.isfinite(value)):
            raise OptionError(
                f"{name} is {value}; it must be"
                f" {f'from 0 to {high}' if high == 1 else 'at least 0 Å²'}"
            )
    return Potential(
        atomic_model.read(path, b_factor), box, pixel_size, solvent=solvent, point_mass=point_mass
    )


def of_map(
    volume: Tensor, size: float, box: int | None = None, pixel_size: float | None = None
) -> DensityMap:
    """A map "M M M" [z, y, x] of voxels of `size` Å, which is taken as it is unless box or
    pixel_size say otherwise. Raises OptionError.
    """
    _lattice(BOX if box is None else box, PIXEL_SIZE if pixel_size is None else pixel_size)
    return DensityMap(volume, size, box, pixel_size)


def simulate(
    out: Path,
    source: Source,
    plan: Plan,
    exposure: Exposure,
    *,
    transfer: Transfer,
    seed: int = 0,
    watch: Watch = lambda done, total: None,
) -> Written:
    """Write particles.star (RELION 3.1), particles.mrcs and truth.mrc to the folder `out`; `seed`
    draws all that is random.

    Raises DataError, OptionError, or OutputError if one of the files is there.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = plan.draw(source.pixel_size, generator)
    return write_set(
        out, source, drawn, exposure, transfer=transfer, generator=generator, watch=watch
    )


def demo(
    out: Path,
    *,
    transfer: Transfer,
    count: int = 600,
    box: int = 32,
    pixel_size: float = 6.0,
    snr: float = 0.1,
    seed: int = 0,
) -> Path:
    """Write particles.star (RELION 3.1), particles.mrcs and truth.mrc to the folder `out`; the path
    of the STAR file.

    The molecule is the same whatever the seed; poses (uniform), origins (σ of one pixel), defocus
    (0.8 to 2 µm), halves and noise are drawn with it. snr is the variance of the images' pixels
    after contrast transfer (`transfer`) over that of the noise, which is 1; truth.mrc is in the
    same unit per Å. Raises OptionError, or OutputError if one of the files is there.
    """
    _lattice(box, pixel_size)
    beads, mass = molecule()
    source = Beads(beads * box * pixel_size, mass, box, pixel_size)
    return simulate(
        Path(out), source, Plan(count), Exposure(snr), transfer=transfer, seed=seed
    ).star


def _lattice(box: int, pixel_size: float) -> None:
    _at_least("box", box, LEAST_BOX)
    if not (pixel_size > 0 and math.isfinite(pixel_size)):
        raise OptionError(f"pixel_size is {pixel_size}; it must be above 0")


def _at_least(name: str, value: float, low: int) -> None:
    if not (value >= low and math.isfinite(value)):
        raise OptionError(f"{name} is {value}; it must be at least {low}")
