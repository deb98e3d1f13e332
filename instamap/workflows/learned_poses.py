"""What rigid corrections that were fitted to mini-batches have learned, as STAR files: of whole
particles, or of each body.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from instamap.data import pose_star
from instamap.fit.images import latents
from instamap.model import Model
from instamap.poses.correction import from_rigid
from instamap.workflows.map import Data
from instamap.workflows.poses import REFINED

BODIES = "bodies.npy"


def write(data: Data, models: dict[str, Model], folder: Path) -> Tensor:
    """Write the corrections of the fitted `models` of data.evidence to an existing folder; (ω, t)
    "n M 6" of each particle and body.

    Of one body: particles_refined.star. Of several: bodies.npy, "n M 6" in the order of the STAR
    file (float32; a rotation vector in radians and a translation in Å, in the particle's frame,
    about the centre of the body's mask), and for each body particles_body1.star and so on, whose
    poses and origins are those at which that body is seen. Particles have the correction that their
    own half's model gives; held-out ones the mean of all models', or none where corrections come
    from a table, in which those were never seen. Call it only where all fits found a signal.
    """
    particles = data.particles
    bodies = next(iter(models.values())).deformation.bodies
    z = corrections(data, models)
    if bodies is None:
        pose_star.write(particles, from_rigid(particles.views, z[:, 0]), folder / REFINED)
        return z
    np.save(folder / BODIES, z.float().numpy())
    for number, centre in enumerate(bodies.centre, 1):
        pose_star.write(
            particles,
            from_rigid(particles.views, z[:, number - 1], centre),
            folder / f"particles_body{number}.star",
        )
    return z


@torch.no_grad()
def corrections(data: Data, models: dict[str, Model]) -> Tensor:
    """(ω, t) "n M 6" (float64) of all particles."""
    judges = next(iter(data.evidence.values())).held_out
    each = []
    for name, model in models.items():
        rows = data.evidence[name].rows
        each.append((rows, latents(model, data.particles, rows).double()))
    found = torch.zeros(data.particles.count, each[0][1].shape[1], dtype=torch.float64)
    for rows, z in each:
        found[rows] = z
    if all(model.deformation.options.source == "image" for model in models.values()):
        found[judges] = torch.stack(
            [latents(model, data.particles, judges).double() for model in models.values()]
        ).mean(0)
    return found.unflatten(1, (-1, 6))
