"""Contrast transfer: RELION's CTF and its application to images, with padding against wrap-around."""

import math

import torch
from torch import Tensor

from instamap.geometry import grids
from instamap.scene import Optics


def wavelength(voltage: Tensor) -> Tensor:
    """Relativistic electron wavelength in Å for an acceleration voltage in kV."""
    volts = voltage * 1e3
    return 12.2642598 / torch.sqrt(volts * (1 + 0.978475598e-6 * volts))


def ctf(optics: Optics, box: int, pixel_size: float) -> Tensor:
    """Contrast transfer function "B D D//2+1" on the components of torch.fft.rfft2.

    CTF = [sqrt(1-w²) sin χ + w cos χ] exp(-B s²/4) scale, with χ = π λ df(θ) s² - ½ π Cs λ³ s⁴ +
    phase shift and df(θ) = ½ [u + v + (u - v) cos 2(θ - θ_u)]. Protein is white and CTF(0) = +w, as
    in RELION (cryoDRGN, ASPIRE and the paper's code use the opposite sign).
    """
    k = grids.frequencies(box, pixel_size, dtype=optics.defocus_u.dtype).to(optics.defocus_u.device)

    def column(t):
        return t[:, None, None]

    square = (k**2).sum(-1)
    angle = torch.atan2(k[..., 1], k[..., 0])
    lam = column(wavelength(optics.voltage))
    w = column(optics.amplitude_contrast)
    u = column(optics.defocus_u)
    v = column(optics.defocus_v)
    defocus = 0.5 * (u + v + (u - v) * torch.cos(2 * (angle - column(optics.defocus_angle))))
    spherical = column(optics.spherical_aberration) * 1e7  # mm to Å
    chi = math.pi * lam * square * (defocus - 0.5 * spherical * lam**2 * square) + column(
        optics.phase_shift
    )
    envelope = torch.exp(-0.25 * column(optics.b_factor) * square) * column(optics.scale)
    return (torch.sqrt(1 - w**2) * torch.sin(chi) + w * torch.cos(chi)) * envelope


def apply(images: Tensor, optics: Optics, pixel_size: float, *, padding: float = 1.0) -> Tensor:
    """Images "B D D" after contrast transfer, computed in a frame `padding` times larger and
    cropped.

    With padding 1 what the CTF carries across an edge comes back at the opposite one; with 2 it
    leaves the frame, as in the microscope.
    """
    box = images.shape[-1]
    frame = box if padding == 1 else 2 * math.ceil(box * padding / 2)
    spectrum = torch.fft.rfft2(grids.pad(images, frame)) * ctf(optics, frame, pixel_size)
    return grids.crop(torch.fft.irfft2(spectrum, s=(frame, frame)), box)
