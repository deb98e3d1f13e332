"""The objective of states: normal equations of particles that are alike, each for the common
density bent into their state.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.fit.lattice import Lattice
from instamap.fit.objective import Averaged, EngineOptions, Evidence
from instamap.model import Model
from instamap.plugin.options import option
from instamap.statistics.statistics import Statistics


class States(Averaged):
    """Σ_k ½⟨V_k, K_k∗V_k⟩ - ⟨b_k, V_k⟩ per image, V_k the density ρ(x + u(x; z_k)) and K_k, b_k the
    statistics of the particles at node k.

    Particles count for each node as much as they probably belong to it, so this is the expected
    log-likelihood of EM. A step costs as much as the `batch` nodes that it draws, whatever the
    number of images.
    """

    @dataclass(frozen=True)
    class Options(EngineOptions):
        steps: int = option(150, "steps at most, of each stage", low=1)
        look: int = option(10, "steps between looks at the held-out likelihood", low=1)
        batch: int = option(4, "states in each step", low=1)
        nodes: int = option(
            16,
            "states that stand for the motion, per coordinate (fewer where particles are few)",
            low=3,
        )
        coarse: float = option(
            10.0, "pixel in which coordinates are found and bending begins", unit="Å", low=0.1
        )
        dimensions: int = option(4, "dimensions of the linear subspace at most", low=1, high=8)
        jitter: float = option(
            1.0,
            "scale of the random displacement of voxel centres in each step, 0 for none",
            unit="voxels",
            low=0.0,
        )

    def __init__(
        self,
        options: Options,
        model: Model,
        fitted: list[Statistics],
        judge: list[Statistics],
        z: Tensor,
    ):
        """z "K L": coordinates of the states that have the statistics `fitted` and, of held-out
        particles, `judge`.
        """

        def whole(some):
            return sum(some[1:], start=some[0])

        super().__init__(
            options, model, Evidence(statistics=whole(fitted), held_out_statistics=whole(judge))
        )
        self.lattice = Lattice(model)
        self.z = z
        self.cell = model.scene.pixel_size * options.jitter
        cut = (self.lattice.low, self.lattice.high)
        self.data = [s.crop(*cut) for s in fitted]
        self.judge = [s.crop(*cut) for s in judge]

    def __call__(self, model: Model, generator: torch.Generator) -> Tensor:
        some = torch.randperm(len(self.z), generator=generator)[: self.options.batch].tolist()
        loss = 0.0
        for k in some:
            volume = self.lattice.raster(
                model, self.z[k : k + 1], cell=self.cell * self.jitter, generator=generator
            )
            loss = loss + self.data[k].loss(volume)
        return loss / sum(self.data[k].weight for k in some) + self.prior(
            model, self.z[some], generator
        )

    @torch.no_grad()
    def held_out(self) -> float:
        gain = sum(
            -float(some.loss(self.lattice.raster(self.average, z[None])))
            for some, z in zip(self.judge, self.z, strict=True)
        )
        return gain / max(sum(some.weight for some in self.judge), 1e-9)
