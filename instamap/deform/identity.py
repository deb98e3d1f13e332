"""No deformation."""

from torch import Tensor

from instamap.parts import Deformation
from instamap.plugin.options import Options
from instamap.scene import Views


class Identity(Deformation):
    """x: every particle has the same density."""

    Options = Options
    per_particle = False

    def latent(self, views: Views, images: Tensor | None = None) -> Tensor:
        return views.rotation.new_zeros(len(views), 0)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return x
