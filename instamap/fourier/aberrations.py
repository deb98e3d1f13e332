"""Aberrations beyond defocus and spherical aberration: beam tilt, Zernike terms, anisotropic
magnification; in RELION's order, units and signs.

With k a Fourier component of the image and M the magnification, the particle's component seen there
is that at M k, where the CTF and all phases are evaluated too. Even terms E are part of the CTF's
phase, χ - E; odd ones O make a factor e^{iO} of what the image has at k.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from instamap.fourier.electrons import ANGSTROMS_PER_MILLIMETRE, wavelength
from instamap.geometry import grids
from instamap.scene import Optics

MILLIRADIAN = 1e-3
Orders = Callable[[int], list[tuple[int, int]]]  # of the first Zernike terms


def odd_orders(count: int) -> list[tuple[int, int]]:
    """(n, m) of the first odd Zernike terms: n = 1, 3, 5, ..., for each m = -n, 2-n, ..., n."""
    orders: list[tuple[int, int]] = []
    n = 1
    while len(orders) < count:
        orders += [(n, m) for m in range(-n, n + 1, 2)]
        n += 2
    return orders[:count]


def even_orders(count: int) -> list[tuple[int, int]]:
    """(n, m) of the first even Zernike terms: n = 0, 2, 4, ..., for each m = -n, 2-n, ..., n."""
    orders: list[tuple[int, int]] = []
    n = 0
    while len(orders) < count:
        orders += [(n, m) for m in range(-n, n + 1, 2)]
        n += 2
    return orders[:count]


def zernike(n: int, m: int, k: Tensor) -> Tensor:
    """Z "*" at frequencies k "* 2" in 1/Å: R(s) cos mθ for m ≥ 0, R(s) sin |m|θ for m < 0.

    s = |k| is in 1/Å, and may well stay far below 1; θ is the angle from x.
    """
    order = abs(m)
    square = (k**2).sum(-1)
    radial = torch.zeros_like(square)
    for j in range((n - order) // 2 + 1):
        power = (n - order) // 2 - j
        radial = radial + _radial_coefficient(n, order, j) * square**power
    # sᵐ e^{imθ} is a polynomial in kx and ky: no angle is needed, which k = 0 has not
    turned = torch.view_as_complex(k.contiguous()) ** order
    angular = turned.real if m >= 0 else turned.imag
    return radial * angular


def _radial_coefficient(n: int, m: int, j: int) -> float:
    """The coefficient of s^{n-2j} in R."""
    sign = (-1) ** j
    above = math.factorial(n - j)
    below = math.factorial(j)
    below *= math.factorial((n + m) // 2 - j)
    below *= math.factorial((n - m) // 2 - j)
    return sign * above / below


def frequencies(optics: Optics, box: int, pixel_size: float) -> Tensor:
    """The particle's frequencies "D D//2+1 2", or "B D D//2+1 2" if they differ, seen at the
    components of torch.fft.rfft2 of its image: M k in 1/Å.
    """
    like = optics.defocus_u
    k = grids.frequencies(box, pixel_size, dtype=like.dtype)
    k = k.to(like.device)
    if optics.magnification is None:
        return k
    return torch.einsum("bij,yxj->byxi", optics.magnification, k)


def even_phase(optics: Optics, k: Tensor) -> Tensor | None:
    """E "B D D//2+1" at frequencies as `frequencies` gives them; None if there is none."""
    if optics.even is None:
        return None
    return _zernike_sum(optics.even, even_orders(optics.even.shape[1]), k)


def odd_phase(optics: Optics, k: Tensor) -> Tensor | None:
    """O "B D D//2+1" at frequencies as `frequencies` gives them; None if there is none.

    A beam tilt t adds -2π Cs λ² |k|² t·k: coma.
    """
    phase = None
    if optics.odd is not None:
        phase = _zernike_sum(optics.odd, odd_orders(optics.odd.shape[1]), k)
    if optics.beam_tilt is not None:
        coma = _coma(optics, optics.beam_tilt, k)
        phase = coma if phase is None else phase + coma
    return phase


def _zernike_sum(coefficients: Tensor, orders: list[tuple[int, int]], k: Tensor) -> Tensor:
    """Σ c Z "B D D//2+1" for coefficients c "B K"."""
    count = len(coefficients)
    total = k.new_zeros(count, *k.shape[-3:-1])
    for column, (n, m) in zip(coefficients.unbind(1), orders, strict=True):
        if column.any():
            total = total + column[:, None, None] * zernike(n, m, k)
    return total


def _coma(optics: Optics, beam_tilt: Tensor, k: Tensor) -> Tensor:
    """The phase "B D D//2+1" of a beam tilt "B 2"."""
    spherical = optics.spherical_aberration * ANGSTROMS_PER_MILLIMETRE
    strength = -2 * math.pi * spherical * wavelength(optics.voltage) ** 2
    tilt = beam_tilt * MILLIRADIAN * strength[:, None]
    square = (k**2).sum(-1)
    along = (k * tilt[:, None, None, :]).sum(-1)
    return along * square


def is_even(optics: Optics | None) -> bool:
    """Whether there are no odd aberrations, so that what an image has at k is real where the
    particle's is.
    """
    return optics is None or (optics.odd is None and optics.beam_tilt is None)


def modulation(optics: Optics | None, box: int, pixel_size: float) -> Tensor | None:
    """e^{iO} "B D D//2+1" (complex) on the components of torch.fft.rfft2; None if it is 1."""
    if optics is None or is_even(optics):
        return None
    phase = odd_phase(optics, frequencies(optics, box, pixel_size))
    assert phase is not None
    return torch.polar(torch.ones_like(phase), phase)


def without_odd(optics: Optics) -> Optics:
    """Optics without beam tilt and odd Zernike terms."""
    return replace(optics, beam_tilt=None, odd=None)


def without(optics: Optics) -> Optics:
    """Optics with none of these aberrations."""
    return replace(optics, beam_tilt=None, odd=None, even=None, magnification=None)


def mirrored(optics: Optics, which: Tensor) -> Optics:
    """Optics of images of which those chosen by `which` "B" (bool) are mirrored in x."""
    sign = torch.where(which, -1.0, 1.0).to(optics.defocus_u)[:, None]
    along_x = torch.cat([sign, torch.ones_like(sign)], 1)
    return replace(
        optics,
        defocus_angle=optics.defocus_angle * sign[:, 0],
        beam_tilt=None if optics.beam_tilt is None else optics.beam_tilt * along_x,
        odd=_mirrored_terms(optics.odd, odd_orders, sign),
        even=_mirrored_terms(optics.even, even_orders, sign),
        magnification=_mirrored_matrix(optics.magnification, along_x),
    )


def _mirrored_terms(coefficients: Tensor | None, orders: Orders, sign: Tensor) -> Tensor | None:
    """Coefficients "B K" where `sign` "B 1" is -1 of a mirrored plane: θ becomes π - θ."""
    if coefficients is None:
        return None
    changing = []
    for _, m in orders(coefficients.shape[1]):
        is_odd = m % 2 == 1
        is_cosine = m >= 0
        changing.append(is_odd == is_cosine)
    changes = torch.tensor(changing, device=sign.device)
    return coefficients * torch.where(changes, sign, torch.ones_like(sign))


def _mirrored_matrix(matrix: Tensor | None, along_x: Tensor) -> Tensor | None:
    """S M S for matrices M "B 2 2" and the diagonals "B 2" of S."""
    if matrix is None:
        return None
    return along_x[:, :, None] * matrix * along_x[:, None, :]
