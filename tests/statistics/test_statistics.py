"""Statistics of the normal equations against the explicit sum over images, components and voxels in
float64, and against closed forms.
"""

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from instamap.errors import DataError, OptionError, OutputError
from instamap.fourier import gridding, kaiser_bessel
from instamap.geometry import compiled, grids, rotations
from instamap.geometry.cube import Cube
from instamap.scene import Views
from instamap.statistics import accumulator as accumulators
from instamap.statistics.accumulator import Accumulator
from instamap.statistics.fourier_plane import FourierPlane
from instamap.statistics.statistics import Statistics
from instamap.tensor_files import read_npz, write_npz

NUMBA = compiled.usable()
needs_numba = pytest.mark.skipif(
    not NUMBA, reason="numba is not installed: there is no compiled spreading to test"
)
BACKENDS = [
    pytest.param(("torch", torch.float64), id="torch64"),
    pytest.param(("torch", torch.float32), id="torch32"),
    pytest.param(("numba", torch.float32), id="numba", marks=needs_numba),
]
PIXEL = 1.7
# The window of five cells errs by 2e-4 of the norm for typical draws; single images at unlucky
# poses by twice as much.
GRIDDING = 1e-3
RIM_GRIDDING = 3e-3  # in a cube at whose rim the middle of the box is: there the window errs most
# float32 against float64: positions in a grid of 30 cells are known to 1e-6 cells, sums of a few
# thousand numbers to 1e-6.
SINGLE = 2e-5
ROUNDING = 1e-12
seeds = st.integers(0, 2**32 - 1)
boxes = st.integers(8, 12)


