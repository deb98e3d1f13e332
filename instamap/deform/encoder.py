"""A small network that reads a particle's coordinates off its image."""

import torch
from torch import Tensor, nn

from instamap.geometry import grids
from instamap.scene import Views

# pixels to which images are averaged first: coordinates are told by large features, and this keeps
# the network small
EDGE = 32


class Encoder(nn.Module):
    """`outputs` numbers per particle from its image and pose; all zero at birth.

    The image "D D" is whitened (mean 0, variance 1), moved so that the particle's centre is at
    pixel D // 2, and averaged to 32 pixels. Three convolutions halve it each; the pose joins where
    they meet: as the nine entries of A, or (pose=False) not psi, by which the image is turned back
    first, but the direction of view alone, the third row of A.
    """

    def __init__(self, outputs: int, *, pose: bool = True):
        super().__init__()
        self.pose = pose
        layers: list[nn.Module] = []
        for before, after in ((1, 8), (8, 16), (16, 32)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.SiLU()]
        self.look = nn.Sequential(nn.AdaptiveAvgPool2d(EDGE), *layers, nn.Flatten())
        self.decide = nn.Sequential(
            nn.Linear(32 * (EDGE // 8) ** 2 + (9 if pose else 3), 64),
            nn.SiLU(),
            nn.Linear(64, outputs),
        )
        nn.init.zeros_(self.decide[-1].weight)
        nn.init.zeros_(self.decide[-1].bias)

    def forward(self, images: Tensor, views: Views, pixel_size: float) -> Tensor:
        """Numbers "B outputs" for images "B D D"."""
        rotation = views.rotation
        turn = (
            torch.eye(2).to(rotation).expand(len(rotation), 2, 2)
            if self.pose
            else _in_plane(rotation)
        )
        seen = self.look(_centred(_whitened(images), views.origin / pixel_size, turn)[:, None])
        return self.decide(
            torch.cat([seen, rotation.flatten(1) if self.pose else rotation[:, 2]], 1)
        )


def _whitened(images: Tensor) -> Tensor:
    images = images - images.mean((1, 2), keepdim=True)
    return images / images.std((1, 2), keepdim=True).clamp(min=torch.finfo(images.dtype).tiny)


def _in_plane(rotation: Tensor) -> Tensor:
    """The turn "B 2 2" within the image of A = Rz(psi) Ry(tilt) Rz(rot): Rz(psi), which for tilt =
    0 is any.
    """
    psi = torch.atan2(rotation[:, 1, 2], -rotation[:, 0, 2])
    c = torch.cos(psi)
    s = torch.sin(psi)
    return torch.stack([c, s, -s, c], -1).unflatten(-1, (2, 2))


def _centred(images: Tensor, origin: Tensor, turn: Tensor) -> Tensor:
    """I(turn v - origin) of images I, bilinear: a particle's centre comes from D // 2 - origin "B
    2" (x, y in pixels) to pixel D // 2.
    """
    box = images.shape[-1]
    at = (
        grids.pixel_centres(box, 1.0, dtype=images.dtype).to(images.device) @ turn.mT[:, None]
        - origin[:, None, None]
    )
    return nn.functional.grid_sample(
        images[:, None], (at + box // 2 + 0.5) * (2 / box) - 1, align_corners=False
    )[:, 0]
