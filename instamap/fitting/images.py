"""The objective of mini-batches: any composition, at the cost of sampling the field for every
image.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from instamap.fitting.objective import ImageData, ImageSource, ModelAverage, ObjectiveOptions
from instamap.geometry import draws, rotations
from instamap.model import Model
from instamap.plugin.options import option
from instamap.scene import Batch

IMAGES_AT_ONCE = 256  # whose coordinates are inferred
DEGREE = torch.pi / 180


class MiniBatches(ModelAverage):
    """Minus the mean log p of a batch of images, drawn without replacement in each epoch. The
    average is one of the parameters.

    Views can be augmented: turned and moved at random, symmetrically about the poses that were
    given.
    """

    needs: ClassVar[Literal["images"]] = "images"
    samples: ClassVar[bool] = True

    @dataclass(frozen=True)
    class Options(ObjectiveOptions):
        batch: int = option(16, "images at once", low=1)
        steps: int = option(2000, "steps at most", low=1)
        evaluate_every: int = option(
            20, "steps between evaluations of the held-out likelihood", low=1
        )
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

    def __init__(self, options: Options, model: Model, data: ImageData) -> None:
        super().__init__(options, model, data)
        self.queue = data.rows[:0]  # of this epoch's rows, those that are still to come

    def __call__(self, model: Model, generator: torch.Generator) -> Tensor:
        model.forward_operator.jitter = self.jitter
        rows = self._next_rows(generator)
        batch = self._batch(rows)
        batch = self.augment(batch, generator)
        loss = -model.log_prob(batch, generator).mean()
        z = None
        if self.regulariser.displaces:
            z = model.deformation.latent(batch.views, batch.images)
        return loss + self.regulariser(model, z, generator)

    def _next_rows(self, generator: torch.Generator) -> Tensor:
        """The next batch's rows of the queue, which begins a new epoch where it is too short."""
        rows = self.data.rows
        count = min(self.options.batch, len(rows))
        if len(self.queue) < count:
            order = draws.permutation(len(rows), generator)
            self.queue = rows[order]
        chosen = self.queue[:count]
        self.queue = self.queue[count:]
        return chosen

    def _batch(self, rows: Tensor) -> Batch:
        return self.data.particles.batch(rows).to(self.device)

    def augment(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The images, each seen from a view that is turned and moved at random."""
        if not self.options.turn and not self.options.move:
            return batch
        views = batch.views
        count = len(batch)
        device = views.rotation.device
        turn = draws.normal((count, 3), generator, device) * (self.options.turn * DEGREE)
        move = draws.normal((count, 2), generator, device) * self.options.move
        rotation = rotations.from_rotvec(turn) @ views.rotation
        turned = replace(views, rotation=rotation, origin=views.origin + move)
        return replace(batch, views=turned)

    @torch.no_grad()
    def held_out(self) -> float:
        gains = []
        for rows in self.data.held_out.split(self.options.batch):
            gains.append(self.average.gain(self._batch(rows)))
        return float(torch.cat(gains).double().mean())

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "queue": self.queue.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.queue = state["queue"].clone()


@torch.no_grad()
def infer_latents(model: Model, particles: ImageSource, rows: Tensor) -> Tensor:
    """The coordinates "m L" that the deformation has for the particles in the images `rows` "m"."""
    device = next(model.parameters()).device
    latents = []
    for chunk in rows.split(IMAGES_AT_ONCE):
        batch = particles.batch(chunk).to(device)
        latents.append(model.deformation.latent(batch.views, batch.images))
    return torch.cat(latents)
