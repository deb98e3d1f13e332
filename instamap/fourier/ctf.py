"""Contrast transfer: RELION's CTF and its application to images, padded against wrap-around."""

import math

import torch
from torch import Tensor

from instamap.fourier import aberrations
from instamap.fourier.electrons import ANGSTROMS_PER_MILLIMETRE, wavelength
from instamap.geometry import compiled, grids
from instamap.scene import Optics


def ctf(optics: Optics, box: int, pixel_size: float) -> Tensor:
    """Contrast transfer function "B D D//2+1" on the components of torch.fft.rfft2.

    CTF = [sqrt(1-w²) sin χ + w cos χ] exp(-B s²/4) scale, with χ = π λ df(θ) s² - ½ π Cs λ³ s⁴ +
    phase shift and df(θ) = ½ [u + v + (u - v) cos 2(θ - θ_u)]. Protein is white and CTF(0) = +w, as
    in RELION (cryoDRGN, ASPIRE and the paper's code use the opposite sign). Even Zernike terms are
    subtracted from χ, and all is evaluated at the frequencies of the particle (see `aberrations`).
    """
    phase, envelope = _phase_and_envelope(optics, box, pixel_size)
    weight = _column(optics.amplitude_contrast)
    phase_weight = torch.sqrt(1 - weight**2)
    phase_contrast = phase_weight * torch.sin(phase)
    amplitude_contrast = weight * torch.cos(phase)
    return (phase_contrast + amplitude_contrast) * envelope


def compiled_ctf(optics: Optics, box: int, pixel_size: float) -> Tensor:
    """As `ctf`, by compiled code where there is some for such optics: in float32, on a CPU. Nearer
    to the formula than `ctf` in float32, and a tenth of its time.
    """
    if compiled.usable():
        from instamap.fourier import ctf_numba  # here, so that numba is needed by nobody else

        if ctf_numba.is_usable(optics):
            return ctf_numba.ctf(optics, box, pixel_size)
    return ctf(optics, box, pixel_size)


def quadrature_ctf(optics: Optics, box: int, pixel_size: float) -> Tensor:
    """[sqrt(1-w²) cos χ - w sin χ] exp(-B s²/4) scale, "B D D//2+1": where the CTF is a sine, this
    is its cosine. It is what the difference of the Ewald sphere's two sides is multiplied by.
    """
    phase, envelope = _phase_and_envelope(optics, box, pixel_size)
    weight = _column(optics.amplitude_contrast)
    phase_weight = torch.sqrt(1 - weight**2)
    return (phase_weight * torch.cos(phase) - weight * torch.sin(phase)) * envelope


def _phase_and_envelope(optics: Optics, box: int, pixel_size: float) -> tuple[Tensor, Tensor]:
    """χ less the even Zernike terms, and exp(-B s²/4) scale, "B D D//2+1"."""
    k = aberrations.frequencies(optics, box, pixel_size)
    square = (k**2).sum(-1)
    kx, ky = k.unbind(-1)
    angle = torch.atan2(ky, kx)
    phase = _phase(optics, square, angle)
    even = aberrations.even_phase(optics, k)
    if even is not None:
        phase = phase - even
    b_factor = _column(optics.b_factor)
    damping = torch.exp(-0.25 * b_factor * square)
    if optics.dose is not None:
        damping = damping * dose_weight(_column(optics.dose), square)
    return phase, damping * _column(optics.scale)


def _phase(
    optics: Optics,
    square: Tensor,
    angle: Tensor,
) -> Tensor:
    """χ "B D D//2+1" at squared frequencies s² (1/Å²) and their angles θ."""
    lam = _column(wavelength(optics.voltage))
    u = _column(optics.defocus_u)
    v = _column(optics.defocus_v)
    from_axis = angle - _column(optics.defocus_angle)
    astigmatism = (u - v) * torch.cos(2 * from_axis)
    defocus = 0.5 * (u + v + astigmatism)
    spherical = _column(optics.spherical_aberration) * ANGSTROMS_PER_MILLIMETRE
    aberration = 0.5 * spherical * lam**2 * square
    chi = math.pi * lam * square * (defocus - aberration)
    return chi + _column(optics.phase_shift)


def dose_weight(dose: Tensor, square: Tensor) -> Tensor:
    """The factor that radiation leaves of components at squared frequencies s² (1/Å²) once the
    specimen had a dose (electrons/Å²): exp(-dose / 2 N(s)), N(s) = 0.245 s^-1.665 + 2.81, in the
    shape "*" of both together.

    N is the dose at which proteins have lost half of a component's worth (Grant and Grigorieff,
    eLife 4, e06980 (2015), equation 3), as RELION and WarpTools apply it.
    """
    critical_dose = 0.245 * square ** (-1.665 / 2) + 2.81
    return torch.exp(-0.5 * dose / critical_dose)


def _column(values: Tensor) -> Tensor:
    """Values "B" as "B 1 1", one for each plane."""
    return values[:, None, None]


def apply(
    images: Tensor,
    optics: Optics,
    pixel_size: float,
    *,
    padding: float = 1.0,
) -> Tensor:
    """Images "B D D" after contrast transfer and odd aberrations, computed in a frame `padding`
    times larger and cropped.

    With padding 1 what the CTF carries across an edge comes back at the opposite one; with 2 it
    leaves the frame, as in the microscope.
    """
    frame = _frame(images, padding)
    transfer = ctf(optics, frame, pixel_size)
    return _transferred(images, transfer, optics, pixel_size)


def apply_quadrature(
    images: Tensor,
    optics: Optics,
    pixel_size: float,
    *,
    padding: float = 1.0,
) -> Tensor:
    """As `apply`, images "B D D" of what is transferred in quadrature (see `quadrature_ctf`)."""
    frame = _frame(images, padding)
    transfer = quadrature_ctf(optics, frame, pixel_size)
    return _transferred(images, transfer, optics, pixel_size)


def _transferred(images: Tensor, transfer: Tensor, optics: Optics, pixel_size: float) -> Tensor:
    """Images after a transfer "B F F//2+1" and odd aberrations."""
    frame = transfer.shape[1]
    modulation = aberrations.modulation(optics, frame, pixel_size)
    if modulation is not None:
        transfer = transfer * modulation
    return _filtered(images, transfer, frame)


def modulate(
    images: Tensor,
    optics: Optics,
    pixel_size: float,
    *,
    padding: float = 1.0,
) -> Tensor:
    """Images "B D D" after odd aberrations alone, as `apply` without the CTF."""
    frame = _frame(images, padding)
    modulation = aberrations.modulation(optics, frame, pixel_size)
    return images if modulation is None else _filtered(images, modulation, frame)


def _frame(images: Tensor, padding: float) -> int:
    """Pixels along the edge of the frame of images "B D D"."""
    box = images.shape[-1]
    return box if padding == 1 else 2 * math.ceil(box * padding / 2)


def _filtered(images: Tensor, factor: Tensor, frame: int) -> Tensor:
    """Images whose Fourier components in the frame were multiplied by "B F F//2+1"."""
    padded = grids.pad(images, frame)
    spectrum = torch.fft.rfft2(padded) * factor
    transferred = torch.fft.irfft2(spectrum, s=(frame, frame))
    return grids.crop(transferred, images.shape[-1])
