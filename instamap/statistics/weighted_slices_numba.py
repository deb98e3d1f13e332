"""Images as they enter the statistics, compiled for CPUs: the fast form of
`accumulator.weighted_slices` in float32, to rounding the same numbers, in one pass over each image.
"""

import numpy as np
import torch
from torch import Tensor

from instamap.geometry.compiled import jit
from instamap.scene import Views
from instamap.statistics.fourier_plane import FourierPlane
from instamap.threads import in_threads, shares

_FLAGS = {"nsz", "arcp", "contract", "reassoc"}  # numbers that are not finite stay so


@jit(fastmath=_FLAGS)
def _weigh(
    spectrum: np.ndarray,
    row: np.ndarray,
    column: np.ndarray,
    shell: np.ndarray,
    along_x: np.ndarray,
    along_y: np.ndarray,
    precision: np.ndarray,
    transfer: np.ndarray,
    factors: np.ndarray,
    data: np.ndarray,
    power: np.ndarray,
    energy: np.ndarray,
    low: int,
    high: int,
) -> None:
    """Writes images low ≤ b < high of `data` "B P 2", `power` "B P" and `energy` "B".

    spectrum "B D D//2+1 2", along_x, along_y: real and imaginary parts. row, column "P": places of
    the components. transfer: "B D D//2+1", or "B 0 0" for one everywhere. factors "B 3": of the
    data where they have the transfer as a factor, and where they have not; of the power.
    """
    has_transfer = transfer.shape[1] > 0
    for b in range(low, high):
        with_transfer, without, of_power = factors[b]
        total = 0.0
        for p in range(row.shape[0]):
            i = row[p]
            j = column[p]
            weight = precision[b, shell[p]]
            if shell[p] == 0:
                weight *= np.float32(0.5)
            re = spectrum[b, i, j, 0]
            im = spectrum[b, i, j, 1]
            total += weight * (np.float64(re) * re + np.float64(im) * im)
            wave_re = along_y[b, i, 0] * along_x[b, j, 0] - along_y[b, i, 1] * along_x[b, j, 1]
            wave_im = along_y[b, i, 0] * along_x[b, j, 1] + along_y[b, i, 1] * along_x[b, j, 0]
            value = transfer[b, i, j] if has_transfer else np.float32(1)
            factor = weight * (with_transfer * value + without)
            data[b, p, 0] = factor * (re * wave_re - im * wave_im)
            data[b, p, 1] = factor * (re * wave_im + im * wave_re)
            power[b, p] = of_power * weight * value * value
        energy[b] = 2 * total


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
) -> tuple[Tensor, Tensor, Tensor]:
    """The data, power and energy that `accumulator.weighted_slices` gives, for images without odd
    aberrations. The number of threads changes no bit.
    """
    count = len(images)
    along_x, along_y = plane.shift(views.origin / pixel_size)
    component_variance = plane.box**2 * variance
    precision = weights[:, None] / component_variance
    transfer = torch.empty(count, 0, 0) if ctf is None else ctf
    data = torch.empty(count, len(plane), dtype=torch.complex64)
    power = torch.empty(count, len(plane))
    energy = torch.empty(count, dtype=torch.float64)
    places = (
        plane.chosen // (plane.box // 2 + 1),
        plane.chosen % (plane.box // 2 + 1),
        plane.shell,
    )
    given = (
        _pairs(torch.fft.rfft2(images)),
        *(tensor.numpy().view(np.uintp) for tensor in places),
        _pairs(along_x),
        _pairs(along_y),
        _single(precision),
        _single(transfer),
        _single(_factors(views, pixel_size, premultiplied, copies)),
    )
    made = (_pairs(data), power.numpy(), energy.numpy())

    def work(low: int, high: int) -> None:
        _weigh(*given, *made, low, high)

    in_threads(work, shares(count))
    return data, power, energy


def _factors(views: Views, pixel_size: float, premultiplied: bool, copies: int) -> Tensor:
    """See `_weigh`."""
    mean = torch.ones(len(views))
    square = torch.ones(len(views))
    if views.contrast is not None:
        mean = views.contrast.mean
        square = views.contrast.square
    of_data = pixel_size / copies * mean
    nothing = torch.zeros_like(of_data)
    both = [nothing, of_data] if premultiplied else [of_data, nothing]
    return torch.stack([*both, pixel_size**2 / copies * square], 1)


def _pairs(values: Tensor) -> np.ndarray:
    """Complex numbers "*" as "* 2" in single precision."""
    return torch.view_as_real(values.to(torch.complex64).contiguous()).numpy()


def _single(values: Tensor) -> np.ndarray:
    return values.float().contiguous().numpy()
