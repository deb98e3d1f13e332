"""One streaming pass over images that gathers the statistics of the normal equations; memory does
not depend on their number.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from instamap.errors import DataError, OptionError
from instamap.fourier import aberrations
from instamap.fourier.gridding import CHANNELS, Grid
from instamap.geometry import compiled, device_kernels
from instamap.geometry.cube import Cube
from instamap.scene import Views
from instamap.statistics.fourier_plane import FourierPlane
from instamap.statistics.statistics import Statistics

# Fourier components at once: enough of them fall into one tile of the grid, and they take 100 MB at
# most.
POINTS = 1 << 20
# Cells of the grid for each component that waits to be spread: so many fall into one tile then that
# the grid, which is larger than any cache, is swept ten times less. They take two fifths of its
# memory, which is less than its transforms take when it is emptied.
CELLS_PER_POINT = 8
# Slices after which the grid is emptied: sums of more than 1e5 float32 numbers of one sign drift by
# over 1e-5.
FLUSH = 16384
ROTATION_TOLERANCE = 1e-3  # of each element of R Rᵀ, which is to be the identity


@dataclass(frozen=True)
class WeightedSlices:
    """Images as they enter the statistics: slices of `data` "B P" (complex) and `power` "B P".

    energy "B": Σ_k |F|² / (D² σ²) of the full plane, times the image's weight.
    """

    data: Tensor
    power: Tensor
    energy: Tensor

    def check(self) -> None:
        """Raises DataError where an image is not finite."""
        finite = (self.energy + self.power.sum(1)).isfinite()
        if finite.all():
            return
        wrong = (~finite).nonzero()
        first = int(wrong[0, 0])
        raise DataError(
            f"image {first} of a batch, its origin, CTF or weight is not finite; leave it out"
        )


@dataclass(frozen=True)
class _Waiting:
    """Slices of one plane that wait to be spread: frames "S V 2 3" of each of their turns, data and
    power "V P".
    """

    plane: FourierPlane
    frames: Tensor
    data: Tensor
    power: Tensor


def weighted_slices(
    plane: FourierPlane,
    images: Tensor,
    views: Views,
    variance: Tensor,
    ctf: Tensor | None,
    weights: Tensor,
    *,
    pixel_size: float,
    premultiplied: bool = False,
    copies: int = 1,
    by_numba: bool = False,
) -> WeightedSlices:
    """The slices of images "B D D" of `views`, in noise of `variance` "B D//2+1".

    weights "B": of the images' log p. copies: how many times each slice is spread, a share each.
    by_numba: by the compiled twin, which is for float32 on a CPU.
    """
    if by_numba and aberrations.is_even(views.optics):
        from instamap.statistics import weighted_slices_numba  # numba is needed by nobody else

        return WeightedSlices(
            *weighted_slices_numba.weighted_slices(
                plane,
                images,
                views,
                variance,
                ctf,
                weights,
                pixel_size=pixel_size,
                premultiplied=premultiplied,
                copies=copies,
            )
        )
    spectrum = plane.particle_components(images, views, pixel_size)
    component_variance = plane.variance(variance)
    precision = weights[:, None] / component_variance
    square = spectrum.abs().double() ** 2
    energy = precision.double() * square * plane.share.double()
    energy = energy.sum(1) * 2
    transfer = plane.transfer(ctf, pixel_size)
    precision = precision * plane.share / copies
    image_transfer = pixel_size if premultiplied else transfer
    data = spectrum * (precision * image_transfer)
    power = precision * transfer**2
    if views.contrast is not None:
        data = data * views.contrast.mean[:, None]
        power = power * views.contrast.square[:, None]
    return WeightedSlices(data, power, energy)


class Accumulator:
    """Adds images to b and K (see `statistics`): each is Fourier transformed, weighted and spread
    as a slice onto a Fourier grid.

    cube: outside which the density is zero; None for the whole box. symmetry "S 3 3": rotations g
    of the density's point group, the identity among them. Image i then counts as the mean over g of
    images at poses A_i g, which for a symmetric map is its exact likelihood. premultiplied: images
    are C y; they enter b without another CTF. start: statistics of other images, to which these are
    added. backend: how slices are spread; "numba" (float32, on CPUs), "triton" (float32, on cards),
    "torch" (any type and device; the same sums) or "auto", the compiled one where there is one.
    """

    def __init__(
        self,
        box: int,
        pixel_size: float,
        *,
        cube: Cube | None = None,
        symmetry: Tensor | None = None,
        premultiplied: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        backend: str = "auto",
        start: Statistics | None = None,
    ) -> None:
        self.box = box
        self.pixel_size = pixel_size
        self.premultiplied = premultiplied
        self.dtype = dtype
        self.device = torch.device(device)
        self.backend = choose_backend(backend, dtype, self.device)
        identity = torch.eye(3)
        rotations = identity[None] if symmetry is None else symmetry
        self.symmetry = rotations.to(self.device, dtype)
        self._plane = FourierPlane(box, dtype).to(self.device)
        self._planes: dict[tuple[float, ...], FourierPlane] = {}
        self._batch = max(1, POINTS // len(self._plane))
        cube = cube or Cube.whole(box)
        self._grid = Grid(cube, dtype, self.device)
        self._waiting: list[_Waiting] = []
        self._flushed = start
        self._empty()

    def _empty(self) -> None:
        """Nothing has been added since the grid was emptied."""
        self._count = 0
        self._slices = 0
        self._weight = 0.0
        self._energy = 0.0

    def add(
        self,
        images: Tensor,
        views: Views,
        *,
        noise_variance: Tensor,
        ctf: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> None:
        """Add images "B D D".

        noise_variance "B D//2+1" (or "D//2+1" for all): of an unfiltered image's pixels, per
        Fourier shell. ctf "B D D//2+1": rfft2 layout; None means one everywhere. weights "B":
        factors of the images' log p; None means 1. Raises DataError for images that are not finite,
        variances that are not positive and matrices that are not rotations.
        """
        count = len(images)
        self._check_shape(images, views)
        variance = noise_variance.expand(count, self.box // 2 + 1)
        if weights is None:
            weights = torch.ones(count)
        for magnification, chosen in views.by_magnification():
            plane = self._plane_for(magnification)
            for start in range(0, len(chosen), self._batch):
                rows = chosen[start : start + self._batch]
                self._add(
                    plane,
                    self._moved(images[rows]),
                    views[rows].to(self.device, self.dtype),
                    self._moved(variance[rows]),
                    None if ctf is None else self._moved(ctf[rows]),
                    self._moved(weights[rows]),
                )

    def finish(self) -> Statistics:
        """The statistics of all images so far; more may be added."""
        self._flush()
        if self._flushed is None:
            return Statistics.empty(
                self._grid.cube, self.pixel_size, dtype=self.dtype, device=self.device
            )
        return self._flushed

    def _plane_for(self, magnification: Tensor | None) -> FourierPlane:
        """The components that are taken of images with this magnification "2 2"."""
        if magnification is None:
            return self._plane
        key = tuple(magnification.flatten().tolist())
        if key not in self._planes:
            plane = FourierPlane(self.box, self.dtype, magnification=magnification.cpu())
            self._planes[key] = plane.to(self.device)
        return self._planes[key]

    def _check_shape(self, images: Tensor, views: Views) -> None:
        count = len(images)
        if images.shape == (count, self.box, self.box) and len(views) == count:
            return
        raise DataError(
            f"images of shape {tuple(images.shape)} with {len(views)} views; needed are"
            f" {self.box} x {self.box} images with a view each"
        )

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype)

    def _add(
        self,
        plane: FourierPlane,
        images: Tensor,
        views: Views,
        variance: Tensor,
        ctf: Tensor | None,
        weights: Tensor,
    ) -> None:
        """Add one batch that is of the accumulator's type and on its device."""
        rotation = views.rotation
        _check_rotations(rotation)
        _check_variances(variance)
        slices = weighted_slices(
            plane,
            images,
            views,
            variance,
            ctf,
            weights,
            pixel_size=self.pixel_size,
            premultiplied=self.premultiplied,
            copies=len(self.symmetry),
            by_numba=self.backend == "numba",
        )
        slices.check()
        frames = [replace(views, rotation=rotation @ turn).frames for turn in self.symmetry]
        self._wait(_Waiting(plane, torch.stack(frames), slices.data, slices.power))
        count = len(images)
        weight = weights.double().sum()
        self._count += count
        self._slices += count * len(self.symmetry)
        self._weight += float(weight)
        self._energy += math.nan if self.premultiplied else float(slices.energy.sum())
        if self._slices >= FLUSH:
            self._flush()

    def _wait(self, slices: _Waiting) -> None:
        """Keeps slices until there are enough of them, or of another plane."""
        if self._waiting and self._waiting[0].plane is not slices.plane:
            self.spread()
        self._waiting.append(slices)
        points = sum(one.power.numel() for one in self._waiting)
        if points * CELLS_PER_POINT * CHANNELS >= self._grid.cells.numel():
            self.spread()

    def spread(self) -> None:
        """Adds the slices that wait to the grid."""
        if not self._waiting:
            return
        points = self._waiting[0].plane.points
        frames = torch.cat([one.frames for one in self._waiting], 1)
        data = torch.cat([one.data for one in self._waiting])
        power = torch.cat([one.power for one in self._waiting])
        self._waiting = []
        for turned in frames:
            spread(self._grid, turned, points, data, power, self.backend)

    def _flush(self) -> None:
        if not self._count:
            return
        self.spread()
        added = Statistics.from_grid(
            self._grid, self.pixel_size, self._count, self._weight, self._energy
        )
        self._flushed = added if self._flushed is None else self._flushed + added
        self._empty()


