"""The objective of mini-batches: any composition, at the cost of sampling the field for every image."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.compose import Model
from instamap.fit.objective import EngineOptions, Evidence, Objective
from instamap.options import option


class Images(Objective):
    """Minus the mean log p of a batch of images, drawn without replacement in each epoch. The average is one of the parameters."""

    @dataclass(frozen=True)
    class Options(EngineOptions):
        batch: int = option(16, "images at once", low=1)
        steps: int = option(2000, "steps at most", low=1)
        look: int = option(20, "steps between looks at the held-out likelihood", low=1)
        average: float = option(0.98, "decay per step of the running average that is kept, of the parameters", low=0.0, high=0.9999)

    def __init__(self, options: Options, model: Model, evidence: Evidence):
        super().__init__(options, model, evidence)
        self.average, self.queue = copy.deepcopy(model).eval(), evidence.rows[:0]

    def __call__(self, model: Model, generator: torch.Generator) -> Tensor:
        rows, batch = self.evidence.rows, min(self.options.batch, len(self.evidence.rows))
        if len(self.queue) < batch:
            self.queue = rows[torch.randperm(len(rows), generator=generator)]
        now, self.queue = self.queue[:batch], self.queue[batch:]
        return -model.log_prob(self.evidence.particles.batch(now), generator).mean()

    @torch.no_grad()
    def follow(self, model: Model, decay: float) -> None:
        for slow, now in zip(self.average.parameters(), model.parameters(), strict=True):
            slow.lerp_(now, 1 - decay)

    @torch.no_grad()
    def held_out(self) -> float:
        batches = self.evidence.held_out.split(self.options.batch)
        gains = [self.average.gain(self.evidence.particles.batch(rows)) for rows in batches]
        return float(torch.cat(gains).double().mean())

    def map(self) -> Tensor:
        return self.average.raster()
