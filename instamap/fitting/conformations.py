"""The objective of conformations: normal equations of particles that are alike, each for the common
density bent into their conformation.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from instamap.fitting.lattice import Lattice
from instamap.fitting.objective import FitData, ModelAverage, ObjectiveOptions
from instamap.geometry import draws
from instamap.model import Model
from instamap.parts import ContinuousDeformation, DiscreteDeformation, GaussianLikelihood
from instamap.plugin.options import option
from instamap.statistics.quadratic import Quadratic
from instamap.statistics.statistics import Statistics

LEAST_WEIGHT = 1e-9  # of particles, by which a sum is divided


@dataclass(frozen=True)
class ConformationData(FitData):
    """The statistics of each of K conformations, from particles that are fitted and from held-out
    ones, and the conformations' coordinates z "K L".
    """

    fitted: list[Statistics]
    held_out: list[Statistics]
    z: Tensor

    @property
    def count(self) -> int:
        return sum(statistics.count for statistics in self.fitted)

    @property
    def held_out_count(self) -> int:
        return sum(statistics.count for statistics in self.held_out)

    @property
    def held_out_weight(self) -> float:
        return sum(statistics.weight for statistics in self.held_out)


class Conformations(ModelAverage):
    """Σ_k ½⟨V_k, K_k∗V_k⟩ - ⟨b_k, V_k⟩ per image, V_k the density ρ(x + u(x; z_k)) and K_k, b_k the
    statistics of the particles at node k.

    Particles count for each node as much as they probably belong to it, so this is the expected
    log-likelihood of EM. A step costs as much as the `batch` nodes that it draws, whatever the
    number of images.
    """

    needs: ClassVar[Literal["conformations"]] = "conformations"
    samples: ClassVar[bool] = True

    @dataclass(frozen=True)
    class Options(ObjectiveOptions):
        steps: int = option(150, "steps at most, of each stage", low=1)
        evaluate_every: int = option(
            10, "steps between evaluations of the held-out likelihood", low=1
        )
        batch: int = option(4, "conformations in each step", low=1)
        jitter: float = option(
            1.0,
            "scale of the random displacement of voxel centres in each step, 0 for none",
            unit="voxels",
            low=0.0,
        )

    @classmethod
    def reason_against(cls, parts: dict[str, type]) -> str | None:
        deformation = parts["deformation"]
        likelihood = parts["likelihood"]
        # Conformations with maps of their own are fitted one by one, with the same options.
        if not issubclass(deformation, ContinuousDeformation | DiscreteDeformation):
            return f"deformation {deformation.__name__} has no conformations"
        if not issubclass(likelihood, GaussianLikelihood):
            return f"likelihood {likelihood.__name__} is not Gaussian"
        return None

    def __init__(self, options: Options, model: Model, data: ConformationData) -> None:
        super().__init__(options, model, data)
        self.lattice = Lattice(model, data.fitted[0].cube)
        self.cell = model.scene.pixel_size * options.jitter
        self.z = data.z.to(self.device)
        self.fitted = self._losses(data.fitted)
        self.held_out_images = self._losses(data.held_out)

    def _losses(self, statistics: list[Statistics]) -> list[Quadratic]:
        return [each.within(self.lattice.block).to(self.device) for each in statistics]

    def __call__(self, model: Model, generator: torch.Generator) -> Tensor:
        order = draws.permutation(len(self.z), generator)
        chosen = order[: self.options.batch]
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        weight = 0.0
        for k in chosen:
            volume = self.lattice.raster(
                model, self.z[k : k + 1], cell=self.cell * self.jitter, generator=generator
            )
            loss = loss + self.fitted[k](volume)
            weight += self.data.fitted[k].weight
        return loss / max(weight, LEAST_WEIGHT) + self.regulariser(model, self.z[chosen], generator)

    @torch.no_grad()
    def held_out(self) -> float:
        gain = 0.0
        for loss, z in zip(self.held_out_images, self.z, strict=True):
            volume = self.lattice.raster(self.average, z[None])
            gain -= float(loss(volume))
        return gain / max(self.data.held_out_weight, LEAST_WEIGHT)

    def to(self, device: torch.device | str) -> Self:
        super().to(device)
        self.lattice.to(device)
        self.z = self.z.to(device)
        self.fitted = [each.to(device) for each in self.fitted]
        self.held_out_images = [each.to(device) for each in self.held_out_images]
        return self
