"""The objective of mini-batches: any composition, at the cost of sampling the field for every image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.compose import Model
from instamap.fit.objective import EngineOptions, Objective
from instamap.options import option


class Images(Objective):
    """Minus the mean log p of a batch of images, drawn without replacement in each epoch."""

    @dataclass(frozen=True)
    class Options(EngineOptions):
        batch: int = option(16, "images at once", low=1)
        steps: int = option(2000, "steps at most", low=1)
        look: int = option(20, "steps between looks at the held-out likelihood", low=1)
        average: float = option(0.98, "decay per step of the running average of the parameters, which is what is kept", low=0.0, high=0.9999)

    def __init__(self, options, model, particles, rows, held_out):
        super().__init__(options, model, particles, rows, held_out)
        self.queue = rows[:0]

    def __call__(self, model: Model, generator: torch.Generator) -> Tensor:
        if len(self.queue) < min(self.options.batch, len(self.rows)):
            self.queue = self.rows[torch.randperm(len(self.rows), generator=generator)]
        now, self.queue = self.queue.split([min(self.options.batch, len(self.queue)), max(0, len(self.queue) - self.options.batch)])
        return -model.log_prob(self.particles.batch(now), generator).mean()

    @torch.no_grad()
    def held_out(self, model: Model) -> float:
        gains = [model.gain(self.particles.batch(rows)) for rows in self.held_out_rows.split(self.options.batch)]
        return float(torch.cat(gains).double().mean())
