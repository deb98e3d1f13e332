"""No deformation."""

from torch import Tensor

from instamap.parts import SharedDensity
from instamap.plugin.options import Options
from instamap.scene import Views


class Identity(SharedDensity):
    """x: every particle has the same density."""

    Options = Options

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
