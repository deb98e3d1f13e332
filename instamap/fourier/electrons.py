"""The imaging electrons: their wavelength, and units in which their lenses are described."""

import torch
from torch import Tensor

# The electron's wavelength in vacuum is h / sqrt(2 m e V (1 + e V / 2 m c²)).
WAVELENGTH_FACTOR = 12.2642598  # h / sqrt(2 m e) in Å √V
RELATIVISTIC_FACTOR = 0.978475598e-6  # e / 2 m c² in 1/V
ANGSTROMS_PER_MILLIMETRE = 1e7


def wavelength(voltage: Tensor) -> Tensor:
    """Relativistic electron wavelength in Å for acceleration voltages "*" in kV."""
    volts = voltage * 1e3
    relativistic = 1 + RELATIVISTIC_FACTOR * volts
    return WAVELENGTH_FACTOR / torch.sqrt(volts * relativistic)