def spread(
    grid: Grid,
    frames: Tensor,
    points: Tensor,
    data: Tensor,
    power: Tensor,
    backend: str = "auto",
) -> None:
    """Add complex `data` "V P" and real `power` "V P" at the frequencies points @ frames, by the
    backend ("auto", "numba", "triton" or "torch") that is asked for: see `Grid.spread`.
    """
    chosen = choose_backend(backend, grid.dtype, grid.device)
    if chosen == "numba":
        from instamap.fourier import gridding_numba  # here, so that numba is needed by nobody else

        gridding_numba.spread(grid, frames, points, data, power)
    elif chosen == "triton":
        from instamap.fourier import gridding_triton  # here, since Triton need not be there

        gridding_triton.spread(grid, frames, points, data, power)
    else:
        grid.spread(frames, points, data, power)


def spread_weighted(
    grid: Grid,
    frames: Tensor,
    points: Tensor,
    data: Tensor,
    power: Tensor,
    data_weights: Tensor,
    power_weights: Tensor,
) -> None:
    """Add slices as `spread` does to each sum of a grid, with weights of its own: those of the
    data's "V A", and of the power's "V B". At once by numba, or one after the other.
    """
    backend = choose_backend("auto", grid.dtype, grid.device)
    if backend == "numba":
        from instamap.fourier import gridding_numba  # here, so that numba is needed by nobody else

        add = gridding_numba.spread_weighted
        add(grid, frames, points, data, power, data_weights, power_weights)
        return
    for number, weights in enumerate(data_weights.T):
        one = Grid(grid.cube, grid.dtype, grid.device)
        spread(one, frames, points, data * weights[:, None], power, backend)
        grid.cells[..., 2 * number : 2 * number + 2] += one.cells[..., :2]
    for number, weights in enumerate(power_weights.T):
        one = Grid(grid.cube, grid.dtype, grid.device)
        spread(one, frames, points, data, power * weights[:, None], backend)
        grid.cells[..., 2 * grid.data_sums + number] += one.cells[..., 2]


