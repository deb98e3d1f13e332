"""The grid encoding by Triton's kernels is the torch reference, and its gradients are."""

import pytest
import torch
from support.interpreted import DEVICE, needs_kernels, needs_process, run_interpreted

from instamap.representations.encodings.grid import encode_torch
from instamap.representations.encodings.levels import levels

GRIDS = {
    "dense": levels(2, 3, 9, 2, 12, False),
    "mixed": levels(4, 3, 40, 2, 9, False),
    "hashed": levels(2, 30, 60, 1, 8, False),
    "smoothstep": levels(3, 4, 20, 3, 9, True),
    "wide": levels(1, 1, 1, 4, 3, True),
}


def kernels():
    from instamap.representations.encodings import grid_triton

    return grid_triton


def random(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator).to(DEVICE)


def points(grid, n):
    """Points in and around the cube, some of them on vertices and faces."""
    x = random(0, n, 3) * 1.4 - 0.2
    finest = grid.resolutions[-1]
    x[::3] = (x[::3] * finest).round() / finest
    return x


def both_gradients(encode, x, table, grid, upstream):
    x = x.clone().requires_grad_()
    table = table.clone().requires_grad_()
    features = encode(x, table, grid)
    features.backward(upstream)
    return features.detach(), x.grad, table.grad


def added_as_they_come(x, table, grid):
    return kernels().encode_triton(x, table, grid, deterministic=False)


def added_as_integers(x, table, grid):
    return kernels().encode_triton(x, table, grid, deterministic=True)


@needs_kernels
@pytest.mark.parametrize("encode", [added_as_they_come, added_as_integers])
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("n", [1, 150])  # a program has 128
def test_kernels_agree_with_the_reference(encode, name, n):
    """Features and both gradients, to float32: a part in 1e5 of the largest."""
    grid = GRIDS[name]
    x = points(grid, n)
    table = random(1, grid.entries, grid.features) - 0.5
    upstream = random(2, n, grid.width) - 0.5
    ours = both_gradients(encode, x, table, grid, upstream)
    reference = both_gradients(encode_torch, x, table, grid, upstream)
    for a, b in zip(ours, reference, strict=True):
        # Terms that cancel leave the rounding of their sizes, which are below 1/2 here.
        assert (a - b).abs().max() <= 1e-5 * b.abs().max() + 1e-6


@needs_kernels
def test_no_points_have_no_features_and_no_gradient():
    grid = GRIDS["mixed"]
    table = random(1, grid.entries, 2)
    upstream = random(2, 0, grid.width)
    features, grad_x, grad_table = both_gradients(
        added_as_integers, random(0, 0, 3), table, grid, upstream
    )
    assert features.shape == (0, grid.width)
    assert grad_x.shape == (0, 3)
    assert not grad_table.any()


@needs_kernels
def test_sums_of_integers_do_not_depend_on_the_order_of_points():
    """To the last bit, which sums of float32 do not reach: all terms meet in few entries here."""
    grid = levels(2, 2, 4, 2, 4, False)
    x = random(0, 150, 3)
    table = random(1, grid.entries, 2)
    upstream = random(2, 150, grid.width) - 0.5
    order = torch.randperm(150, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    *_, as_given = both_gradients(added_as_integers, x, table, grid, upstream)
    *_, shuffled = both_gradients(added_as_integers, x[order], table, grid, upstream[order])
    assert torch.equal(as_given, shuffled)


@needs_kernels
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_sums_of_integers_have_no_scale_of_their_own(size):
    """Gradients as small and as large as float32 holds are summed as well as those around one."""
    grid = GRIDS["mixed"]
    x = random(0, 100, 3)
    table = random(1, grid.entries, 2)
    upstream = random(2, 100, grid.width) - 0.5
    *_, around_one = both_gradients(encode_torch, x, table, grid, upstream)
    *_, scaled = both_gradients(added_as_integers, x, table, grid, upstream * size)
    assert torch.allclose(scaled, around_one * size, rtol=1e-4, atol=1e-6 * size)


@needs_kernels
@pytest.mark.filterwarnings("ignore:invalid value")  # numpy's, in the interpreter
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_not_hidden(value):
    grid = GRIDS["mixed"]
    upstream = random(2, 10, grid.width)
    upstream[3, 2] = value
    *_, grad_table = both_gradients(
        added_as_integers, random(0, 10, 3), random(1, grid.entries, 2), grid, upstream
    )
    assert grad_table.isnan().all()


@needs_kernels
def test_nan_stays_with_its_point():
    grid = GRIDS["smoothstep"]
    x = random(0, 10, 3)
    x[4, 1] = float("nan")
    features = added_as_integers(x, random(1, grid.entries, 3), grid)
    assert features.isnan().any(-1).tolist() == [i == 4 for i in range(10)]


@needs_kernels
@pytest.mark.parametrize("wanted", ["x", "table"])
def test_gradients_that_nobody_needs_are_not_made(wanted):
    grid = GRIDS["dense"]
    x = random(0, 6, 3).requires_grad_(wanted == "x")
    table = random(1, grid.entries, 2).requires_grad_(wanted == "table")
    features = added_as_integers(x, table, grid)
    made = features.grad_fn.apply(torch.ones_like(features))
    assert [gradient is not None for gradient in made[:2]] == [wanted == "x", wanted == "table"]


@needs_kernels
def test_other_types_are_refused():
    grid = GRIDS["dense"]
    x = random(0, 6, 3).double()
    with pytest.raises(ValueError, match="take torch.float32 on cuda"):
        added_as_integers(x, random(1, grid.entries, 2).double(), grid)


@pytest.mark.slow
@needs_process
def test_all_of_it_in_the_interpreter():
    run_interpreted(__file__)
