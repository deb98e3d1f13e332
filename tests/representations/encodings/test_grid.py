"""The grid encoding: closed forms for both implementations, the reference against finite
differences, the kernels against the reference.
"""

import itertools
import multiprocessing
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import instamap.representations.encodings
from instamap.errors import OptionError
from instamap.geometry import compiled
from instamap.representations.encodings import grid as grid_module
from instamap.representations.encodings.grid import backend, encode, encode_torch
from instamap.representations.encodings.levels import levels

NO_NUMBA = not compiled.usable()
needs_numba = pytest.mark.skipif(
    NO_NUMBA, reason="numba is not installed: there are no compiled kernels to test"
)
BOTH = [
    pytest.param((encode_torch, torch.float64), id="torch"),
    pytest.param((encode, torch.float32), id="numba", marks=needs_numba),
]
# Numbers are at most 4. Positions are rounded by 6e-8 of up to 20 cells, so weights by 1e-6; the
# rest is room for sums of them.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5}
seeds = st.integers(0, 2**32 - 1)


def random(seed: int, *shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def vertices(n: int, dtype) -> torch.Tensor:
    """All vertices "(n+1)^3 3" (x, y, z as whole numbers) in the order of a dense level."""
    return torch.tensor(list(itertools.product(range(n + 1), repeat=3)), dtype=dtype).flip(-1)


def both_gradients(function, x, table, grid, grad):
    """Values and gradients in position and table."""
    x = x.clone().requires_grad_()
    table = table.clone().requires_grad_()
    out = function(x, table, grid)
    return out.detach(), *torch.autograd.grad(out, (x, table), grad)


def agree(x, table, grid, grad) -> bool:
    """Whether the kernels' values and gradients are within 1e-5 of the reference's largest.

    Where the terms of an entry's gradient cancel, what is left has the rounding of their sizes: one
    unit in the last place of their sum.
    """
    ours = both_gradients(encode, x, table, grid, grad)
    reference = both_gradients(encode_torch, x, table, grid, grad)
    rounding = float(torch.finfo(grad.dtype).eps * grad.abs().sum())
    for a, b, room in zip(ours, reference, (0.0, 0.0, rounding), strict=True):
        if a.shape != b.shape:
            return False
        if a.numel() and (a - b).abs().max() > 1e-5 * b.abs().max() + room:
            return False
    return True


def test_levels_rise_geometrically_and_hash_only_what_does_not_fit():
    grid = levels(4, 8, 64, 2, 15, False)
    assert grid.resolutions == (8, 16, 32, 64)
    assert grid.dense == (True, True, False, False)  # 17³ = 4913 <= 2^15 < 33³
    assert grid.offsets == (0, 729, 729 + 4913, 729 + 4913 + 2**15, 729 + 4913 + 2**16)
    assert (grid.entries, grid.width) == (grid.offsets[-1], 8)
    assert levels(1, 8, 64, 2, 15, False).resolutions == (64,)


@pytest.mark.parametrize(
    "arguments",
    [
        (0, 8, 64, 2, 15),
        (4, 8, 64, 0, 15),
        (4, 8, 4, 2, 15),
        (4, 0, 4, 2, 15),
        (4, 8, 1 << 17, 2, 15),
        (4, 8, 64, 2, 31),
        (4, 8, 64, 2, -1),
    ],
)
def test_levels_that_cannot_be_are_refused(arguments):
    with pytest.raises(OptionError, match="cannot be made"):
        levels(*arguments, False)


@pytest.mark.parametrize("backend_and_dtype", BOTH)
@given(seed=seeds, n=st.integers(1, 9))
def test_dense_level_reproduces_trilinear_functions(backend_and_dtype, seed, n):
    function, dtype = backend_and_dtype
    c = random(seed, 8, dtype=dtype) - 0.5

    def trilinear(p):
        x, y, z = p.unbind(-1)
        return (
            c[0]
            + c[1] * x
            + c[2] * y
            + c[3] * z
            + c[4] * x * y
            + c[5] * y * z
            + c[6] * x * z
            + c[7] * x * y * z
        )

    grid = levels(1, n, n, 1, 12, False)
    table = trilinear(vertices(n, dtype) / n)[:, None].contiguous()
    x = random(seed, 50, 3, dtype=dtype)
    # Coefficients are below 1/2, so numbers are at most 4.
    assert torch.allclose(
        function(x, table, grid)[:, 0], trilinear(x), rtol=0, atol=TOLERANCE[dtype]
    )


@pytest.mark.parametrize("backend_and_dtype", BOTH)
@pytest.mark.parametrize("smoothstep", [False, True])
@pytest.mark.parametrize("features", [1, 2, 3, 4])
def test_value_at_a_vertex_is_its_entry(backend_and_dtype, smoothstep, features):
    function, dtype = backend_and_dtype
    n = 8  # a power of two: i / 8 is exact, and so must be the value
    grid = levels(1, n, n, features, 12, smoothstep)
    table = random(0, grid.entries, features, dtype=dtype)
    assert torch.equal(function(vertices(n, dtype) / n, table, grid), table)


@pytest.mark.parametrize("backend_and_dtype", BOTH)
def test_smoothstep_is_its_polynomial(backend_and_dtype):
    function, dtype = backend_and_dtype
    grid = levels(1, 1, 1, 1, 3, True)
    x = random(0, 50, 3, dtype=dtype)
    out = function(x, vertices(1, dtype)[:, :1].contiguous(), grid)[:, 0]
    assert torch.allclose(out, 3 * x[:, 0] ** 2 - 2 * x[:, 0] ** 3, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("backend_and_dtype", BOTH)
def test_features_lie_level_by_level(backend_and_dtype):
    function, dtype = backend_and_dtype
    grid = levels(4, 3, 20, 2, 9, False)
    table = torch.empty(grid.entries, 2, dtype=dtype)
    for level, (start, end) in enumerate(itertools.pairwise(grid.offsets)):
        table[start:end] = torch.tensor([2 * level, 2 * level + 1], dtype=dtype)
    assert torch.equal(
        function(random(0, 50, 3, dtype=dtype), table, grid),
        torch.arange(8, dtype=dtype).expand(50, 8),
    )


@pytest.mark.parametrize("backend_and_dtype", BOTH)
def test_hashed_vertices_have_the_published_entry(backend_and_dtype):
    function, dtype = backend_and_dtype
    n = 16
    size = 2**10
    grid = levels(2, 4, n, 1, 10, False)
    assert grid.dense == (True, False)
    table = (
        torch.arange(grid.entries, dtype=dtype)[:, None] - grid.offsets[1]
    )  # below 2^24: exact in float32
    p = vertices(n, torch.long)
    expected = [
        (x ^ (y * 2654435761 % 2**32) ^ (z * 805459861 % 2**32)) % size for x, y, z in p.tolist()
    ]
    found = function(p.to(dtype) / n, table, grid)[:, 1]
    assert found.long().tolist() == expected
    # By hand for (3, 5, 7): modulo 2^32, 5 * 2654435761 is 387276917 and 7 * 805459861 is
    # 1343251731; their last ten bits are
    # 117 and 275, and 3 xor 117 xor 275 is 357.
    assert found[(7 * 17 + 5) * 17 + 3] == 357


@pytest.mark.parametrize("backend_and_dtype", BOTH)
@given(seed=seeds, smoothstep=st.booleans())
def test_weights_sum_to_one(backend_and_dtype, seed, smoothstep):
    function, dtype = backend_and_dtype
    grid = levels(4, 3, 20, 2, 9, smoothstep)
    x = random(seed, 100, 3, dtype=dtype) * 3 - 1
    out = function(x, torch.ones(grid.entries, 2, dtype=dtype), grid)
    assert torch.allclose(out, torch.ones_like(out), rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("backend_and_dtype", BOTH)
@given(seed=seeds)
def test_points_outside_take_the_nearest_value_and_have_no_gradient_that_way(
    backend_and_dtype, seed
):
    function, dtype = backend_and_dtype
    grid = levels(3, 3, 12, 2, 9, False)
    table = random(seed, grid.entries, 2, dtype=dtype)
    x = random(seed + 1, 100, 3, dtype=dtype) * 3 - 1
    x[0], x[1] = float("inf"), -float("inf")
    out, grad_x, grad_table = both_gradients(
        function, x, table, grid, torch.ones(100, grid.width, dtype=dtype)
    )
    assert torch.equal(out, function(x.clamp(0, 1), table, grid))
    assert torch.equal(grad_x == 0, (x < 0) | (x > 1))
    assert grad_x.isfinite().all() and grad_table.isfinite().all()


@pytest.mark.parametrize("backend_and_dtype", BOTH)
def test_nan_stays_with_its_point(backend_and_dtype):
    function, dtype = backend_and_dtype
    grid = levels(3, 3, 12, 2, 9, True)
    x = random(0, 10, 3, dtype=dtype)
    x[4, 1] = float("nan")
    out = function(x, random(1, grid.entries, 2, dtype=dtype), grid)
    assert out.isnan().any(-1).tolist() == [i == 4 for i in range(10)]


@pytest.mark.parametrize("features", [1, 2, 3])
@pytest.mark.parametrize("smoothstep", [False, True])
@settings(max_examples=5)  # each takes hundreds of evaluations
@given(seed=seeds)
def test_reference_gradients_are_those_of_finite_differences(features, smoothstep, seed):
    grid = levels(
        3, 1, 4, features, 5, smoothstep
    )  # 1, 2 and 4 cells: two dense levels and a hashed one, 67 entries
    x = random(seed, 200, 3)
    # A linear interpolation has a kink where two cells meet, and a difference across it is neither
    # side's derivative. So points
    # are kept a hundredth of a cell away from every level's faces; gradcheck moves them by 1e-6.
    within = torch.stack([(x * n) % 1 for n in grid.resolutions])
    x = x[((within > 0.01) & (within < 0.99)).all(0).all(-1)][:4].requires_grad_()
    table = (random(seed + 1, grid.entries, features) - 0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, table: encode_torch(x, table, grid), (x, table))


def test_reference_is_the_same_in_chunks(monkeypatch):
    grid = levels(3, 3, 12, 2, 9, True)
    x = random(0, 20, 3)
    table = random(1, grid.entries, 2)
    whole = both_gradients(encode_torch, x, table, grid, torch.ones(20, grid.width, dtype=x.dtype))
    monkeypatch.setattr(grid_module, "POINTS_AT_ONCE", 7)
    pieces = both_gradients(encode_torch, x, table, grid, torch.ones(20, grid.width, dtype=x.dtype))
    assert all(torch.allclose(a, b, rtol=1e-13) for a, b in zip(whole, pieces, strict=True))


@st.composite
def grids(draw):
    """Levels of every sort: all dense, all hashed, mixed, equal."""
    base = draw(st.integers(1, 12))
    finest = draw(st.integers(base, 40))
    return levels(
        draw(st.integers(1, 6)),
        base,
        finest,
        draw(st.sampled_from([1, 2, 3, 4])),
        draw(st.integers(0, 14)),
        draw(st.booleans()),
    )


@needs_numba
@given(grid=grids(), n=st.sampled_from([0, 1, 2, 511, 512, 513, 9001]), seed=seeds)
def test_kernels_agree_with_the_reference(grid, n, seed):
    x = random(seed, n, 3, dtype=torch.float32) * 1.4 - 0.2
    x[::3] = (x[::3] * grid.resolutions[-1]).round() / grid.resolutions[
        -1
    ]  # on vertices and faces, also those of the cube
    table = random(seed + 1, grid.entries, grid.features, dtype=torch.float32) - 0.5
    grad = random(seed + 2, n, grid.width, dtype=torch.float32) - 0.5
    assert backend(x) == "numba"
    assert agree(x, table, grid, grad)


@needs_numba
def test_kernels_take_views_and_gradients_of_any_strides():
    grid = levels(3, 3, 12, 2, 9, False)
    x = random(0, 3, 700, dtype=torch.float32).T
    table = random(1, grid.entries * 2 + 1, dtype=torch.float32)[1:].view(-1, 2)
    grad = random(2, grid.width, 700, dtype=torch.float32).T
    assert agree(x, table, grid, grad)


@pytest.mark.parametrize("backend_and_dtype", BOTH)
@pytest.mark.parametrize("wanted", ["x", "table"])
def test_gradients_that_nobody_needs_are_not_made(backend_and_dtype, wanted):
    function, dtype = backend_and_dtype
    grid = levels(3, 3, 12, 2, 9, False)
    x = random(0, 60, 3, dtype=dtype).requires_grad_(wanted == "x")
    table = random(1, grid.entries, 2, dtype=dtype).requires_grad_(wanted == "table")
    out = function(x, table, grid)
    made = out.grad_fn.apply(torch.ones_like(out))
    assert [gradient is not None for gradient in made] == [wanted == "x", wanted == "table", False]


@needs_numba
def test_kernels_repeat_exactly_whatever_the_threads():
    grid = levels(5, 4, 40, 2, 12, False)
    x = random(0, 20_000, 3, dtype=torch.float32)
    table = random(1, grid.entries, 2, dtype=torch.float32)

    def run():
        return both_gradients(encode, x, table, grid, torch.ones(len(x), grid.width))

    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 2, 3):
            torch.set_num_threads(threads)
            results.append(run())
        with ThreadPoolExecutor(4) as pool:  # several callers at once
            results += [task.result() for task in [pool.submit(run) for _ in range(8)]]
    finally:
        torch.set_num_threads(before)
    assert all(
        torch.equal(a, b) for other in results for a, b in zip(results[0], other, strict=True)
    )


def worker(threads: int) -> tuple[str, float]:
    """In another process: the implementation used, and a number that depends on all results."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    grid = levels(3, 4, 40, 1, 12, False)
    # Two threads' worth of points, and no tensor above 32768 numbers: from there torch uses OpenMP,
    # which itself hangs after a fork.
    x = random(0, 8192, 3, dtype=torch.float32)
    table = random(1, grid.entries, 1, dtype=torch.float32)
    results = both_gradients(encode, x, table, grid, torch.ones(len(x), grid.width))
    return backend(x), sum(float(r.numpy().sum()) for r in results)


@needs_numba
@pytest.mark.filterwarnings(
    "ignore:.*use of fork:DeprecationWarning"
)  # from Python 3.12: forking threads is what is tested here
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_kernels_work_in_worker_processes(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot start processes by {method}")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        expected = worker(2)  # the kernels have run in this process before it forks
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert (
                pool.apply_async(worker, (2,)).get(timeout=120)
                == expected
                == ("numba", expected[1])
            )
    finally:
        torch.set_num_threads(before)


def test_reference_is_used_where_numba_is_missing(monkeypatch):
    grid = levels(3, 3, 12, 2, 9, False)
    x = random(0, 60, 3, dtype=torch.float32)
    table = random(1, grid.entries, 2, dtype=torch.float32)
    monkeypatch.setitem(sys.modules, "numba", None)  # makes `import numba` fail
    for name in ("grid_numba", "grid_kernels"):
        monkeypatch.delitem(
            sys.modules, f"instamap.representations.encodings.{name}", raising=False
        )
        monkeypatch.delattr(instamap.representations.encodings, name, raising=False)

    compiled._fault.cache_clear()
    try:
        assert backend(x) == "torch"
        assert torch.equal(encode(x, table, grid), encode_torch(x, table, grid))
    finally:
        compiled._fault.cache_clear()


def test_double_precision_takes_the_reference():
    assert backend(torch.zeros(1, 3, dtype=torch.float64)) == "torch"


@pytest.mark.parametrize("function", [encode_torch, pytest.param(encode, marks=needs_numba)])
@pytest.mark.parametrize(
    "x, table",
    [
        (torch.zeros(5, 2), None),
        (torch.zeros(3), None),
        (torch.zeros(5, 3, dtype=torch.float64), None),
        (torch.zeros(5, 3), torch.zeros(10, 2)),
        (torch.zeros(5, 3), torch.zeros(2, 64)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(function, x, table):
    grid = levels(1, 3, 3, 2, 9, False)
    with pytest.raises(ValueError, match="must be|need"):
        function(x, torch.zeros(grid.entries, 2) if table is None else table, grid)


@needs_numba
def test_kernels_refuse_what_is_not_float32():
    from instamap.representations.encodings.grid_numba import encode_numba

    grid = levels(1, 3, 3, 2, 9, False)
    with pytest.raises(ValueError, match="float32"):
        encode_numba(
            torch.zeros(5, 3, dtype=torch.float64),
            torch.zeros(grid.entries, 2, dtype=torch.float64),
            grid,
        )
