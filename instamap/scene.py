"""What the parts are told of the data: the Scene (geometry common to all), Views (pose and optics
of some particles), Batch.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class _Rows:
    """A dataclass of tensors (or of such dataclasses) that share their first axis."""

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with every tensor changed."""

        def changed(value: Any) -> Any:
            if isinstance(value, Tensor):
                return change(value)
            return value._map(change) if isinstance(value, _Rows) else value

        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return type(self)(**{name: changed(value) for name, value in values.items()})

    def __getitem__(self, rows: Any) -> Self:
        """The rows chosen by an index tensor, a mask or a slice."""
        return self._map(lambda tensor: tensor[rows])

    def to(self, *target: torch.dtype | torch.device | str) -> Self:
        """As Tensor.to for dtype and device; integers and booleans keep their dtype."""
        return self._map(lambda tensor: _moved(tensor, target))


def _moved(tensor: Tensor, target: tuple[torch.dtype | torch.device | str, ...]) -> Tensor:
    """A tensor of another dtype (if it is of floating point) and on another device."""
    for one in target:
        if not isinstance(one, torch.dtype):
            tensor = tensor.to(device=one)
        elif tensor.is_floating_point():
            tensor = tensor.to(dtype=one)
    return tensor


@dataclass(frozen=True)
class Optics(_Rows):
    """Contrast-transfer parameters of each view, "B" unless said otherwise; RELION's meaning and
    sign (CTF(0) = +amplitude contrast).

    The last five are None where no view has any: see `fourier.aberrations`, `fourier.ctf`.
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
    beam_tilt: Tensor | None = None  # "B 2" along x and y, mrad
    odd: Tensor | None = None  # "B K": coefficients of odd Zernike terms, radians
    even: Tensor | None = None  # "B K": of even ones
    magnification: Tensor | None = None  # "B 2 2": from the image's Fourier components to true ones
    dose: Tensor | None = None  # electrons/Å² before the image: see `fourier.ctf.dose_weight`


@dataclass(frozen=True)
class ContrastFactors(_Rows):
    """How strong each image's signal is beside that of the others: mean "B" and mean square "B" of
    the factor a of its projection, given what the image says of it.
    """

    mean: Tensor
    square: Tensor


@dataclass(frozen=True)
class Views(_Rows):
    """How particles were seen.

    rotation "B 3 3": particle frame to image frame (RELION's A). origin "B 2": Å; a density at
    particle-frame point x lands at (A x)[:2] - origin. optics: None means no contrast transfer.
    index "B": the particle's row. group "B": its optics group. contrast: factors of the images'
    signal; None means 1 for all.
    """

    rotation: Tensor
    origin: Tensor
    index: Tensor
    group: Tensor
    optics: Optics | None = None
    contrast: ContrastFactors | None = None

    def __len__(self) -> int:
        return len(self.rotation)

    @property
    def magnification(self) -> Tensor | None:
        """M "B 2 2", or None where nothing is distorted: an image has at k what it would have at
        M k, and at u what it would have at M⁻ᵀ u.
        """
        return None if self.optics is None else self.optics.magnification

    @property
    def frames(self) -> Tensor:
        """The rows "B 2 3" by which a Fourier component k of the image lies at k @ frames in the
        particle's: the first two of the rotation, but for a distortion.
        """
        rows = self.rotation[:, :2]
        magnification = self.magnification
        return rows if magnification is None else magnification.mT @ rows

    def by_magnification(self) -> Iterator[tuple[Tensor | None, Tensor]]:
        """Each magnification "2 2" that occurs (None where nothing is distorted), and the rows that
        have it.
        """
        magnification = self.magnification
        if magnification is None:
            yield None, torch.arange(len(self))
            return
        matrices, number = magnification.unique(dim=0, return_inverse=True)
        for place, matrix in enumerate(matrices):
            (rows,) = (number == place).nonzero(as_tuple=True)
            yield matrix, rows

    @property
    def undistorted(self) -> Tensor | None:
        """The matrix "B 3 3" that brings points of the image frame (as rows, x @ matrix) to where
        they would be without distortion; None where there is none.
        """
        magnification = self.magnification
        if magnification is None:
            return None
        whole = torch.eye(3).to(magnification).repeat(len(self), 1, 1)
        whole[:, :2, :2] = torch.linalg.inv(magnification)
        return whole

    def with_contrast(self, predicted: Tensor) -> Tensor:
        """Predicted images "B D D" with the contrast that each image is likely to have."""
        if self.contrast is None:
            return predicted
        return predicted * self.contrast.mean[:, None, None]

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
    parts of the particle that move on their own. focus "D D D": how much particles may differ, 0..1
    (None: as much everywhere); where it is 0, they are as in all conformations. image_box: pixels
    of the images that were read, where the scene is of a cube in their middle; None: as many as
    box.
    """

    box: int
    pixel_size: float
    count: int = 1
    density_scale: float = 1.0
    premultiplied: bool = False
    mask: Tensor | None = None
    noise_variance: Tensor | None = None
    bodies: Tensor | None = None
    focus: Tensor | None = None
    image_box: int | None = None

    @property
    def radius(self) -> float:
        """Å: of the largest sphere that fits the images at every pose; nothing is reconstructed
        outside it.
        """
        edge = self.image_box or self.box
        return (edge // 2 - 0.5) * self.pixel_size

    def to(self, *target: torch.dtype | torch.device | str) -> "Scene":
        """As Tensor.to for dtype and device of its masks and spectra."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        moved: dict[str, Any] = {}
        for name, value in values.items():
            if isinstance(value, Tensor):
                moved[name] = _moved(value, target)
        return dataclasses.replace(self, **moved)
