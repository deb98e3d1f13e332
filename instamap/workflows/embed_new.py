"""Coordinates of particles that a motion was not fitted to."""

import torch
from torch import Tensor

from instamap.data import noise
from instamap.data.particles import Particles
from instamap.data.preprocess import Preprocess
from instamap.errors import DataError
from instamap.fourier.ctf import ctf
from instamap.motion import posterior
from instamap.motion.motion_model import Motion
from instamap.statistics.particle_statistics import Coarse

CHUNK = 20000  # images in memory at once
SAME = 1e-3  # relative difference of pixel sizes that are one


def particles(motion: Motion, star: str, datadir: str | None = None) -> Particles:
    """The particles of a STAR file, in the box in which the motion's states place particles. Raises
    DataError where they do not fit it.
    """
    said = motion.settings.get("preprocess", {})
    before = Preprocess(**said)
    found = Particles.open(star, datadir=datadir, preprocess=before)
    scene = motion.scene
    box = motion.halves[0].maps.shape[-1]
    if found.box != scene.box or abs(found.pixel_size - scene.pixel_size) > SAME * scene.pixel_size:
        raise DataError(
            f"'{star}' has images of {found.box} px of {found.pixel_size:.4g} Å, the motion was"
            f" found in {scene.box} px of {scene.pixel_size:.4g} Å; scale them with `instamap"
            " preprocess` first"
        )
    return (
        found
        if box == found.box
        else Particles.open(star, datadir=datadir, preprocess=Preprocess(**{**said, "box": box}))
    )


def together(motion: Motion, some: Particles, column: str | None = None) -> Tensor:
    """For each image "n" the number, from 0, of the particle that it shows: those with one value in
    `column` are of one particle.

    column: None takes the one that the run was made with, if any; without any, each image shows a
    particle of its own. Raises DataError where the file does not have the column.
    """
    column = column or motion.settings.get("together")
    if column is None:
        return torch.arange(some.count)
    if column not in some.table.columns:
        raise DataError(
            f"'{some.path}' has no column {column}, by which the run tells images of one particle;"
            " name another with --together (rlnImageName: each image by itself)"
        )
    return some.groups(column)


@torch.no_grad()
def place(motion: Motion, some: Particles, unit: Tensor | None = None) -> Tensor:
    """Shared coordinates "n L" (float64) of images, the mean over the fits.

    unit "n": the particle that each shows, numbered from 0; those of one particle have the
    coordinates that all of them favour. None: each by itself.
    """
    unit = torch.arange(some.count) if unit is None else unit
    variance = noise.estimate(some, transfer=ctf)
    chunk = ((torch.bincount(unit).cumsum(0) - 1) // CHUNK)[unit]  # whole particles
    latents = torch.zeros(some.count, motion.latents.shape[1], dtype=torch.float64)
    for number in chunk.unique():
        rows = (chunk == number).nonzero()[:, 0]
        images = Coarse.read(some, rows, variance, unit[rows])
        each = [
            half.shared(posterior.posterior(images, half.maps, half.nodes.double())[0].float())
            for half in motion.halves
        ]
        latents[rows] = torch.stack(each).mean(0).double()[images.unit]
    return latents
