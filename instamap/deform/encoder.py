"""A small network that reads a particle's coordinates off its image."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from instamap.geometry import grids
from instamap.geometry.sampling import sample_images
from instamap.scene import Views

# Pixels along an edge to which images are averaged first: coordinates are told by large features,
# and this keeps the network small.
AVERAGED_EDGE = 32
CHANNELS = (1, 8, 16, 32)  # of the image, and after each convolution, which halves the edge
REDUCTION = 8  # of the edge by all convolutions
HIDDEN_UNITS = 64


class Encoder(nn.Module):
    """`outputs` numbers per particle from its image and pose; all zero at birth.

    The image "D D" is whitened (mean 0, variance 1), moved so that the particle's centre is at
    pixel D // 2, and averaged to 32 pixels. Three convolutions halve it each; the pose joins where
    they meet: as the nine entries of A, or (pose=False) not psi, by which the image is turned back
    first, but the direction of view alone, the third row of A.
    """

    def __init__(self, outputs: int, *, pose: bool = True) -> None:
        super().__init__()
        self.pose = pose
        layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(AVERAGED_EDGE)]
        for before, after in pairwise(CHANNELS):
            convolution = nn.Conv2d(
                before,
                after,
                kernel_size=3,
                stride=2,
                padding=1,
            )
            layers.append(convolution)
            layers.append(nn.SiLU())
        layers.append(nn.Flatten())
        edge = AVERAGED_EDGE // REDUCTION
        features = CHANNELS[-1] * edge**2
        orientation = 9 if pose else 3
        hidden = nn.Linear(features + orientation, HIDDEN_UNITS)
        last = nn.Linear(HIDDEN_UNITS, outputs)
        self.look = nn.Sequential(*layers)
        self.decide = nn.Sequential(hidden, nn.SiLU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(
        self,
        images: Tensor,
        views: Views,
        pixel_size: float,
    ) -> Tensor:
        """Numbers "B outputs" for images "B D D"."""
        rotation = views.rotation
        if self.pose:
            turn = torch.eye(2).to(rotation).expand(len(rotation), 2, 2)
            orientation = rotation.flatten(1)
        else:
            turn = _in_plane(rotation)
            orientation = rotation[:, 2]
        origin = views.origin / pixel_size
        centred = _centred(_whitened(images), origin, turn)
        features = self.look(centred[:, None])
        return self.decide(torch.cat([features, orientation], 1))


def _whitened(images: Tensor) -> Tensor:
    """Images "B D D" with mean 0 and variance 1 each."""
    centred = images - images.mean((1, 2), keepdim=True)
    deviation = centred.std((1, 2), keepdim=True)
    tiny = torch.finfo(centred.dtype).tiny
    return centred / deviation.clamp(min=tiny)


def _in_plane(rotation: Tensor) -> Tensor:
    """The turn "B 2 2" within the image of A = Rz(psi) Ry(tilt) Rz(rot): Rz(psi), which for tilt =
    0 is any.
    """
    psi = torch.atan2(rotation[:, 1, 2], -rotation[:, 0, 2])
    c = torch.cos(psi)
    s = torch.sin(psi)
    entries = torch.stack([c, s, -s, c], -1)
    return entries.unflatten(-1, (2, 2))


def _centred(
    images: Tensor,
    origin: Tensor,
    turn: Tensor,
) -> Tensor:
    """I(turn v - origin) of images I, bilinear: a particle's centre comes from D // 2 - origin "B
    2" (x, y in pixels) to pixel D // 2.
    """
    box = images.shape[-1]
    pixels = grids.pixel_centres(
        box,
        1.0,
        dtype=images.dtype,
    )
    turned = pixels.to(images.device) @ turn.mT[:, None]
    return sample_images(images, turned - origin[:, None, None])
