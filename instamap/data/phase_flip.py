"""Phase-flipped images brought back: those whose components were given the sign of their CTF."""

import torch
from torch import Tensor

from instamap.fourier.ctf import ctf
from instamap.scene import Optics


def undo(images: Tensor, optics: Optics, pixel_size: float) -> Tensor:
    """Images "B D D" before their phases were flipped: those components change sign, once more,
    where the CTF is below 0.

    White or coloured noise stays what it was. In the images' dtype.
    """
    box = images.shape[-1]
    transfer = ctf(optics, box, pixel_size)
    sign = torch.where(transfer < 0, -1.0, 1.0)
    components = torch.fft.rfft2(images.double())
    before = torch.fft.irfft2(components * sign, s=(box, box))
    return before.to(images.dtype)
