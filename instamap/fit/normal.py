"""The objective of normal equations: all images at once, at a cost that does not depend on how many there are."""

from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.compose import Model
from instamap.errors import CompositionError
from instamap.fit.objective import EngineOptions, Evidence, Objective
from instamap.geometry import grids
from instamap.options import option


class Normal(Objective):
    """½⟨V, K∗V⟩ - ⟨b, V⟩ per image, with V the field rasterised where the mask allows, at voxel centres moved by up to ±½ voxel · jitter.

    The average is one of the rasters, so of the jitter too. Images enter as exact Fourier slices, without padding.
    """

    @dataclass(frozen=True)
    class Options(EngineOptions):
        jitter: float = option(1.0, "scale of the random displacement of voxel centres in each step, 0 for none", unit="voxels", low=0.0)

    def __init__(self, options: Options, model: Model, evidence: Evidence):
        super().__init__(options, model, evidence)
        box, pixel_size = model.scene.box, model.scene.pixel_size
        centres = grids.voxel_centres(box, pixel_size)
        with torch.no_grad():
            near = torch.nn.functional.max_pool3d((model.window(centres) > 0).float()[None], 3, 1, 1)[0] > 0
        self.low, self.high = (int(v) for v in (near.nonzero().min(), near.nonzero().max() + 1))
        cut = slice(self.low, self.high)
        self.near = near[cut, cut, cut]
        self.centres, self.cell = centres[cut, cut, cut][self.near], pixel_size * options.jitter
        self.data = evidence.statistics.crop(self.low, self.high)
        self.judge = evidence.held_out_statistics.crop(self.low, self.high)
        self.box, self.now, self.average = box, None, torch.zeros(self.near.shape)

    def __call__(self, model: Model, generator: torch.Generator) -> Tensor:
        shift = (torch.rand(self.centres.shape, generator=generator) - 0.5) * self.cell
        values = model.density((self.centres + shift)[None])[0]
        volume = torch.zeros(self.near.shape).masked_scatter(self.near, values)
        self.now = volume.detach()
        return self.data.loss(volume) / self.data.weight

    def follow(self, model: Model, decay: float) -> None:
        self.average.lerp_(self.now, 1 - decay)

    def held_out(self) -> float:
        return -float(self.judge.loss(self.average)) / self.judge.weight

    def map(self) -> Tensor:
        whole = torch.zeros(self.box, self.box, self.box)
        cut = slice(self.low, self.high)
        whole[cut, cut, cut] = self.average
        return whole


def fits(model: Model) -> str | None:
    """Why the normal equations cannot describe this composition, or None if they can."""
    if model.deformation.per_particle:
        return f"deformation {type(model.deformation).__name__} gives every particle its own density"
    if not model.likelihood.quadratic:
        return f"likelihood {type(model.likelihood).__name__} is not Gaussian"
    return None


def check(model: Model) -> None:
    """Raises CompositionError, with both sides, if the normal equations cannot describe this composition."""
    reason = fits(model)
    if reason:
        raise CompositionError(
            f"engine 'normal' needs one density for all particles and Gaussian noise, but {reason}; choose --engine images"
        )
