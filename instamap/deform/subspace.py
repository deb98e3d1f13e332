"""Conformations with maps of their own: for what comes and goes rather than bends."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from instamap.parts import DiscreteDeformation, SharedDensity
from instamap.plugin.options import Options as PartOptions
from instamap.plugin.options import option
from instamap.scene import Views


class Subspace(DiscreteDeformation, SharedDensity):
    """x: coordinates order the particles, and each conformation has a map of its own.

    The map is made of the particles near the conformation (workflow motion). Coordinates are found
    in the linear subspace of maps V₀ + Σ z_j V_j in which particles differ.
    """

    @dataclass(frozen=True)
    class Options(PartOptions):
        latent: Literal["auto", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10] = option(
            "auto",
            "coordinates per particle; auto: what held-out images favour in workflow motion, and 1"
            " elsewhere",
        )
        topology: Literal["auto", "line", "circle"] = option(
            "auto",
            "whether one coordinate has two ends or closes upon itself; auto: what held-out images"
            " favour (a closed one is kept as cosine and sine, so in two columns)",
        )

    def latent(
        self,
        views: Views,
        images: Tensor | None = None,
    ) -> Tensor:
        """No coordinates: "B 0"."""
        return views.rotation.new_zeros(len(views), 0)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """The points themselves, "B P 3"."""
        return x
