"""Spreading and looking up by Triton's kernels are those in torch."""

import pytest
import torch
from support.interpreted import DEVICE, needs_kernels, needs_process, run_interpreted

from instamap.fourier.gridding import Grid
from instamap.fourier.kaiser_bessel import first_cells, footprint, taps
from instamap.geometry import rotations
from instamap.geometry.cube import Cube

BOX = 8
VIEWS = 3


def kernels():
    from instamap.fourier import gridding_triton

    return gridding_triton


def slices(seed=0):
    """Frames "V 2 3", points "P 2" within the circle, complex data and power "V P"."""
    generator = torch.Generator().manual_seed(seed)
    frames = rotations.random(VIEWS, generator=generator).float()[:, :2]
    plane = (torch.rand(37, 2, generator=generator) - 0.5) * BOX * 0.7
    plane[0] = 0  # all of the slices meet there
    data = torch.randn(VIEWS, 37, generator=generator, dtype=torch.complex64)
    power = torch.rand(VIEWS, 37, generator=generator)
    return [tensor.to(DEVICE) for tensor in (frames, plane, data, power)]


@needs_kernels
def test_spreading_agrees_with_torch():
    frames, plane, data, power = slices()
    ours = Grid(Cube.whole(BOX), device=DEVICE)
    reference = Grid(Cube.whole(BOX), device=DEVICE)
    kernels().spread(ours, frames, plane, data, power)
    reference.spread(frames, plane, data, power)
    # A few hundred roundings of float32 below the largest cell.
    largest = float(reference.cells.abs().max())
    torch.testing.assert_close(ours.cells, reference.cells, rtol=0, atol=1e-5 * largest)


@needs_kernels
def test_spreading_adds():
    frames, plane, data, power = slices()
    once = Grid(Cube.whole(BOX), device=DEVICE)
    twice = Grid(Cube.whole(BOX), device=DEVICE)
    kernels().spread(once, frames, plane, data, power)
    for _ in range(2):
        kernels().spread(twice, frames, plane, data, power)
    torch.testing.assert_close(twice.cells, 2 * once.cells, rtol=1e-4, atol=1e-5)


@needs_kernels
def test_looking_up_agrees_with_torch():
    frames, plane, *_ = slices()
    grid = Grid(Cube.whole(BOX), device=DEVICE)
    cells = torch.randn(*grid.cells.shape[:3], 2, device=DEVICE)
    half = grid.size // 2
    scaled = frames * grid.cells_per_component
    found = kernels().gather(cells, scaled, plane, half)
    at, sign = first_cells(scaled, plane, half)
    index, weights = footprint(at.flatten(0, 1), taps().to(cells), cells.shape[:3])
    values = (cells.view(-1, 2)[index] * weights[..., None]).sum(1)
    values[:, 1] *= sign.flatten()
    expected = torch.view_as_complex(values).view(VIEWS, -1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@needs_kernels
def test_adding_is_the_transpose_of_looking_up():
    """Re⟨gather(g), v⟩ = ⟨g, scatter(v)⟩."""
    frames, plane, data, _ = slices()
    grid = Grid(Cube.whole(BOX), device=DEVICE)
    cells = torch.randn(*grid.cells.shape[:3], 2, device=DEVICE)
    half = grid.size // 2
    scaled = frames * grid.cells_per_component
    values = torch.view_as_real(kernels().gather(cells, scaled, plane, half))
    there = (values.double() * torch.view_as_real(data)).sum()
    added = torch.zeros_like(cells)
    kernels().scatter(added, scaled, plane, data, half)
    back = (cells.double() * added).sum()
    torch.testing.assert_close(there, back, rtol=1e-4, atol=1e-3)


@needs_kernels
def test_double_precision_is_refused():
    frames, plane, data, power = slices()
    grid = Grid(Cube.whole(BOX), dtype=torch.float64, device=DEVICE)
    with pytest.raises(ValueError, match="take torch.float32 on cuda"):
        kernels().spread(grid, frames, plane, data, power)


@pytest.mark.slow
@needs_process
def test_all_of_it_in_the_interpreter():
    run_interpreted(__file__)