@dataclass
class Case:
    """Images with all that can be different about them, in float64."""

    images: Tensor
    views: Views
    ctf: Tensor
    variance: Tensor
    weights: Tensor
    generator: torch.Generator

    @staticmethod
    def draw(seed: int, box: int, count: int = 5) -> "Case":
        g = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=g, dtype=torch.float64)

        def uniform(*shape):
            return torch.rand(*shape, generator=g, dtype=torch.float64)

        views = Views.of(rotations.random(count, generator=g), 3 * normal(count, 2))
        ctf = (
            torch.fft.rfft2(normal(count, box, box)).real / box
        )  # even under k -> -k, and otherwise anything
        return Case(
            normal(count, box, box),
            views,
            ctf,
            0.5 + uniform(count, box // 2 + 1),
            0.5 + uniform(count),
            g,
        )

    @property
    def box(self) -> int:
        return self.images.shape[-1]

    def sphere(self) -> Tensor:
        """A random map "N N N" inside the sphere."""
        inside = grids.voxel_centres(self.box, 1.0).norm(dim=-1) <= self.box // 2 - 0.5
        return (
            torch.randn(self.box, self.box, self.box, generator=self.generator, dtype=torch.float64)
            * inside
        )

    def statistics(
        self, backend=("torch", torch.float64), rows=slice(None), **changes
    ) -> Statistics:
        given = {
            "images": self.images,
            "views": self.views,
            "ctf": self.ctf,
            "noise_variance": self.variance,
            "weights": self.weights,
        }
        options = {
            name: changes.pop(name)
            for name in ("symmetry", "premultiplied", "cube")
            if name in changes
        }

        def cut(v):
            return v if v is None else v[rows]

        accumulator = Accumulator(self.box, PIXEL, dtype=backend[1], backend=backend[0], **options)
        accumulator.add(**{name: cut(v) for name, v in (given | changes).items()})
        return accumulator.finish()

    def predictions(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Of each image: the matrix "K N³" from map to Fourier components, the components of the
        image, their weight / (D² σ²).
        """
        n = self.box
        k = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)
        ky, kx = (a.flatten() for a in torch.meshgrid(k, k, indexing="ij"))
        inside = kx**2 + ky**2 < n * n / 4 - 1e-6
        ky = ky[inside]
        kx = kx[inside]
        positive = kx >= 0
        row = torch.where(positive, ky, -ky).long() % n
        column = torch.where(positive, kx, -kx).long()
        shell = torch.hypot(kx, ky).round().long()

        def wave(frequency, at):
            return torch.exp(-2j * math.pi * (frequency @ at.T))

        plane = torch.stack([kx, ky], -1) / (n * PIXEL)
        pixels, voxels = (
            f(n, PIXEL, dtype=torch.float64).flatten(0, -2)
            for f in (grids.pixel_centres, grids.voxel_centres)
        )
        matrices = []
        components = []
        weights = []
        for i in range(len(self.images)):
            q = plane @ self.views.rotation[i, :2]
            shift = wave(plane, -self.views.origin[i][None])
            matrices.append(self.ctf[i, row, column, None] * shift * PIXEL * wave(q, voxels))
            components.append(wave(plane, pixels) @ self.images[i].flatten().to(torch.complex128))
            weights.append(self.weights[i] / (n * n * self.variance[i, shell]))
        return matrices, components, weights

    def explicit(self) -> tuple[Tensor, Tensor, float]:
        """b "N N N", the matrix of K∗ "N³ N³" and the energy."""
        b = 0
        matrix = 0
        energy = 0
        for a, f, w in zip(*self.predictions(), strict=True):
            b = b + (a.mH @ (w * f)).real
            matrix = matrix + (a.mH @ (w[:, None] * a)).real
            energy = energy + float((w * f.abs() ** 2).sum())
        return b.view(self.box, self.box, self.box), matrix, energy

    def loss(self, volume: Tensor) -> Tensor:
        """-log p of a map, image by image and component by component, without the constant that
        holds the noise alone.
        """
        residuals = (
            (f - a @ volume.flatten().to(a.dtype), w)
            for a, f, w in zip(*self.predictions(), strict=True)
        )
        return 0.5 * sum((w * r.abs() ** 2).sum() for r, w in residuals)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def assert_same(one: Statistics, other: Statistics, tolerance: float) -> None:
    assert error(one.b, other.b.double()) < tolerance
    assert error(one.kernel, other.kernel.double()) < tolerance
    assert one.energy == pytest.approx(other.energy, rel=max(tolerance, ROUNDING))
    assert one.weight == pytest.approx(other.weight, rel=max(tolerance, ROUNDING))


@pytest.mark.parametrize("backend", BACKENDS)
@given(seed=seeds, box=boxes)
@settings(max_examples=6)
def test_equal_to_the_explicit_sum(backend, seed, box):
    case = Case.draw(seed, box)
    b, matrix, energy = case.explicit()
    found = case.statistics(backend)
    volume = case.sphere()
    inside = volume != 0
    assert error(found.b, b) < GRIDDING
    curved = (matrix @ volume.flatten()).view_as(volume)
    assert error(found.apply(volume.to(backend[1])) * inside, curved * inside) < GRIDDING
    assert found.energy == pytest.approx(energy, rel=1e-5)
    assert (found.count, found.weight) == (5, pytest.approx(float(case.weights.sum()), rel=1e-6))


@given(seed=seeds, box=boxes)
@settings(max_examples=6)
def test_loss_and_gradient_are_those_of_the_dense_model(seed, box):
    case = Case.draw(seed, box)
    statistics = case.statistics()
    volume = case.sphere().requires_grad_()
    loss = statistics.loss(volume)
    exact = case.loss(volume)
    (gradient,), (expected,) = torch.autograd.grad(loss, volume), torch.autograd.grad(exact, volume)
    loss = loss.detach()
    exact = exact.detach()
    inside = volume.detach() != 0
    assert error(gradient * inside, expected * inside) < GRIDDING
    zero = case.loss(torch.zeros_like(volume.detach()))
    assert float(loss) == pytest.approx(float(exact - zero), abs=GRIDDING * float(exact + zero))
    assert statistics.energy / 2 == pytest.approx(float(zero), rel=ROUNDING)
    assert statistics.loss(torch.zeros_like(volume)) == 0


@given(seed=seeds)
@settings(max_examples=3)
def test_gradient_is_that_of_finite_differences(seed):
    case = Case.draw(seed, 4, 2)
    statistics = case.statistics()
    volume = torch.randn(4, 4, 4, generator=case.generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(statistics.loss, volume)
    assert torch.autograd.gradcheck(statistics.apply, volume)


@pytest.mark.parametrize("box", [20, 21])
@given(seed=seeds)
@settings(max_examples=5)
def test_the_map_behind_closed_form_images_solves_the_equations(box, seed):
    """Projections of Gaussians in closed form: a wrong half pixel, sign of the shift, transposed
    rotation or scale leaves K∗V - b large.
    """
    case = Case.draw(seed, box, 4)
    sigma = 1.5 * PIXEL
    centres = torch.rand(3, 3, generator=case.generator, dtype=torch.float64).sub(0.5) * 4 * PIXEL

    def gauss(x, d):
        return torch.exp(-(x**2).sum(-1) / (2 * sigma**2)).sum(-1) / (2 * math.pi * sigma**2) ** (
            d / 2
        )

    volume = gauss(grids.voxel_centres(box, PIXEL, dtype=torch.float64)[..., None, :] - centres, 3)
    origin = case.views.origin.clamp(
        -PIXEL, PIXEL
    )  # nothing of an image may leave the box, or it would come back at the other side
    seen = (centres @ case.views.rotation.mT)[..., :2] - origin[:, None]
    images = gauss(
        grids.pixel_centres(box, PIXEL, dtype=torch.float64)[None, :, :, None]
        - seen[:, None, None],
        2,
    )
    images = torch.fft.irfft2(torch.fft.rfft2(images) * case.ctf, s=(box, box))
    statistics = case.statistics(
        images=images, views=dataclasses.replace(case.views, origin=origin)
    )
    # Gaussians have 1e-3 of their norm beyond the box or beyond the Nyquist frequency; half a pixel
    # would cost 0.2.
    assert error(statistics.apply(volume), statistics.b) < 5e-3


@given(seed=seeds, box=boxes)
def test_premultiplied_images_give_the_same_b_and_kernel(seed, box):
    case = Case.draw(seed, box)
    multiplied = torch.fft.irfft2(torch.fft.rfft2(case.images) * case.ctf, s=(box, box))
    plain = case.statistics()
    found = case.statistics(images=multiplied, premultiplied=True)
    assert error(found.b, plain.b) < ROUNDING
    assert torch.equal(found.kernel, plain.kernel)
    assert math.isnan(found.energy) and math.isnan((plain + found).energy)


@given(seed=seeds, box=boxes, cut=st.integers(0, 6))
def test_shards_add_up_to_the_whole(seed, box, cut):
    case = Case.draw(seed, box, 6)
    shards = case.statistics(rows=slice(0, cut)) + case.statistics(rows=slice(cut, 6))
    assert_same(shards, case.statistics(), ROUNDING)
    assert shards.count == 6


@given(seed=seeds, box=boxes)
def test_batches_and_flushes_change_nothing(seed, box):
    case = Case.draw(seed, box, 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accumulators, "FLUSH", 4)
        patch.setattr(accumulators, "POINTS", 100)
        pieces = case.statistics()
    assert_same(pieces, case.statistics(), ROUNDING)


@given(seed=seeds, box=boxes)
def test_finish_can_be_asked_for_before_the_end(seed, box):
    case = Case.draw(seed, box, 6)
    accumulator = Accumulator(box, PIXEL, dtype=torch.float64)
    for rows in (slice(0, 2), slice(2, 6)):
        variance, ctf, weights = (t[rows] for t in (case.variance, case.ctf, case.weights))
        accumulator.add(
            case.images[rows], case.views[rows], noise_variance=variance, ctf=ctf, weights=weights
        )
        early = accumulator.finish()
        assert_same(early, case.statistics(rows=slice(0, rows.stop)), ROUNDING)
    assert_same(accumulator.finish(), early, ROUNDING)


@given(seed=seeds, box=boxes)
def test_what_was_gathered_before_can_be_continued(seed, box):
    case = Case.draw(seed, box, 6)
    accumulator = Accumulator(
        box, PIXEL, dtype=torch.float64, start=case.statistics(rows=slice(0, 4))
    )
    last = slice(4, 6)
    variance, ctf, weights = (t[last] for t in (case.variance, case.ctf, case.weights))
    accumulator.add(
        case.images[last], case.views[last], noise_variance=variance, ctf=ctf, weights=weights
    )
    assert_same(accumulator.finish(), case.statistics(), ROUNDING)


def c4() -> Tensor:
    quarter = torch.tensor(
        [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64
    )
    return torch.stack([torch.linalg.matrix_power(quarter, i) for i in range(4)])


@given(seed=seeds, box=boxes)
def test_symmetry_is_the_mean_over_expanded_particles(seed, box):
    case = Case.draw(seed, box, 3)
    group = torch.cat(
        [c4(), c4() @ torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))]
    )  # D4
    found = case.statistics(symmetry=group)
    turned = [dataclasses.replace(case.views, rotation=case.views.rotation @ g) for g in group]
    expanded = [case.statistics(views=views, weights=case.weights / len(group)) for views in turned]
    whole = sum(expanded[1:], start=expanded[0])
    assert_same(found, whole, ROUNDING)
    assert (found.count, whole.count) == (3, 24)


@given(seed=seeds, box=st.sampled_from([9, 11]))
def test_symmetric_statistics_are_symmetric(seed, box):
    found = Case.draw(seed, box, 3).statistics(symmetry=c4())
    assert (
        error(found.b.rot90(1, (1, 2)), found.b) < 10 * ROUNDING
    )  # an odd box turns about its own centre


@given(seed=seeds, box=st.integers(6, 9))
@settings(max_examples=8)
def test_the_kernel_is_symmetric_and_not_negative(seed, box):
    case = Case.draw(seed, box, 3)
    statistics = case.statistics()
    one = case.sphere()
    two = case.sphere()
    scale = float(statistics.apply(one).norm() * one.norm())
    assert float((one * statistics.apply(two)).sum()) == pytest.approx(
        float((two * statistics.apply(one)).sum()), abs=ROUNDING * scale
    )
    assert float((one * statistics.apply(one)).sum()) >= 0
    _, matrix, _ = case.explicit()
    hidden = torch.linalg.eigh(matrix).eigenvectors[:, 0].view_as(one) * (
        one != 0
    )  # what three images do not see
    assert float((hidden * statistics.apply(hidden)).sum()) >= -GRIDDING * float(
        statistics.apply(hidden).norm() * hidden.norm()
    )


@pytest.mark.parametrize("backend", BACKENDS[1:])
@given(seed=seeds, box=boxes)
@settings(max_examples=6)
def test_float32_agrees_with_float64(backend, seed, box):
    case = Case.draw(seed, box)
    assert_same(case.statistics(backend), case.statistics(), SINGLE)


@needs_numba
@given(seed=seeds, threads=st.integers(2, 5))
@settings(max_examples=6)
def test_the_number_of_threads_changes_no_bit(seed, threads):
    case = Case.draw(seed, 10, 20)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = gridding_cells(case)
        torch.set_num_threads(threads)
        many = gridding_cells(case)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, many)


def gridding_cells(case: Case) -> Tensor:
    from instamap.fourier import gridding_numba

    grid = gridding.Grid(Cube.whole(case.box))
    plane = FourierPlane(case.box)
    data = plane.transform(case.images.float(), case.views.origin)
    gridding_numba.spread(grid, case.views.rotation[:, :2].float(), plane.points, data, data.abs())
    return grid.cells


@needs_numba
def test_accumulators_do_not_disturb_each_other_in_threads():
    cases = [Case.draw(seed, 10, 20) for seed in range(4)]
    alone = [case.statistics(("numba", torch.float32)) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda case: case.statistics(("numba", torch.float32)), cases))
    assert all(torch.equal(one.b, other.b) for one, other in zip(alone, together, strict=True))


@given(seed=seeds, box=boxes)
def test_infinite_variance_leaves_a_shell_out_and_one_row_serves_all(seed, box):
    case = Case.draw(seed, box)
    silent = case.variance.clone()
    silent[:, 2] = torch.inf
    k = grids.frequencies(box, 1 / box, dtype=torch.float64).norm(dim=-1).round() == 2
    spectrum = torch.fft.rfft2(case.images).masked_fill(k, 0)
    without = torch.fft.irfft2(spectrum, s=(box, box))
    assert_same(
        case.statistics(noise_variance=silent),
        case.statistics(images=without, ctf=case.ctf.masked_fill(k, 0)),
        ROUNDING,
    )
    level = case.variance[:1].expand(5, -1)
    accumulator = Accumulator(box, PIXEL, dtype=torch.float64)
    accumulator.add(
        case.images, case.views, noise_variance=case.variance[0], ctf=case.ctf, weights=case.weights
    )
    assert_same(accumulator.finish(), case.statistics(noise_variance=level), ROUNDING)


@given(seed=seeds, box=boxes)
def test_no_ctf_and_no_weights_mean_ones(seed, box):
    case = Case.draw(seed, box)
    ones = case.statistics(ctf=torch.ones_like(case.ctf), weights=torch.ones_like(case.weights))
    assert_same(case.statistics(ctf=None, weights=None), ones, ROUNDING)


@pytest.mark.parametrize("backend", BACKENDS)
@given(seed=seeds, box=boxes, cut=st.integers(0, 3), end=st.integers(0, 3))
@settings(max_examples=10)
def test_a_cube_has_of_the_images_what_the_whole_has_of_them_there(backend, seed, box, cut, end):
    """The whole's statistics are held against their definition above."""
    case = Case.draw(seed, box)
    cube = Cube(box, min(cut, box // 2), max(box // 2 + 1, box - end))
    found = case.statistics(backend, cube=cube)
    whole = case.statistics()
    expected = whole.crop(cube)
    assert found.cube == cube
    assert (found.count, found.weight) == (expected.count, pytest.approx(expected.weight))
    assert found.energy == pytest.approx(expected.energy, rel=1e-6)
    a_voxel_of_b = whole.b.square().mean().sqrt()
    assert (found.b.double() - expected.b).square().mean().sqrt() < RIM_GRIDDING * a_voxel_of_b
    volume = torch.randn(expected.b.shape, generator=case.generator, dtype=torch.float64)
    curved = found.to(torch.float64).apply(volume)
    error = curved - expected.apply(volume)
    assert error.norm() < RIM_GRIDDING * expected.apply(volume).norm()


def test_a_cube_beside_the_middle_is_refused():
    with pytest.raises(ValueError, match="lie beside its middle"):
        Accumulator(12, PIXEL, cube=Cube(12, 8, 12))


def test_the_empty_set_adds_nothing():
    case = Case.draw(0, 8)
    found = case.statistics()
    empty = Statistics.empty(Cube.whole(8), PIXEL, dtype=torch.float64)
    assert_same(found + empty, found, ROUNDING)
    assert Accumulator(8, PIXEL).finish().count == 0


@pytest.mark.parametrize("box", [8, 9])
def test_files_keep_everything(tmp_path, box):
    saved = Case.draw(0, box).statistics()
    saved.save(tmp_path / "half1.statistics")
    loaded = Statistics.load(tmp_path / "half1.statistics")
    for field in dataclasses.fields(Statistics):
        one = getattr(saved, field.name)
        other = getattr(loaded, field.name)
        assert type(one) is type(other)
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other
    assert [p.name for p in tmp_path.iterdir()] == ["half1.statistics"]


def test_files_that_are_no_statistics_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    with pytest.raises(DataError, match="do not exist"):
        Statistics.load(path)
    Statistics.empty(Cube.whole(4), 1.0).save(path)
    whole = path.read_bytes()
    for bad in (b"", b"not a file of arrays", whole[: len(whole) // 2]):
        path.write_bytes(bad)
        with pytest.raises(DataError, match="not a whole file"):
            Statistics.load(path)
    path.write_bytes(whole)
    arrays = read_npz(path)
    for change in ({"version": np.array(99)}, {"extra": np.array(1)}):
        write_npz(path, arrays | change)
        with pytest.raises(DataError, match="does not hold statistics of version"):
            Statistics.load(path)
    write_npz(path, arrays | {"b": np.zeros((4, 4, 2), np.float32)})
    with pytest.raises(DataError, match=r"shapes \(4, 4, 2\) and .* not of 4 voxels an edge"):
        Statistics.load(path)
    np.savez(path, **arrays)
    with pytest.raises(DataError, match="not a whole file of statistics: it has no checksum"):
        Statistics.load(path)
    np.savez(path, **(arrays | {"sha256": np.array("0" * 64)}))
    with pytest.raises(DataError, match="not a whole file of statistics: its checksum differs"):
        Statistics.load(path)
    with pytest.raises(OutputError, match="cannot be written"):
        Statistics.empty(Cube.whole(4), 1.0).save(tmp_path / "absent" / "x.npz")


@pytest.mark.parametrize(
    "other",
    [Statistics.empty(Cube.whole(10), PIXEL), Statistics.empty(Cube.whole(8), 1.01 * PIXEL)],
)
def test_sets_of_different_lattices_do_not_add(other):
    with pytest.raises(DataError, match="cannot be added"):
        Statistics.empty(Cube.whole(8), PIXEL) + other


def spoil(tensor: Tensor, value: float) -> Tensor:
    spoilt = tensor.clone()
    spoilt.view(-1)[-1] = value
    return spoilt


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (lambda c: {"images": spoil(c.images, torch.nan)}, "image 4 of a batch"),
        (lambda c: {"ctf": spoil(c.ctf.flip(1, 2), torch.inf).flip(1, 2)}, "image 4 of a batch"),
        (lambda c: {"weights": spoil(c.weights, torch.nan)}, "image 4 of a batch"),
        (
            lambda c: {
                "views": dataclasses.replace(c.views, rotation=spoil(c.views.rotation, 2.0))
            },
            "view 4 of a batch",
        ),
        (
            lambda c: {
                "views": dataclasses.replace(c.views, rotation=spoil(c.views.rotation, torch.nan))
            },
            "view 4 of a batch",
        ),
        (lambda c: {"noise_variance": spoil(c.variance, 0.0)}, "must be positive"),
        (lambda c: {"noise_variance": spoil(c.variance, torch.nan)}, "must be positive"),
        (lambda c: {"images": c.images[:, :6]}, "needed are 8 x 8 images"),
        (lambda c: {"images": c.images[:4]}, "with 5 views"),
    ],
)
def test_what_would_spoil_all_is_refused(changes, said):
    case = Case.draw(0, 8)
    with pytest.raises(DataError, match=said):
        case.statistics(**changes(case))


def test_backends_are_checked():
    with pytest.raises(OptionError, match="backend 'fast' is unknown"):
        Accumulator(8, PIXEL, backend="fast")
    with pytest.raises(OptionError, match="needs the package numba, float32 and a CPU"):
        Accumulator(8, PIXEL, backend="numba", dtype=torch.float64)
    assert Accumulator(8, PIXEL).backend == ("numba" if NUMBA else "torch")
    assert Accumulator(8, PIXEL, dtype=torch.float64).backend == "torch"


@pytest.mark.parametrize("box", [4, 7, 64, 100, 127, 256])
def test_grids_are_large_enough_and_quick_to_transform(box):
    size = kaiser_bessel.grid_size(2 * box, gridding.OVERSAMPLING)
    assert 2.5 * box <= size <= 3.5 * box and size % 2 == 0
    assert np.gcd(size, 30**10) == size


def test_the_window_transforms_to_its_closed_form():
    d = (
        torch.arange(20000, dtype=torch.float64) + 0.5
    ) / 20000 * kaiser_bessel.WIDTH - kaiser_bessel.WIDTH / 2
    x = torch.linspace(0, 0.4, 9, dtype=torch.float64)
    integral = (kaiser_bessel.window(d) * torch.cos(2 * math.pi * x[:, None] * d)).mean(
        1
    ) * kaiser_bessel.WIDTH
    torch.testing.assert_close(kaiser_bessel.window_transform(x), integral, rtol=1e-6, atol=1e-9)
