"""The objective of normal equations: all images at once, at a cost that does not depend on how many
there are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.errors import CompositionError
from instamap.fit.lattice import Lattice
from instamap.fit.objective import EngineOptions, Evidence, Objective
from instamap.model import Model
from instamap.plugin.options import option


class Normal(Objective):
    """½⟨V, K∗V⟩ - ⟨b, V⟩ per image, with V the field rasterised where the mask allows, at voxel
    centres moved by up to ±½ voxel · jitter.

    The average is one of the rasters, so of the jitter too. Images enter as exact Fourier slices,
    without padding. Jitter suppresses what is finer than itself; how much of that is noise the
    held-out images tell: the fit tries a wider one before it stops.
    """

    @dataclass(frozen=True)
    class Options(EngineOptions):
        jitter: float = option(
            1.0,
            "scale of the random displacement of voxel centres in each step, 0 for none",
            unit="voxels",
            low=0.0,
        )
        oversampling: int = option(
            1,
            "points along each axis of a voxel at which jitter samples the field in each step",
            low=1,
            high=4,
        )
        widen: float = option(
            1.5,
            "factor by which the jitter grows, once, where looks stop improving; 1 stops there",
            low=1.0,
        )

    def __init__(self, options: Options, model: Model, evidence: Evidence):
        super().__init__(options, model, evidence)
        self.lattice = Lattice(model)
        self.cell = model.scene.pixel_size * options.jitter
        self.widened = False
        low = self.lattice.low
        high = self.lattice.high
        self.data = evidence.statistics.crop(low, high)
        self.judge = evidence.held_out_statistics.crop(low, high)
        self.now, self.average = None, torch.zeros(self.lattice.near.shape)

    def __call__(self, model: Model, generator: torch.Generator) -> Tensor:
        options = {
            "cell": self.cell * self.jitter,
            "points": self.options.oversampling,
            "generator": generator,
        }
        volume = self.lattice.raster(model, **options)
        self.now = volume.detach()
        return self.data.loss(volume) / self.data.weight + self.prior(model, None, generator)

    def follow(self, model: Model, decay: float) -> None:
        self.average.lerp_(self.now, 1 - decay)

    def held_out(self) -> float:
        return -float(self.judge.loss(self.average)) / self.judge.weight

    def retry(self) -> bool:
        if self.widened or self.options.widen == 1:
            return False
        self.widened = True
        self.cell = self.cell * self.options.widen
        return True

    def state(self) -> Tensor:
        return self.average

    def restore(self, state: Tensor) -> None:
        self.average = state

    def map(self) -> Tensor:
        return self.lattice.whole(self.average)


def fits(model: Model) -> str | None:
    """Why the normal equations cannot describe this composition, or None if they can."""
    if model.deformation.per_particle:
        return (
            f"deformation {type(model.deformation).__name__} gives every particle its own density"
        )
    if not model.likelihood.quadratic:
        return f"likelihood {type(model.likelihood).__name__} is not Gaussian"
    return None


def check(model: Model) -> None:
    """Raises CompositionError, with both sides, if the normal equations cannot describe this
    composition.
    """
    reason = fits(model)
    if reason:
        raise CompositionError(
            f"engine 'normal' needs one density for all particles and Gaussian noise, but {reason};"
            " choose --engine images"
        )
