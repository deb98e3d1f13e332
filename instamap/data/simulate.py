"""A made-up particle set with a known answer: closed-form projections of Gaussian beads, contrast transfer, white noise."""

import math
from pathlib import Path

import mrcfile
import pandas as pd
import starfile
import torch
from torch import Tensor

from instamap.data.noise import Transfer
from instamap.errors import OptionError, OutputError
from instamap.geometry import grids, rotations
from instamap.scene import Optics

_BEAD = 0.75  # width (σ) of a bead in pixels
_SOLVENT = 0.6  # share of a bead's mass that the water it displaces takes away: ice has about 0.6 of protein's potential
_BLUR = 0.6  # pixels: the displaced water is smeared out by this σ
_CHUNK = 128  # images in memory at once


def demo(out: Path, *, transfer: Transfer, count: int = 600, box: int = 32, pixel_size: float = 6.0, snr: float = 0.1,
         seed: int = 0) -> Path:  # fmt: skip
    """Write particles.star (RELION 3.1), particles.mrcs and truth.mrc to the folder `out`; the path of the STAR file.

    The molecule is the same whatever the seed; poses (uniform), origins (σ of one pixel), defocus (0.8 to 2 µm), halves and noise are
    drawn with it. snr is the variance of the images' pixels after contrast transfer (`transfer`) over that of the noise, which is 1;
    truth.mrc is in the same unit per Å. Raises OptionError, or OutputError if one of the files is there.
    """
    _check({"count": count, "box": box, "pixel_size": pixel_size, "snr": snr})
    out = Path(out)
    names = [out / name for name in ("particles.star", "particles.mrcs", "truth.mrc")]
    for path in names:
        if path.exists():
            raise OutputError(f"'{path}' is already there; choose another folder or remove it")
    out.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    angles, origin, optics = _views(count, pixel_size, generator)
    beads, mass = molecule()
    beads = beads * box * pixel_size
    poses = zip(rotations.from_euler(*angles.unbind(-1)).split(_CHUNK), origin.split(_CHUNK), strict=True)
    images = torch.cat([project(beads, mass, *some, box, pixel_size) for some in poses])
    images = torch.fft.irfft2(torch.fft.rfft2(images) * transfer(optics, box, pixel_size), s=(box, box))
    unit = math.sqrt(snr) / float(images.std())
    images = images * unit + torch.randn(images.shape, generator=generator, dtype=torch.float64)
    _write(names[1], images, pixel_size, stack=True)
    _write(names[2], density(beads, mass, box, pixel_size) * unit, pixel_size, stack=False)
    half = torch.randperm(count, generator=generator) % 2 + 1
    starfile.write({"optics": _optics_table(box, pixel_size), "particles": _particle_table(angles, origin, optics, half)}, names[0])
    return names[0]


def molecule() -> tuple[Tensor, Tensor]:
    """Centres "P 3" of beads (x, y, z as fractions of the box's edge) and their masses "P", about their centre of mass.

    Two unequal lobes joined by a right-handed helix that bends; no symmetry, so that a mirror image shows.
    """
    double = lambda *values: torch.tensor(values, dtype=torch.float64)
    turn = torch.linspace(0, 1, 36, dtype=torch.float64)
    phase, bend = 4 * math.pi * turn, -0.1 * torch.sin(math.pi * turn)
    helix = torch.stack([0.08 * torch.cos(phase) + bend, 0.08 * torch.sin(phase), 0.3 * turn - 0.15], -1)
    large = _ball(64) * double(0.16, 0.10, 0.08) + double(0.09, 0.01, -0.20)
    small = _ball(40) * double(0.07, 0.14, 0.06) + double(0.05, 0.08, 0.20)
    beads = torch.cat([large, helix, small])
    mass = double(1.0, 1.5, 1.2).repeat_interleave(torch.tensor([64, 36, 40]))
    return beads - (mass[:, None] * beads).sum(0) / mass.sum(), mass


def _ball(count: int) -> Tensor:
    """Points "P 3" that fill the unit ball evenly: a spiral over the sphere, pulled inwards in turn."""
    i = torch.arange(count, dtype=torch.float64)
    height, angle = 1 - (2 * i + 1) / count, i * math.pi * (3 - math.sqrt(5))
    around = torch.sqrt(1 - height**2)
    radius = ((i * 0.6180339887) % 1) ** (1 / 3)
    return radius[:, None] * torch.stack([around * torch.cos(angle), around * torch.sin(angle), height], -1)


