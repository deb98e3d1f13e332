"""Normal equations with a penalty of the density's square, on the cube that they were gathered for
and without jitter.
"""

from dataclasses import dataclass

import torch

from instamap import GaussianLikelihood, Objective, ObjectiveOptions, SharedDensity, option


class Ridge(Objective):
    """½⟨V, K∗V⟩ - ⟨b, V⟩ per image + weight · mean V², V at the voxel centres.

    The average is one of the rasters.
    """

    needs = "statistics"

    @dataclass(frozen=True)
    class Options(ObjectiveOptions):
        weight: float = option(1e-4, "weight of the mean square, in units of the scale", low=0.0)

    @classmethod
    def reason_against(cls, parts):
        if not issubclass(parts["deformation"], SharedDensity):
            return f"deformation {parts['deformation'].__name__} gives particles densities"
        if not issubclass(parts["likelihood"], GaussianLikelihood):
            return f"likelihood {parts['likelihood'].__name__} is not Gaussian"
        return None

    def __init__(self, options, model, data):
        super().__init__(options, model, data)
        self.cube = data.fitted.cube
        n = self.cube.edge
        self.fitted = data.fitted.to(self.device)
        self.tested = data.held_out.to(self.device)
        self.average = torch.zeros(n, n, n, device=self.device)
        self._now = self.average

    def __call__(self, model, generator):
        centres = _centres(model, self.cube).to(self.device)
        volume = model.density(centres[None])[0].view(self.average.shape)
        self._now = volume.detach()
        penalty = (volume / model.scene.density_scale).square().mean()
        return self.fitted.loss(volume) / self.fitted.weight + self.options.weight * penalty

    def follow(self, model, decay):
        self.average.lerp_(self._now, 1 - decay)

    def held_out(self):
        return -float(self.tested.loss(self.average)) / self.tested.weight

    def map(self):
        return self.cube.whole_map(self.average)

    def average_state(self):
        return self.average.clone()

    def load_average(self, state):
        self.average = state.to(self.device, copy=True)

    def to(self, device):
        super().to(device)
        self.fitted = self.fitted.to(device)
        self.tested = self.tested.to(device)
        self.average = self.average.to(device)
        self._now = self._now.to(device)
        return self


def _centres(model, cube):
    """The voxel centres "n³ 3" (x, y, z in Å) of a cube, in the order of a map [z, y, x]."""
    axis = (torch.arange(cube.low, cube.high) - cube.box // 2) * model.scene.pixel_size
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.stack([x, y, z], -1).reshape(-1, 3)
