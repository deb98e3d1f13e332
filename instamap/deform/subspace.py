"""Conformations with maps of their own: for what comes and goes rather than bends."""

from torch import Tensor

from instamap.parts import DiscreteDeformation, SharedDensity
from instamap.plugin.options import CoordinateOptions
from instamap.scene import Views


class Subspace(DiscreteDeformation, SharedDensity):
    """x: coordinates order the particles, and each conformation has a map of its own.

    The map is made of the particles near the conformation (workflow motion). Coordinates are found
    in the linear subspace of maps V₀ + Σ z_j V_j in which particles differ.
    """

    Options = CoordinateOptions

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
