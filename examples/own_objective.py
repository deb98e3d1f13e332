"""An objective of one's own: the normal equations, and a penalty of density everywhere.

    python examples/own_objective.py [FOLDER]

Most of a box is empty, so a map may be asked to be zero unless the images say otherwise. How hard,
held-out images tell. It prints, with other numbers:

    weight 0: 14.9 nats per held-out image, resolution 9.53 Å
    weight 10: 14.9 nats per held-out image, resolution 9.09 Å
    weight 50: 12.4 nats per held-out image, resolution 9.08 Å

What can be computed from the model alone may be added like this; docs/writing-a-plugin.md has an
objective from nothing, and the laws that it must obey.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import instamap
from instamap import option
from instamap.fitting.normal import NormalEquations
from instamap.model import Model
from instamap.simulate.particle_set import demo


class Sparse(NormalEquations):
    """Normal equations + weight · mean |ρ| / scale, at random points of the box in each step."""

    @dataclass(frozen=True)
    class Options(NormalEquations.Options):
        weight: float = option(1.0, "weight of the mean density", unit="nats", low=0.0)
        points: int = option(4096, "points in each step", low=1)

    def __call__(self, model: Model, generator: torch.Generator) -> Tensor:
        scene = model.scene
        drawn = torch.rand(1, self.options.points, 3, generator=generator) - 0.5
        x = (drawn * scene.box * scene.pixel_size).to(self.device)
        mean = model.density(x).abs().mean() / scene.density_scale
        return super().__call__(model, generator) + self.options.weight * mean


SPARSE = instamap.Component("objective", "sparse", f"{__name__}:Sparse", "few places with density")


def main(folder: Path) -> None:
    instamap.register(SPARSE)  # in this process; a package announces it for good
    star = demo(folder / "particles", box=40, pixel_size=4.0, snr=0.02)
    for weight in (0.0, 10.0, 50.0):
        run = instamap.reconstruct(star, objective=("sparse", {"weight": weight}), seed=1)
        gain = max(evaluation.held_out for evaluation in run.evaluations["half1"])
        print(f"weight {weight:g}: {gain:.1f} nats per held-out image, {run.verdict}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp()))
