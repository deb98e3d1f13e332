"""The log-likelihood of each image as a quadratic of its pose, and Gauss-Newton steps on it, all in
closed form.

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
from instamap.poses.correction import corrected, followed
from instamap.poses.pose_prior import Prior
from instamap.scene import Views
from instamap.statistics.particle_statistics import Coarse

POINTS = 1 << 19  # Fourier components whose derivatives are in memory at once


@dataclass(frozen=True)
class Expansion:
    """log p(z') ≈ value + gradient·(z' - z) - ½ (z' - z)·curvature (z' - z) for each of n images,
    in nats beyond an empty map.

    z "n 5", value "n", gradient "n 5", curvature "n 5 5", of which the last is Gauss-Newton's, all
    float64.
    """

    z: Tensor
    value: Tensor
    gradient: Tensor
    curvature: Tensor

    def or_else(self, other: "Expansion", here: Tensor) -> "Expansion":
        """Its rows where `here` "n", those of the other elsewhere."""

        def pick(a, b):
            return torch.where(here.view(-1, *[1] * (a.dim() - 1)), a, b)

        return Expansion(
            *(pick(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        )

    @staticmethod
    def joined(parts: list["Expansion"]) -> "Expansion":
        """Of all images of the parts."""
        return Expansion(
            *(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Expansion))
        )


class Reference:
    """A map "N N N" and what its slices need to be differentiated."""

    def __init__(self, volume: Tensor):
        x = grids.axis(len(volume), 1.0).to(volume)
        self.box = len(volume)
        self.map = Spectrum(volume)
        self.moments = [
            Spectrum(volume * x.view(shape)) for shape in ((1, 1, -1), (1, -1, 1), (-1, 1, 1))
        ]

    def slices(self, frames: Tensor, plane: Tensor) -> tuple[Tensor, Tensor]:
        """S "n P" and ∂S/∂δ "n 3 P" (complex) for frames "n 2 3"."""
        q = plane @ frames  # "n P 3"
        slope = [
            moment.slices(frames, plane) * (-2j * math.pi / self.box) for moment in self.moments
        ]
        turned = [q[..., i - 2] * slope[i - 1] - q[..., i - 1] * slope[i - 2] for i in range(3)]
        return self.map.slices(frames, plane), torch.stack(turned, 1)


class Images:
    """What some images at the given `views` say, up to the Fourier component `limit` (cycles per
    box).
    """

    def __init__(self, seen: Coarse, views: Views, limit: float):
        inside = (seen.plane.norm(dim=1) <= limit).nonzero()[:, 0]
        self.views = views
        self.plane = seen.plane[inside]
        self.data = seen.data[:, inside]
        self.power = seen.power[:, inside]
        self.wave = (
            2 * math.pi / (seen.box * seen.pixel_size) * self.plane
        )  # "P 2": radians per Å of shift

    def expand(self, reference: Reference, z: Tensor) -> Expansion:
        """Around the corrections z "n 5"."""
        frames = corrected(self.views, z).rotation[:, :2].float()
        size = max(1, POINTS // max(1, len(self.plane)))
        parts = [
            self._expand(reference, z[rows], frames[rows], rows)
            for rows in torch.arange(len(z)).split(size)
        ]
        return Expansion.joined(parts)

    def _expand(self, reference: Reference, z: Tensor, frames: Tensor, rows: Tensor) -> Expansion:
        found, turned = reference.slices(frames, self.plane)
        moved = 1j * self.wave.T * found[:, None]  # "n 2 P": by the predicted image's phase
        slopes = torch.view_as_real(torch.cat([turned, moved], 1)).flatten(2)  # "n 5 2P"
        phase = z[:, 3:].float() @ self.wave.T
        data = self.data[rows] * torch.polar(
            torch.ones_like(phase), -phase
        )  # about where the particle now is
        power = self.power[rows]
        rest = 2 * torch.view_as_real(data - power * found).flatten(1)
        twice = (2 * power)[..., None].expand(-1, -1, 2).flatten(1)
        value = ((2 * data - power * found) * found.conj()).real.double().sum(1)
        curvature = (slopes * twice[:, None]) @ slopes.mT
        return Expansion(z, value, (slopes @ rest[..., None])[..., 0].double(), curvature.double())


def refine(images: Images, reference: Reference, z: Tensor, prior: Prior, steps: int) -> Expansion:
    """The expansion where log p + log prior is highest after so many steps from z "n 5"; a step
    that leads down is taken back, and the next one from there is shorter (Levenberg, Marquardt).
    """
    precision = prior.precision
    damping = torch.zeros(len(z), dtype=torch.float64)

    def height(e):
        return e.value - 0.5 * (e.z.square() * precision).sum(1)

    best = images.expand(reference, z)
    for _ in range(steps):
        whole = best.curvature + torch.diag(precision)
        whole = whole + damping[:, None, None] * torch.diag_embed(whole.diagonal(dim1=1, dim2=2))
        step = torch.linalg.solve(whole, (best.gradient - best.z * precision)[..., None])[..., 0]
        trial = images.expand(reference, followed(best.z, step))
        up = height(trial) > height(best)
        damping = torch.where(up, damping / 10, (10 * damping).clamp(min=1.0))
        best = trial.or_else(best, up)
    return best
