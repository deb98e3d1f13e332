"""A small network that reads a particle's coordinates off its image."""

import torch
from torch import Tensor, nn

from instamap.scene import Views

EDGE = 32  # pixels to which images are averaged first: coordinates are told by large features, and this keeps the network small


class Encoder(nn.Module):
    """`outputs` numbers per particle from its image and pose; all zero at birth.

    The image "D D" is whitened (mean 0, variance 1), moved so that the particle's centre is at pixel D // 2, and averaged to 32 pixels.
    Three convolutions halve it each; the pose joins as the nine entries of A where they meet.
    """

    def __init__(self, outputs: int):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((1, 8), (8, 16), (16, 32)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.SiLU()]
        self.look = nn.Sequential(nn.AdaptiveAvgPool2d(EDGE), *layers, nn.Flatten())
        self.decide = nn.Sequential(nn.Linear(32 * (EDGE // 8) ** 2 + 9, 64), nn.SiLU(), nn.Linear(64, outputs))
        nn.init.zeros_(self.decide[-1].weight)
        nn.init.zeros_(self.decide[-1].bias)

    def forward(self, images: Tensor, views: Views, pixel_size: float) -> Tensor:
        """Numbers "B outputs" for images "B D D"."""
        seen = self.look(_centred(_whitened(images), views.origin / pixel_size)[:, None])
        return self.decide(torch.cat([seen, views.rotation.flatten(1)], 1))


def _whitened(images: Tensor) -> Tensor:
    images = images - images.mean((1, 2), keepdim=True)
    return images / images.std((1, 2), keepdim=True).clamp(min=torch.finfo(images.dtype).tiny)


def _centred(images: Tensor, origin: Tensor) -> Tensor:
    """Images moved by `origin` "B 2" (x, y in pixels), bilinear: a particle's centre comes from D // 2 - origin to pixel D // 2."""
    box = images.shape[-1]
    pixels = torch.arange(box, dtype=images.dtype, device=images.device)
    at = [(pixels - origin[:, i, None] + 0.5) * (2 / box) - 1 for i in range(2)]  # x and y where each pixel looks
    where = torch.stack([at[0][:, None, :].expand(-1, box, -1), at[1][:, :, None].expand(-1, -1, box)], -1)
    return nn.functional.grid_sample(images[:, None], where, align_corners=False)[:, 0]
