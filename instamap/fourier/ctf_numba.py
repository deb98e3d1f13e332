"""The contrast transfer function in float32, compiled for CPUs: the fast form of `ctf.ctf` for
optics without dose, magnification and even Zernike terms.

With w = sin α, sqrt(1-w²) sin χ + w cos χ = sin(χ + α); and with θ and θ_u taken apart, s² cos 2(θ
- θ_u) = (x² - y²) cos 2θ_u + 2xy sin 2θ_u. So one sine of a polynomial in x and y is left. It is
taken in double precision, since phases reach hundreds of turns.
"""

import math

import numpy as np
import torch
from torch import Tensor

from instamap.fourier.electrons import ANGSTROMS_PER_MILLIMETRE, wavelength
from instamap.geometry import grids
from instamap.geometry.compiled import jit
from instamap.scene import Optics
from instamap.threads import in_threads, shares

_FLAGS = {"nsz", "arcp", "contract", "afn"}  # numbers that are not finite stay so
# Taylor's series of sin(2π t) / t in t², whose error is below 1e-9 up to a quarter of a turn.
_SINE = tuple(
    (-1) ** k * (2 * math.pi) ** (2 * k + 1) / math.factorial(2 * k + 1) for k in range(7)
)


def is_usable(optics: Optics) -> bool:
    """Whether these optics are of the kind and type that it is for."""
    values = optics.defocus_u
    plain = optics.even is None and optics.magnification is None and optics.dose is None
    return plain and values.dtype == torch.float32 and values.device.type == "cpu"


@jit(fastmath=_FLAGS)
def _fill(
    out: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    phase: np.ndarray,
    along_x: np.ndarray,
    along_y: np.ndarray,
    low: int,
    high: int,
) -> None:
    """Writes images low ≤ b < high of `out` "B D D//2+1".

    x, y: 1/Å of columns and rows. phase "B 5": turns, the factors of x² + y², x² - y², xy, (x² +
    y²)² and 1. along_x, along_y: factors of the envelope of each column and row.
    """
    s1, s3, s5, s7, s9, s11, s13 = _SINE
    for b in range(low, high):
        defocus, even, odd, spherical, shift = phase[b]
        for i in range(y.shape[0]):
            row = y[i]
            factor = along_y[b, i]
            for j in range(x.shape[0]):
                column = x[j]
                xx = column * column
                yy = row * row
                square = xx + yy
                turns = defocus * square + even * (xx - yy) + odd * (column * row)
                turns += spherical * square * square + shift
                turns -= np.floor(turns + 0.5)
                # The sine at t turns is that at ½ - t.
                turns = min(max(turns, -0.5 - turns), 0.5 - turns)
                t = turns * turns
                sine = s11 + t * s13
                sine = s9 + t * sine
                sine = s7 + t * sine
                sine = s5 + t * sine
                sine = s3 + t * sine
                sine = s1 + t * sine
                out[b, i, j] = turns * sine * factor * along_x[b, j]


def ctf(optics: Optics, box: int, pixel_size: float) -> Tensor:
    """As `ctf.ctf`, for optics that are usable. The number of threads changes no bit."""
    k = grids.frequencies(box, pixel_size, dtype=torch.float64)
    x = k[0, :, 0].contiguous()
    y = k[:, 0, 1].contiguous()
    phase = _phase(optics)
    damping = -0.25 * optics.b_factor.double()[:, None]
    along_x = torch.exp(damping * x.square())
    along_y = torch.exp(damping * y.square()) * optics.scale.double()[:, None]
    out = torch.empty(len(phase), len(y), len(x))
    arrays = [tensor.numpy() for tensor in (out, x, y, phase, along_x, along_y)]

    def work(low: int, high: int) -> None:
        _fill(*arrays, low, high)

    in_threads(work, shares(len(phase)))
    return out


def _phase(optics: Optics) -> Tensor:
    """Factors "B 5" (float64, turns) of the phase: see `_fill`."""
    lam = wavelength(optics.voltage.double())
    u = optics.defocus_u.double()
    v = optics.defocus_v.double()
    axis = 2 * optics.defocus_angle.double()
    spherical = optics.spherical_aberration.double() * ANGSTROMS_PER_MILLIMETRE
    from_amplitude = torch.asin(optics.amplitude_contrast.double())
    shift = (optics.phase_shift.double() + from_amplitude) / (2 * math.pi)
    mean = lam * (u + v) / 4
    difference = lam * (u - v) / 4
    return torch.stack(
        [
            mean,
            difference * torch.cos(axis),
            2 * difference * torch.sin(axis),
            -spherical * lam**3 / 4,
            shift,
        ],
        1,
    )
