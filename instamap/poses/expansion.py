"""The log-likelihood of each image as a quadratic of its pose, in closed form.

A map V has the slice S(k) = F(q), q = Bᵀ(k, 0), and the slice's change under B <- B exp(δ)ᵀ is that
of q <- q + δ × q:

    ∂S/∂δ = q × ∇F(q),    ∇F = -2πi/N F[x V],

with x in voxels and q in cycles per N; three more slices, of x V, y V and z V, are all that it
takes. The shift s is a phase.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.fourier.central_slices import Spectrum
from instamap.geometry import grids
from instamap.poses.batched import product
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
        of_vectors = here[:, None]
        of_matrices = here[:, None, None]
        return Expansion(
            torch.where(of_vectors, self.z, other.z),
            torch.where(here, self.value, other.value),
            torch.where(of_vectors, self.gradient, other.gradient),
            torch.where(of_matrices, self.curvature, other.curvature),
        )

    @staticmethod
    def joined(parts: list["Expansion"]) -> "Expansion":
        """The expansion of all images of the parts."""
        return Expansion(
            torch.cat([part.z for part in parts]),
            torch.cat([part.value for part in parts]),
            torch.cat([part.gradient for part in parts]),
            torch.cat([part.curvature for part in parts]),
        )


class ReferenceMap:
    """A map "N N N" and what its slices need to be differentiated."""

    def __init__(self, volume: Tensor) -> None:
        x = grids.axis(len(volume), 1.0).to(volume)
        self.box = len(volume)
        self.spectrum = Spectrum(volume)
        along_axes = ((1, 1, -1), (1, -1, 1), (-1, 1, 1))
        self.moments = []
        for shape in along_axes:
            position = x.view(shape)
            self.moments.append(Spectrum(volume * position))

    def slices(self, frames: Tensor, plane: Tensor) -> tuple[Tensor, Tensor]:
        """The slices S "n P" and their derivatives ∂S/∂δ "n 3 P" (complex) for frames "n 2 3"."""
        q = plane @ frames  # "n P 3"
        factor = -2j * math.pi / self.box
        slope = [moment.slices(frames, plane) * factor for moment in self.moments]
        turned = []
        for axis in range(3):
            following = axis - 2
            last = axis - 1
            first_term = q[..., following] * slope[last]
            second_term = q[..., last] * slope[following]
            turned.append(first_term - second_term)
        slices = self.spectrum.slices(frames, plane)
        return slices, torch.stack(turned, 1)


class PoseImages:
    """What some images at given views say, up to a Fourier component in cycles per box."""

    def __init__(self, statistics: ParticleStatistics, views: Views, limit: float) -> None:
        radius = statistics.plane.norm(dim=1)
        inside = (radius <= limit).nonzero()[:, 0]
        self.views = views
        self.plane = statistics.plane[inside]
        self.data = statistics.data[:, inside]
        self.power = statistics.power[:, inside]
        edge = statistics.box * statistics.pixel_size
        self.wave = 2 * math.pi / edge * self.plane  # "P 2": radians per Å of shift

    def expand(self, reference: ReferenceMap, z: Tensor) -> Expansion:
        """The expansion around the corrections z "n 5"."""
        frames = corrected(self.views, z).frames.float()
        components = max(1, len(self.plane))
        size = max(1, COMPONENTS_AT_ONCE // components)
        parts = []
        for rows in torch.arange(len(z)).split(size):
            part = self._expand(reference, z[rows], frames[rows], rows)
            parts.append(part)
        return Expansion.joined(parts)

    def _expand(
        self, reference: ReferenceMap, z: Tensor, frames: Tensor, rows: Tensor
    ) -> Expansion:
        slices, turned = reference.slices(frames, self.plane)
        moved = 1j * self.wave.T * slices[:, None]  # "n 2 P": by the predicted image's phase
        slopes = _as_real(torch.cat([turned, moved], 1))  # "n 5 2P"
        shift = z[:, 3:].float()
        phase = shift @ self.wave.T
        there = torch.polar(torch.ones_like(phase), -phase)
        data = self.data[rows] * there  # about where the particle now is
        power = self.power[rows]
        explained = power * slices
        rest = 2 * _as_real(data - explained)
        twice = _for_both_parts(2 * power)
        terms = (2 * data - explained) * slices.conj()
        value = terms.real.double().sum(1)
        gradient = product(slopes, rest)
        curvature = (slopes * twice[:, None]) @ slopes.mT
        return Expansion(z, value, gradient.double(), curvature.double())


def _as_real(components: Tensor) -> Tensor:
    """Complex numbers "... P" as their real and imaginary parts "... 2P"."""
    pairs = torch.view_as_real(components)
    return pairs.flatten(-2)


def _for_both_parts(values: Tensor) -> Tensor:
    """A value "n P" of each complex number, "n 2P" for its real and imaginary parts."""
    pairs = values[..., None].expand(-1, -1, 2)
    return pairs.flatten(1)
