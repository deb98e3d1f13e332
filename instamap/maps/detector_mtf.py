"""The modulation transfer function of a detector, and maps from which it is taken off."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from instamap.maps.sharpening import component_radius


@dataclass(frozen=True)
class DetectorMtf:
    """What share of the signal a detector keeps: `value` "K", above 0, at the spatial frequencies
    `frequency` "K", ascending, in units of 1/pixel of the detector.
    """

    frequency: Tensor
    value: Tensor

    def interpolated(self, frequency: Tensor) -> Tensor:
        """The function at frequencies "*" (1/pixel), in float64: linear between the curve's points,
        and as at its ends beyond them.
        """
        asked = frequency.detach().cpu().double().numpy()
        value = np.interp(asked, self.frequency.numpy(), self.value.numpy())
        return torch.from_numpy(value).to(frequency.device)

    def divide(self, volume: Tensor, pixel_size: float, detector_pixel_size: float) -> Tensor:
        """The map "D D D" of `pixel_size` Å, each Fourier component over the function's value
        there, in float64.

        Beyond Nyquist, in the corners, components stay as they are, as relion_postprocess has it.
        detector_pixel_size: Å, that of the micrographs, or of the movies where these were binned.
        """
        box = len(volume)
        radius = component_radius(box)
        frequency = radius / (box * pixel_size)
        kept = self.interpolated(frequency * detector_pixel_size)
        divisor = torch.where(radius <= box / 2, kept, 1.0)
        transform = torch.fft.rfftn(volume.double())
        return torch.fft.irfftn(transform / divisor, s=volume.shape)
