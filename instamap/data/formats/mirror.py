"""Mirrored images: the pose with which a particle is seen mirrored, as it is on disk."""

from dataclasses import replace

import torch
from torch import Tensor

from instamap.fourier import aberrations
from instamap.scene import Views

# What is seen along z does not change where z changes sign. So a particle that is turned by A is
# seen mirrored in x if it is turned by this times A, which is a rotation again.
_SIGNS = (-1.0, 1.0, -1.0)


def mirrored(views: Views, which: Tensor) -> Views:
    """Views with those that are chosen by `which` "n" (bool) mirrored in x, about pixel D // 2.

    Twice mirrored they are what they were.
    """
    signs = torch.tensor(_SIGNS).to(views.rotation)
    rotation = torch.where(which[:, None, None], signs[:, None] * views.rotation, views.rotation)
    origin = views.origin.clone()
    origin[which, 0] *= -1
    optics = views.optics
    if optics is not None:
        optics = aberrations.mirrored(optics, which)
    return replace(views, rotation=rotation, origin=origin, optics=optics)
