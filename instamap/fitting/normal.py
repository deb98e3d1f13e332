"""The objective of normal equations: all images at once, at a cost that does not depend on how many
there are.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from instamap.fitting.lattice import Lattice
from instamap.fitting.objective import Objective, ObjectiveOptions, StatisticsData
from instamap.model import Model
from instamap.parts import CurvedOperator, GaussianLikelihood, SharedDensity
from instamap.plugin.options import option


class NormalEquations(Objective):
    """½⟨V, K∗V⟩ - ⟨b, V⟩ per image, with V the field rasterised where the mask allows, at voxel
    centres moved by up to ±½ voxel · jitter.

    The average is one of the rasters, so of the jitter too. Images enter as exact Fourier slices,
    without padding. Jitter suppresses what is finer than itself; how much of that is noise the
    held-out images tell: the fit tries a wider one before it stops.
    """

    needs: ClassVar[Literal["statistics"]] = "statistics"

    @dataclass(frozen=True)
    class Options(ObjectiveOptions):
        patience: int = option(
            2, "evaluations without improvement after which the fit stops", low=1
        )
        average: float = option(
            0.97, "decay per step of the running average that is kept", low=0.0, high=0.9999
        )
        tolerance: float = option(
            0.0003,
            "share of the gain that counts as improvement within the patience",
            low=0.0,
            high=1.0,
        )
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
            "factor by which the jitter grows, once, where evaluations stop improving; 1 stops"
            " there",
            low=1.0,
        )

    @classmethod
    def reason_against(cls, parts: dict[str, type]) -> str | None:
        deformation = parts["deformation"]
        likelihood = parts["likelihood"]
        if not issubclass(deformation, SharedDensity):
            return f"deformation {deformation.__name__} gives every particle its own density"
        if not issubclass(likelihood, GaussianLikelihood):
            return f"likelihood {likelihood.__name__} is not Gaussian"
        forward = parts["forward"]
        if issubclass(forward, CurvedOperator):
            return f"forward operator {forward.__name__} looks at a sphere, not at planes"
        return None

    def __init__(self, options: Options, model: Model, data: StatisticsData) -> None:
        super().__init__(options, model, data)
        self.lattice = Lattice(model, data.fitted.cube)
        self.cell = model.scene.pixel_size * options.jitter
        self.widened = False
        self.fitted = data.fitted.within(self.lattice.block).to(self.device)
        self.held_out_images = data.held_out.within(self.lattice.block).to(self.device)
        self.average = torch.zeros(self.lattice.reached.shape, device=self.device)
        self._now = self.average

    def __call__(self, model: Model, generator: torch.Generator) -> Tensor:
        volume = self.lattice.raster(
            model,
            cell=self.cell * self.jitter,
            points=self.options.oversampling,
            generator=generator,
        )
        self._now = volume.detach()
        loss = self.fitted(volume) / self.data.fitted.weight
        cost = self.regulariser(model, None, generator)
        return loss + cost

    def follow(self, model: Model, decay: float) -> None:
        self.average.lerp_(self._now, 1 - decay)

    def held_out(self) -> float:
        loss = self.held_out_images(self.average)
        return -float(loss) / self.data.held_out.weight

    def retry(self) -> bool:
        if self.widened or self.options.widen == 1:
            return False
        self.widened = True
        self.cell = self.cell * self.options.widen
        return True

    def map(self) -> Tensor:
        return self.lattice.block.whole_map(self.average)

    def average_state(self) -> Tensor:
        return self.average.clone()

    def load_average(self, state: Tensor) -> None:
        self.average = state.to(self.device, copy=True)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "cell": self.cell, "widened": self.widened}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.cell = state["cell"]
        self.widened = state["widened"]

    def to(self, device: torch.device | str) -> Self:
        super().to(device)
        self.lattice.to(device)
        self.fitted = self.fitted.to(device)
        self.held_out_images = self.held_out_images.to(device)
        self.average = self.average.to(device)
        self._now = self._now.to(device)
        return self