def project(beads: Tensor, mass: Tensor, rotation: Tensor, origin: Tensor, box: int, pixel_size: float) -> Tensor:
    """Projections "B D D" [y, x] of beads "P 3" (Å) of `mass` "P": each pixel's mean of the line integral.

    A bead at x lands at (A x)[:2] - origin, as a Gaussian less a wider one for the water that it displaces.
    """
    where = (beads @ rotation.mT)[..., :2] - origin[:, None]
    images = 0.0
    for sigma, factor in _kernels(pixel_size):
        x, y = (_integrals(where[..., axis], sigma, box, pixel_size) for axis in (0, 1))
        images = images + factor * torch.einsum("bpy,bpx->byx", y * mass[:, None], x)
    return images / pixel_size**2


def density(beads: Tensor, mass: Tensor, box: int, pixel_size: float) -> Tensor:
    """The map "D D D" [z, y, x] of the same beads: each voxel's mean density."""
    total = 0.0
    for sigma, factor in _kernels(pixel_size):
        x, y, z = (_integrals(beads[:, axis], sigma, box, pixel_size) for axis in range(3))
        total = total + factor * torch.einsum("pz,py,px->zyx", z * mass[:, None], y, x)
    return total / pixel_size**3


def _kernels(pixel_size: float) -> list[tuple[float, float]]:
    """Width in Å and factor of the Gaussians of one bead."""
    return [(_BEAD * pixel_size, 1.0), (math.hypot(_BEAD, _BLUR) * pixel_size, -_SOLVENT)]


def _integrals(centre: Tensor, sigma: float, box: int, pixel_size: float) -> Tensor:
    """Integrals "*n D" over each pixel of an axis of unit Gaussians at `centre` "*n" (Å)."""
    axis = grids.axis(box, pixel_size, dtype=torch.float64)
    edges = torch.cat([axis - pixel_size / 2, axis[-1:] + pixel_size / 2])
    return 0.5 * torch.erf((edges - centre[..., None]) / (sigma * math.sqrt(2))).diff(dim=-1)


def _views(count: int, pixel_size: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Optics]:
    """Angles "n 3" (radians, uniform over rotations), origins "n 2" (Å) and optics."""
    uniform = lambda low, high: low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)
    angles = torch.stack([uniform(-math.pi, math.pi), torch.acos(uniform(-1, 1)), uniform(-math.pi, math.pi)], -1)
    origin = pixel_size * torch.randn(count, 2, generator=generator, dtype=torch.float64)
    same = lambda value: torch.full((count,), value, dtype=torch.float64)
    defocus = uniform(8e3, 2e4)
    optics = Optics(
        voltage=same(300.0), spherical_aberration=same(2.7), amplitude_contrast=same(0.1), defocus_u=defocus,
        defocus_v=defocus - uniform(0, 500), defocus_angle=uniform(0, math.pi), phase_shift=same(0.0), b_factor=same(0.0), scale=same(1.0),
    )  # fmt: skip
    return angles, origin, optics


def _optics_table(box: int, pixel_size: float) -> pd.DataFrame:
    row = {"rlnOpticsGroupName": "opticsGroup1", "rlnOpticsGroup": 1, "rlnVoltage": 300.0, "rlnSphericalAberration": 2.7,
           "rlnAmplitudeContrast": 0.1, "rlnImagePixelSize": pixel_size, "rlnImageSize": box, "rlnImageDimensionality": 2}  # fmt: skip
    return pd.DataFrame([row])


def _particle_table(angles: Tensor, origin: Tensor, optics: Optics, half: Tensor) -> pd.DataFrame:
    degrees = lambda t: torch.rad2deg(t).numpy()
    columns = {
        "rlnImageName": [f"{i + 1:06d}@particles.mrcs" for i in range(len(angles))],
        "rlnOpticsGroup": 1,
        **{f"rlnAngle{name}": degrees(angles[:, i]) for i, name in enumerate(("Rot", "Tilt", "Psi"))},
        "rlnOriginXAngst": origin[:, 0].numpy(),
        "rlnOriginYAngst": origin[:, 1].numpy(),
        "rlnDefocusU": optics.defocus_u.numpy(),
        "rlnDefocusV": optics.defocus_v.numpy(),
        "rlnDefocusAngle": degrees(optics.defocus_angle),
        "rlnPhaseShift": 0.0,
        "rlnRandomSubset": half.numpy(),
    }
    return pd.DataFrame(columns)


def _write(path: Path, values: Tensor, pixel_size: float, *, stack: bool) -> None:
    with mrcfile.new(path) as mrc:
        mrc.set_data(values.float().numpy())
        if stack:
            mrc.set_image_stack()
        mrc.voxel_size = pixel_size


def _check(values: dict[str, float]) -> None:
    lowest = {"count": 1, "box": 8}
    for name, value in values.items():
        low = lowest.get(name, 0)
        if not (value >= low and value > 0 and math.isfinite(value)):
            raise OptionError(f"{name} is {value}; it must be {f'at least {low}' if low else 'above 0'}")
