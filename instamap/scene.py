"""What the parts are told of the data: the Scene (geometry common to all), Views (pose and optics
of some particles), Batch.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor


class _Rows:
    """Dataclass of tensors (or of such dataclasses) that share their first axis."""

    def _map(self, fn):
        def each(value):
            if isinstance(value, Tensor):
                return fn(value)
            return value._map(fn) if isinstance(value, _Rows) else value

        return type(self)(**{f.name: each(getattr(self, f.name)) for f in dataclasses.fields(self)})

    def __getitem__(self, rows):
        """The rows chosen by an index tensor, a mask or a slice."""
        return self._map(lambda t: t[rows])

    def to(self, *args):
        """As Tensor.to for dtype and device; integers and booleans keep their dtype."""

        def moved(t):
            return (
                t.to(*args)
                if t.is_floating_point()
                else t.to(*[a for a in args if not isinstance(a, torch.dtype)])
            )

        return self._map(moved)


@dataclass(frozen=True)
class Optics(_Rows):
    """Contrast-transfer parameters of each view, all "B"; RELION's meaning and sign (CTF(0) =
    +amplitude contrast).
    """

    voltage: Tensor  # kV
    spherical_aberration: Tensor  # mm
    amplitude_contrast: Tensor  # 0..1
    defocus_u: Tensor  # Å, positive is underfocus
    defocus_v: Tensor  # Å
    defocus_angle: Tensor  # radians, from x to the axis of defocus_u
    phase_shift: Tensor  # radians
    b_factor: Tensor  # Å², multiplies by exp(-B s²/4)
    scale: Tensor  # factor of the whole CTF


@dataclass(frozen=True)
class Views(_Rows):
    """How particles were seen.

    rotation "B 3 3": particle frame to image frame (RELION's A). origin "B 2": Å; a density at
    particle-frame point x lands at (A x)[:2] - origin. optics: None means no contrast transfer.
    index "B": the particle's row. group "B": its optics group.
    """

    rotation: Tensor
    origin: Tensor
    index: Tensor
    group: Tensor
    optics: Optics | None = None

    def __len__(self) -> int:
        return len(self.rotation)

    @staticmethod
    def of(rotation: Tensor, origin: Tensor | None = None, optics: Optics | None = None) -> "Views":
        """Views of given rotations, unshifted unless said otherwise, numbered from 0 and of one
        optics group.
        """
        n = len(rotation)
        device = rotation.device
        origin = rotation.new_zeros(n, 2) if origin is None else origin
        return Views(
            rotation,
            origin,
            torch.arange(n, device=device),
            torch.zeros(n, dtype=torch.long, device=device),
            optics,
        )


@dataclass(frozen=True)
class Batch(_Rows):
    """Some particles: images "B D D" ([y, x], protein white) and how they were seen."""

    images: Tensor
    views: Views

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Scene:
    """What is common to all particles of a reconstruction.

    box: pixels along an edge. pixel_size: Å. count: particles in the STAR file (rows of
    per-particle tables). density_scale: a field of order one times this is a density in the unit of
    the images per Å. premultiplied: the images were multiplied by their CTF. mask: "D D D" [z, y,
    x] in 0..1, None means the sphere. noise_variance "G D//2+1": the noise's variance per optics
    group and Fourier shell, of an unfiltered image's pixels. bodies "M D D D": masks in 0..1 of
    parts of the particle that move on their own.
    """

    box: int
    pixel_size: float
    count: int = 1
    density_scale: float = 1.0
    premultiplied: bool = False
    mask: Tensor | None = None
    noise_variance: Tensor | None = None
    bodies: Tensor | None = None

    @property
    def radius(self) -> float:
        """Å: of the largest sphere that fits the box at every pose; nothing is reconstructed
        outside it.
        """
        return (self.box // 2 - 0.5) * self.pixel_size
