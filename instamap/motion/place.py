"""Coordinates of particles that a motion was not fitted to."""

import torch
from torch import Tensor

from instamap.data import noise
from instamap.data.particles import Particles
from instamap.data.preprocess import Preprocess
from instamap.errors import DataError
from instamap.forward.ctf import ctf
from instamap.motion import infer
from instamap.motion.coarse import Coarse
from instamap.motion.folder import Motion

CHUNK = 20000  # images in memory at once
SAME = 1e-3  # relative difference of pixel sizes that are one


def particles(motion: Motion, star: str, datadir: str | None = None) -> Particles:
    """The particles of a STAR file, in the box in which the motion's states place particles. Raises DataError where they do not fit it."""
    said = motion.settings.get("preprocess", {})
    before = Preprocess(**said)
    found = Particles.open(star, datadir=datadir, preprocess=before)
    scene, box = motion.scene, motion.halves[0].maps.shape[-1]
    if found.box != scene.box or abs(found.pixel_size - scene.pixel_size) > SAME * scene.pixel_size:
        raise DataError(
            f"'{star}' has images of {found.box} px of {found.pixel_size:.4g} Å, the motion was found in {scene.box} px of "
            f"{scene.pixel_size:.4g} Å; scale them with `instamap preprocess` first"
        )
    return found if box == found.box else Particles.open(star, datadir=datadir, preprocess=Preprocess(**{**said, "box": box}))


@torch.no_grad()
def place(motion: Motion, some: Particles) -> Tensor:
    """Shared coordinates "n L" (float64) of particles, the mean over the fits, each image by itself."""
    variance, rows = noise.estimate(some, transfer=ctf), torch.arange(some.count)
    found = []
    for part in rows.split(CHUNK):
        images = Coarse.read(some, part, variance, part)
        each = [half.shared(infer.posterior(images, half.maps, half.nodes.double())[0].float()) for half in motion.halves]
        found.append(torch.stack(each).mean(0).double())
    return torch.cat(found)
