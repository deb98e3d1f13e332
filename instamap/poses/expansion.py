"""The log-likelihood of each image as a quadratic of its pose, in closed form.

A map V has the slice S(k) = F(q), q = Bᵀ(k, 0), and the slice's change under B <- B exp(δ)ᵀ is that
of q <- q + δ × q:

    ∂S/∂δ = q × ∇F(q),    ∇F = -2πi/N F[x V],

with x in voxels and q in cycles per N; three more slices, of x V, y V and z V, are all that it
takes. The shift s is a phase.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from instamap.fourier.central_slices import Spectrum
from instamap.geometry import grids
from instamap.poses.correction import corrected
from instamap.scene import Views
from instamap.statistics.particle_statistics import ParticleStatistics

COMPONENTS_AT_ONCE = 1 << 19  # Fourier components whose derivatives are in memory


@dataclass(frozen=True)
class Expansion:
    """log p(z') ≈ value + gradient·(z' - z) - ½ (z' - z)·curvature (z' - z) for each of n images.

    In nats beyond an empty map. z "n 5", value "n", gradient "n 5", curvature "n 5 5", of which the
    last is Gauss-Newton's, all float64.
    """

    z: Tensor
    value: Tensor
    gradient: Tensor
    curvature: Tensor

    def or_else(self, other: "Expansion", here: Tensor) -> "Expansion":
        """The rows of this one where `here` "n" is true, those of the other elsewhere."""
        chosen = {}
        for field in fields(self):
            own = getattr(self, field.name)
            condition = here.view(-1, *[1] * (own.dim() - 1))
            chosen[field.name] = torch.where(condition, own, getattr(other, field.name))
        return Expansion(**chosen)

    @staticmethod
    def joined(parts: list["Expansion"]) -> "Expansion":
        """The expansion of all images of the parts."""
        names = [field.name for field in fields(Expansion)]
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return Expansion(**joined)


class ReferenceMap:
    """A map "N N N" and what its slices need to be differentiated."""

    def __init__(self, volume: Tensor) -> None:
        x = grids.axis(len(volume), 1.0).to(volume)
        self.box = len(volume)
        self.spectrum = Spectrum(volume)
        along_axes = ((1, 1, -1), (1, -1, 1), (-1, 1, 1))
        self.moments = [Spectrum(volume * x.view(shape)) for shape in along_axes]

    def slices(self, frames: Tensor, plane: Tensor) -> tuple[Tensor, Tensor]:
        """The slices S "n P" and their derivatives ∂S/∂δ "n 3 P" (complex) for frames "n 2 3"."""
        q = plane @ frames  # "n P 3"
        factor = -2j * math.pi / self.box
        slope = [moment.slices(frames, plane) * factor for moment in self.moments]
        turned = []
        for axis in range(3):
            second = q[..., axis - 2] * slope[axis - 1]
            turned.append(second - q[..., axis - 1] * slope[axis - 2])
        return self.spectrum.slices(frames, plane), torch.stack(turned, 1)


class PoseImages:
    """What some images at given views say, up to a Fourier component in cycles per box."""

    def __init__(self, statistics: ParticleStatistics, views: Views, limit: float) -> None:
        inside = (statistics.plane.norm(dim=1) <= limit).nonzero()[:, 0]
        self.views = views
        self.plane = statistics.plane[inside]
        self.data = statistics.data[:, inside]
        self.power = statistics.power[:, inside]
        edge = statistics.box * statistics.pixel_size
        self.wave = 2 * math.pi / edge * self.plane  # "P 2": radians per Å of shift

    def expand(self, reference: ReferenceMap, z: Tensor) -> Expansion:
        """The expansion around the corrections z "n 5"."""
        frames = corrected(self.views, z).frames.float()
        size = max(1, COMPONENTS_AT_ONCE // max(1, len(self.plane)))
        chunks = torch.arange(len(z)).split(size)
        return Expansion.joined(
            [self._expand(reference, z[rows], frames[rows], rows) for rows in chunks]
        )

    def _expand(
        self, reference: ReferenceMap, z: Tensor, frames: Tensor, rows: Tensor
    ) -> Expansion:
        slices, turned = reference.slices(frames, self.plane)
        moved = 1j * self.wave.T * slices[:, None]  # "n 2 P": by the predicted image's phase
        slopes = torch.view_as_real(torch.cat([turned, moved], 1)).flatten(2)  # "n 5 2P"
        phase = z[:, 3:].float() @ self.wave.T
        # about where the particle now is
        data = self.data[rows] * torch.polar(torch.ones_like(phase), -phase)
        power = self.power[rows]
        rest = 2 * torch.view_as_real(data - power * slices).flatten(1)
        twice = (2 * power)[..., None].expand(-1, -1, 2).flatten(1)
        terms = (2 * data - power * slices) * slices.conj()
        value = terms.real.double().sum(1)
        gradient = (slopes @ rest[..., None])[..., 0]
        curvature = (slopes * twice[:, None]) @ slopes.mT
        return Expansion(z, value, gradient.double(), curvature.double())
