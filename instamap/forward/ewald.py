"""Slices on the Ewald sphere: particles so thick that what is above focus differs from what is
below.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from instamap.forward.central_slice import Slice
from instamap.parts import CurvedOperator, DensityFn
from instamap.plugin.options import option
from instamap.scene import Views

SIGNS = {"positive": 1.0, "negative": -1.0}


class Ewald(Slice, CurvedOperator):
    """Images of a weak phase object beyond the projection theorem, to first order in λ: an image's
    component at k is made of the map's at Aᵀ(k, λk²/2) and Aᵀ(k, -λk²/2).

    -½i e^{iχ} goes with the one and ½i e^{-iχ} with the other; where both are equal that is sin χ,
    the CTF. Views without optics are projected as by slices. Source: DeRosier, Ultramicroscopy 81
    (2000) 83; Russo and Henderson, Ultramicroscopy 187 (2018) 56.
    """

    @dataclass(frozen=True)
    class Options(Slice.Options):
        curvature: Literal["positive", "negative"] = option(
            "positive",
            "which way the sphere is curved, in the frame of the poses: the hand of the map decides"
            " it (negative is --reverse_curvature of relion_reconstruct)",
        )

    def in_phase_and_quadrature(
        self,
        density: DensityFn,
        views: Views,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Images "B D D" that the CTF transfers, and those that its quadrature does."""
        volume = self.raster(density, views.rotation.dtype, generator)
        sign = SIGNS[self.options.curvature]
        return self.projector.curved(volume, views, sign)
