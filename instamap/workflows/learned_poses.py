"""What rigid corrections that were fitted to mini-batches have learned: poses of whole particles,
or of each body.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from instamap.data import writers
from instamap.data.particles import Particles
from instamap.fitting.images import infer_latents
from instamap.fitting.objective import ImageData
from instamap.model import Model
from instamap.parts import Deformation, HasBodies, PerParticleTable
from instamap.poses.correction import corrected, from_rigid
from instamap.workflows.particle_values import FittedValues, joined
from instamap.workflows.result import Artefact

REFINED = "particles_refined.star"
BODIES = "bodies.npy"
PATTERNS = (REFINED, BODIES, "particles_body*.star")  # of the names of all files that it may have
NUMBERS_PER_BODY = 6


@dataclass(frozen=True)
class LearnedPoses(Artefact):
    """Corrections (ω, t) "n M 6" (float64) of each particle and body.

    centres "M 3": of the bodies (Å); None where particles move as a whole. Of one body:
    particles_refined.star. Of several: bodies.npy, "n M 6" in the order of the STAR file (float32;
    a rotation vector in radians and a translation in Å, in the particle's frame, about the centre
    of the body's mask), and for each body particles_body1.star and so on, whose poses and origins
    are those at which that body is seen.
    """

    particles: Particles
    corrections: Tensor
    centres: Tensor | None

    def files(self) -> list[str]:
        if self.centres is None:
            return [REFINED]
        return [BODIES, *(_file_of_body(number) for number in range(len(self.centres)))]

    def write(self, folder: Path) -> None:
        if self.centres is None:
            self._write_poses(folder / REFINED, self.corrections[:, 0], None)
            return
        np.save(folder / BODIES, self.corrections.float().numpy())
        for number, centre in enumerate(self.centres):
            file = folder / _file_of_body(number)
            self._write_poses(file, self.corrections[:, number], centre)

    def _write_poses(self, file: Path, rigid: Tensor, centre: Tensor | None) -> None:
        z = from_rigid(self.particles.views, rigid, centre)
        views = corrected(self.particles.views, z.double())
        writers.write_poses(self.particles, views, (z != 0).any(1), file)


def learned_poses(
    particles: Particles, data: dict[str, ImageData], models: dict[str, Model]
) -> LearnedPoses:
    """The corrections that the fitted models of the images in `data` have learned.

    Particles have the correction that their own half's model gives; held-out ones the mean of all
    models', or none where corrections come from a table, in which those were never seen.
    """
    found = corrections(particles.count, data, models)
    deformation = next(iter(models.values())).deformation
    return LearnedPoses(particles, found, _centres(deformation))


def _centres(deformation: Deformation) -> Tensor | None:
    """The centres "M 3" of the bodies that move on their own, if there are any."""
    if not isinstance(deformation, HasBodies):
        return None
    bodies: Any = deformation.bodies
    return None if bodies is None else bodies.centre


@torch.no_grad()
def corrections(count: int, data: dict[str, ImageData], models: dict[str, Model]) -> Tensor:
    """(ω, t) "n M 6" (float64) of all `count` particles."""
    held_out = next(iter(data.values())).held_out
    fitted = []
    of_held_out = []
    for name, one in data.items():
        model = models[name]
        own = infer_latents(model, one.particles, one.rows)
        fitted.append(FittedValues(one.rows, own))
        if not _from_table(model.deformation):
            seen = infer_latents(model, one.particles, one.held_out)
            of_held_out.append(seen.double())
    values = joined(count, fitted, held_out, of_held_out)
    return values.unflatten(1, (-1, NUMBERS_PER_BODY))


def _from_table(deformation: Deformation) -> bool:
    if not isinstance(deformation, PerParticleTable):
        return False
    return deformation.uses_table(deformation.options)


def _file_of_body(number: int) -> str:
    """The name of the file of a body's poses, by its number from 0."""
    return f"particles_body{number + 1}.star"