def choose_backend(name: str, dtype: torch.dtype, device: torch.device) -> str:
    """The backend "numba", "triton" or "torch" for numbers of this type on this device.

    Raises OptionError for an unknown name, and for a compiled one where it cannot be used.
    """
    single = dtype == torch.float32
    usable = {
        "numba": single and device.type == "cpu" and compiled.usable(),
        "triton": single and device_kernels.usable(device),
        "torch": True,
    }
    if name == "auto":
        return next(backend for backend, there in usable.items() if there)
    if name not in usable:
        raise OptionError(f"backend '{name}' is unknown; choose auto, numba, triton or torch")
    if not usable[name]:
        place = "a CPU" if name == "numba" else "a card"
        raise OptionError(
            f"backend '{name}' needs the package {name}, float32 and {place}; choose torch"
        )
    return name


def _check_rotations(rotation: Tensor) -> None:
    """Refuse what would write outside the grid."""
    identity = torch.eye(3).to(rotation)
    error = rotation @ rotation.mT - identity
    error = error.abs().amax((1, 2))
    right = error < ROTATION_TOLERANCE
    if right.all():
        return
    wrong = (~right).nonzero()
    first = int(wrong[0, 0])
    raise DataError(f"view {first} of a batch has a matrix that is not a rotation; mend its angles")


def _check_variances(variance: Tensor) -> None:
    """Refuse what would divide by zero."""
    if not (variance > 0).all():
        raise DataError("noise variances must be positive; infinite ones leave a shell out")
