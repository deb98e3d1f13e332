"""One streaming pass over images that gathers the statistics of the normal equations; memory does
not depend on their number.
"""

import math

import torch
from torch import Tensor

from instamap.errors import DataError, OptionError
from instamap.fourier.gridding import Grid
from instamap.geometry import compiled, grids
from instamap.scene import Views
from instamap.statistics.statistics import Statistics

POINTS = (
    1 << 20
    # Fourier components at once: enough of them fall into one tile of the grid, and they take 100 MB at
    # most
)
# slices after which the grid is emptied: sums of more than 1e5 float32 numbers of one sign drift by
# over 1e-5
FLUSH = 16384


class Accumulator:
    """Adds images to b and K (see `statistics`): each is Fourier transformed, weighted and spread
    as a slice onto a Fourier grid.

    symmetry "S 3 3": rotations g of the density's point group, the identity among them. Image i
    then counts as the mean over g of images at poses A_i g, which for a symmetric map is its exact
    likelihood. premultiplied: images are C y; they enter b without another CTF. start: statistics
    of other images, to which these are added. backend: how slices are spread; "numba" (float32, on
    CPUs), "torch" (any type and device; the same sums) or "auto", numba where it can.
    """

    def __init__(
        self,
        box: int,
        pixel_size: float,
        *,
        symmetry: Tensor | None = None,
        premultiplied: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        backend: str = "auto",
        start: Statistics | None = None,
    ):
        self.box = box
        self.pixel_size = pixel_size
        self.premultiplied = premultiplied
        self.dtype = dtype
        self.device = torch.device(device)
        self.symmetry = (torch.eye(3)[None] if symmetry is None else symmetry).to(
            self.device, dtype
        )
        self.backend = _backend(backend, dtype, self.device)
        self._grid = Grid(box, dtype, self.device)
        self._flushed = start or Statistics.empty(box, pixel_size, dtype=dtype, device=device)
        self._count = 0
        self._slices = 0
        self._weight = 0.0
        self._energy = 0.0
        self._components = Components(box, dtype, self.device)
        self._batch = max(1, POINTS // len(self._components.share))

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
        n = len(images)
        if images.shape != (n, self.box, self.box) or len(views) != n:
            found = tuple(images.shape)
            wanted = f"{self.box} x {self.box}"
            raise DataError(
                f"images of shape {found} with {len(views)} views; needed are {wanted} images with"
                " a view each"
            )
        variance = noise_variance.expand(n, self.box // 2 + 1)
        weights = torch.ones(n) if weights is None else weights
        for start in range(0, n, self._batch):

            def move(t, rows=slice(start, start + self._batch)):
                return t[rows].to(self.device, self.dtype)

            transfer = None if ctf is None else move(ctf)
            self._add(
                move(images),
                move(views.rotation),
                move(views.origin),
                move(variance),
                transfer,
                move(weights),
            )

    def finish(self) -> Statistics:
        """The statistics of all images so far; more may be added."""
        self._flush()
        return self._flushed

    def _add(
        self,
        images: Tensor,
        rotation: Tensor,
        origin: Tensor,
        variance: Tensor,
        ctf: Tensor | None,
        weights: Tensor,
    ) -> None:
        _check(rotation, variance)
        part = self._components
        spectrum = part.of(images, origin / self.pixel_size)
        precision = weights[:, None] / (self.box**2 * variance)[:, part.shell]
        energy = (precision.double() * spectrum.abs().double() ** 2 * part.share.double()).sum(
            1
        ) * 2
        transfer = self.pixel_size * (
            part.gather(ctf) if ctf is not None else torch.ones_like(precision)
        )
        precision = precision * part.share / len(self.symmetry)
        data = spectrum * (precision * (self.pixel_size if self.premultiplied else transfer))
        power = precision * transfer**2
        finite = (energy + power.sum(1)).isfinite()
        if not finite.all():
            raise DataError(
                f"image {int((~finite).nonzero()[0, 0])} of a batch, its origin, CTF or weight is"
                " not finite; leave it out"
            )
        for turn in self.symmetry:
            spread(self._grid, (rotation @ turn)[:, :2], part.plane, data, power, self.backend)
        self._count, self._weight = (
            self._count + len(images),
            self._weight + float(weights.double().sum()),
        )
        self._energy += math.nan if self.premultiplied else float(energy.sum())
        self._slices += len(images) * len(self.symmetry)
        if self._slices >= FLUSH:
            self._flush()

    def _flush(self) -> None:
        if not self._count:
            return
        kernel = torch.fft.rfftn(torch.fft.ifftshift(self._grid.power_lattice())).real
        part = Statistics(
            self.box,
            self.pixel_size,
            self._grid.data_lattice(),
            kernel,
            self._count,
            self._weight,
            self._energy,
        )
        self._flushed = self._flushed + part
        self._count = 0
        self._slices = 0
        self._weight = 0.0
        self._energy = 0.0
        self._grid.clear()


def spread(
    grid: Grid, frames: Tensor, plane: Tensor, data: Tensor, power: Tensor, backend: str = "auto"
) -> None:
    """As `Grid.spread`, by the backend ("auto", "numba" or "torch") that is asked for."""
    if _backend(backend, grid.cells.dtype, grid.cells.device) == "numba":
        from instamap.fourier import gridding_numba  # here, so that numba is needed by nobody else

        gridding_numba.spread(grid, frames, plane, data, power)
    else:
        grid.spread(frames, plane, data, power)


class Components:
    """The components 0 < |k| < D/2 of half the Fourier plane of an image and the one at 0, "P" in
    all.

    plane "P 2": (kx, ky), whole numbers. shell "P": rounded |k|. share "P": what to take of each
    when -k is added after: 1, at 0 one half.
    """

    def __init__(self, box: int, dtype: torch.dtype, device: torch.device):
        k = grids.frequencies(box, 1 / box, dtype=torch.float64)
        radius = k.norm(dim=-1)
        half = (k[..., 0] > 0) | (k[..., 1] >= 0)
        self._chosen = ((radius < box / 2 - 1e-6) & half).flatten().nonzero()[:, 0].to(device)
        self.plane = k.flatten(0, 1).to(device, dtype)[self._chosen]
        self.shell = radius.round().long().flatten().to(device)[self._chosen]
        self.share = torch.where(self.shell == 0, 0.5, 1.0).to(self.plane)
        self._box = box
        self._axes = (k[0, :, 0].to(device), k[:, 0, 1].to(device))

    def gather(self, values: Tensor) -> Tensor:
        """The components "B P" of "B D D//2+1" in rfft2 layout."""
        return values.flatten(1)[:, self._chosen]

    def of(self, images: Tensor, origin: Tensor) -> Tensor:
        """Fourier components "B P" about the place where the particle's centre is: -`origin` "B 2"
        (x, y in pixels) from pixel D // 2.
        """
        centre = 2 * math.pi / self._box * (self._box // 2 - origin.double())
        spectrum = torch.fft.rfft2(images)
        for axis, k in enumerate(
            self._axes
        ):  # phases reach hundreds of turns: too many for float32
            phase = centre[:, axis, None] * k
            spectrum *= (
                torch.polar(torch.ones_like(phase), phase).to(spectrum.dtype).unsqueeze(1 + axis)
            )
        return self.gather(spectrum)


def _backend(name: str, dtype: torch.dtype, device: torch.device) -> str:
    able = dtype == torch.float32 and device.type == "cpu" and compiled.usable()
    if name == "auto":
        return "numba" if able else "torch"
    if name not in ("numba", "torch"):
        raise OptionError(f"backend '{name}' is unknown; choose auto, numba or torch")
    if name == "numba" and not able:
        raise OptionError(
            "backend 'numba' needs the package numba, float32 and a CPU; choose torch"
        )
    return name


def _check(rotation: Tensor, variance: Tensor) -> None:
    """Refuse what would write outside the grid or divide by zero."""
    error = (rotation @ rotation.mT - torch.eye(3).to(rotation)).abs().amax((1, 2))
    if not (error < 1e-3).all():
        raise DataError(
            f"view {int((~(error < 1e-3)).nonzero()[0, 0])} of a batch has a matrix that is not a"
            " rotation; mend its angles"
        )
    if not (variance > 0).all():
        raise DataError("noise variances must be positive; infinite ones leave a shell out")
