"""The objective of mini-batches: any composition, at the cost of sampling the field for every
image.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from instamap.data.particles import Particles
from instamap.fit.objective import Averaged, EngineOptions, Evidence
from instamap.geometry import rotations
from instamap.model import Model
from instamap.plugin.options import option
from instamap.scene import Batch

CHUNK = 256  # images at once


class Images(Averaged):
    """Minus the mean log p of a batch of images, drawn without replacement in each epoch. The
    average is one of the parameters.

    Views can be augmented: turned and moved at random, symmetrically about the poses that were
    given.
    """

    @dataclass(frozen=True)
    class Options(EngineOptions):
        batch: int = option(16, "images at once", low=1)
        steps: int = option(2000, "steps at most", low=1)
        look: int = option(20, "steps between looks at the held-out likelihood", low=1)
        turn: float = option(
            0.0,
            "standard deviation of random rotations of each view, about each axis",
            unit="degrees",
            low=0.0,
        )
        move: float = option(
            0.0,
            "standard deviation of random shifts of each view, along each axis",
            unit="Å",
            low=0.0,
        )
        average: float = option(
            0.98,
            "decay per step of the running average that is kept, of the parameters",
            low=0.0,
            high=0.9999,
        )

    def __init__(self, options: Options, model: Model, evidence: Evidence):
        super().__init__(options, model, evidence)
        self.queue = evidence.rows[:0]

    def __call__(self, model: Model, generator: torch.Generator) -> Tensor:
        rows, batch = self.evidence.rows, min(self.options.batch, len(self.evidence.rows))
        if len(self.queue) < batch:
            self.queue = rows[torch.randperm(len(rows), generator=generator)]
        now = self.queue[:batch]
        self.queue = self.queue[batch:]
        model.forward_operator.jitter = self.jitter
        seen = self._augmented(self.evidence.particles.batch(now), generator)
        loss = -model.log_prob(seen, generator).mean()
        z = model.deformation.latent(seen.views, seen.images) if self.prior.bends else None
        return loss + self.prior(model, z, generator)

    def _augmented(self, batch: Batch, generator: torch.Generator) -> Batch:
        if not self.options.turn and not self.options.move:
            return batch
        views = batch.views
        n = len(batch)
        turn = torch.randn(n, 3, generator=generator) * (self.options.turn * torch.pi / 180)
        move = torch.randn(n, 2, generator=generator) * self.options.move
        rotation = rotations.from_rotvec(turn) @ views.rotation
        return replace(batch, views=replace(views, rotation=rotation, origin=views.origin + move))

    @torch.no_grad()
    def held_out(self) -> float:
        batches = self.evidence.held_out.split(self.options.batch)
        gains = [self.average.gain(self.evidence.particles.batch(rows)) for rows in batches]
        return float(torch.cat(gains).double().mean())


@torch.no_grad()
def latents(model: Model, particles: Particles, rows: Tensor) -> Tensor:
    """What the deformation takes for the coordinates "m L" of the particles in the images `rows`
    "m".
    """
    batches = (particles.batch(some) for some in rows.split(CHUNK))
    return torch.cat([model.deformation.latent(batch.views, batch.images) for batch in batches])
