"""Contrast transfer: RELION's CTF and its application to images, padded against wrap-around."""

import math

import torch
from torch import Tensor

from instamap.geometry import grids
from instamap.scene import Optics

# The electron's wavelength in vacuum is h / sqrt(2 m e V (1 + e V / 2 m c²)).
WAVELENGTH_FACTOR = 12.2642598  # h / sqrt(2 m e) in Å √V
RELATIVISTIC_FACTOR = 0.978475598e-6  # e / 2 m c² in 1/V
ANGSTROMS_PER_MILLIMETRE = 1e7


def wavelength(voltage: Tensor) -> Tensor:
    """Relativistic electron wavelength in Å for an acceleration voltage in kV."""
    volts = voltage * 1e3
    relativistic = 1 + RELATIVISTIC_FACTOR * volts
    return WAVELENGTH_FACTOR / torch.sqrt(volts * relativistic)


def ctf(optics: Optics, box: int, pixel_size: float) -> Tensor:
    """Contrast transfer function "B D D//2+1" on the components of torch.fft.rfft2.

    CTF = [sqrt(1-w²) sin χ + w cos χ] exp(-B s²/4) scale, with χ = π λ df(θ) s² - ½ π Cs λ³ s⁴ +
    phase shift and df(θ) = ½ [u + v + (u - v) cos 2(θ - θ_u)]. Protein is white and CTF(0) = +w, as
    in RELION (cryoDRGN, ASPIRE and the paper's code use the opposite sign).
    """
    like = optics.defocus_u
    k = grids.frequencies(
        box,
        pixel_size,
        dtype=like.dtype,
    ).to(like.device)
    square = (k**2).sum(-1)
    kx, ky = k.unbind(-1)
    angle = torch.atan2(ky, kx)
    phase = _phase(optics, square, angle)
    weight = _column(optics.amplitude_contrast)
    b_factor = _column(optics.b_factor)
    damping = torch.exp(-0.25 * b_factor * square)
    envelope = damping * _column(optics.scale)
    phase_weight = torch.sqrt(1 - weight**2)
    phase_contrast = phase_weight * torch.sin(phase)
    amplitude_contrast = weight * torch.cos(phase)
    return (phase_contrast + amplitude_contrast) * envelope


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
    """Images "B D D" after contrast transfer, computed in a frame `padding` times larger and
    cropped.

    With padding 1 what the CTF carries across an edge comes back at the opposite one; with 2 it
    leaves the frame, as in the microscope.
    """
    box = images.shape[-1]
    frame = box
    if padding != 1:
        frame = 2 * math.ceil(box * padding / 2)
    padded = grids.pad(images, frame)
    transfer = ctf(optics, frame, pixel_size)
    spectrum = torch.fft.rfft2(padded) * transfer
    transferred = torch.fft.irfft2(spectrum, s=(frame, frame))
    return grids.crop(transferred, box)
