"""The engine of normal equations judges a map as the composed model does, image by image, and finds
nothing in noise.
"""

import itertools
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from torch import Tensor

from instamap.deform.identity import Identity
from instamap.fitting import loop
from instamap.fitting.images import MiniBatches
from instamap.fitting.lattice import Lattice
from instamap.fitting.normal import NormalEquations
from instamap.fitting.objective import ImageData, StatisticsData
from instamap.forward.ray import Ray
from instamap.fourier import ctf
from instamap.geometry import grids, rotations
from instamap.geometry.cube import Cube
from instamap.model import Model, compose, default_parts, part_classes
from instamap.parts import ForwardOperator, Representation
from instamap.plugin.choice import choose
from instamap.plugin.options import Options, RepresentationOptions
from instamap.plugin.registry import default
from instamap.representations.voxel import Voxel
from instamap.scene import Batch, Optics, Scene, Views
from instamap.statistics.accumulator import Accumulator
from instamap.statistics.statistics import Statistics
from instamap.testing import scenes

# The statistics' spreading errs by 2e-4 of the norm for typical draws, by five times as much at
# unlucky poses (see test_statistics).
GRIDDING = 2e-3
ROUNDING = 1e-11
seeds = st.integers(0, 2**32 - 1)


class Slices(ForwardOperator):
    """Exact central slices of the density's raster: P(k) = e^{2πi k·origin} Δ Σ_x V(x) e^{-2πi
    q·x}, q = Rᵀ(k, 0), for |k| < D/2.
    """

    def forward(self, density, views, *, generator=None):
        box = self.scene.box
        pixel = self.scene.pixel_size
        k = torch.fft.fftfreq(box, pixel, dtype=torch.float64)
        plane = torch.stack([*torch.meshgrid(k, k, indexing="ij")][::-1], -1).reshape(
            -1, 2
        )  # kx, ky of [ky, kx]
        inside = plane.norm(dim=-1) * pixel < 0.5 - 1e-9
        x = grids.voxel_centres(box, pixel, dtype=torch.float64).reshape(-1, 3)
        pixels = grids.pixel_centres(box, pixel, dtype=torch.float64).reshape(-1, 2)
        images = []
        for rotation, origin in zip(views.rotation.double(), views.origin.double(), strict=True):
            values = density(x[None])[0].to(torch.complex128)
            wave = torch.exp(-2j * torch.pi * (plane @ rotation[:2] @ x.T))
            spectrum = (
                pixel * (wave @ values) * torch.exp(2j * torch.pi * (plane @ origin)) * inside
            )
            images.append(
                (torch.exp(2j * torch.pi * (pixels @ plane.T)) @ spectrum).real.reshape(box, box)
                / box**2
            )
        return torch.stack(images)


class Known(Representation):
    """Gaussians, whose projections are known."""

    def __init__(self, options, scene: Scene, density: scenes.Gaussians):
        super().__init__(options, scene)
        self.density = density
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.density(x.reshape(1, -1, 3)).reshape(x.shape[:-1])


@dataclass
class Case:
    """Images, premultiplied by their CTF or not, and their statistics as the likelihood of `scene`
    weighs them.
    """

    scene: Scene
    batch: Batch
    likelihood: str

    @staticmethod
    def draw(
        seed: int,
        box: int,
        likelihood: str,
        premultiplied: bool,
        count: int = 4,
        signal: Tensor | float = 0.0,
        views=None,
    ) -> "Case":
        g = torch.Generator().manual_seed(seed)

        def uniform(low, high):
            return low + (high - low) * torch.rand(count, generator=g, dtype=torch.float64)

        def same(value):
            return torch.full((count,), value, dtype=torch.float64)

        optics = Optics(
            same(300.0),
            same(2.7),
            same(0.1),
            uniform(5e3, 9e3),
            uniform(5e3, 9e3),
            uniform(0, 3),
            same(0.2),
            same(30.0),
            same(0.9),
        )
        random = Views.of(
            rotations.random(count, generator=g),
            torch.randn(count, 2, generator=g, dtype=torch.float64),
        )
        group = torch.randint(0, 2, (count,), generator=g)
        views = replace(views or random, optics=optics, group=group)
        images = torch.randn(count, box, box, generator=g, dtype=torch.float64) + signal
        images = ctf.apply(images, optics, 2.0) if premultiplied else images
        spectrum = 0.5 + torch.rand(2, box // 2 + 1, generator=g, dtype=torch.float64)
        return Case(
            Scene(box, 2.0, count=count, premultiplied=premultiplied, noise_variance=spectrum),
            Batch(images, views),
            likelihood,
        )

    def judge(self):
        return (
            default()
            .get("likelihood", self.likelihood)
            .load()(choose("likelihood", self.likelihood, []).options, self.scene)
            .double()
        )

    def statistics(self, rows=slice(None), dtype=torch.float64) -> Statistics:
        some = self.batch[rows]
        accumulator = Accumulator(
            self.scene.box,
            2.0,
            premultiplied=self.scene.premultiplied,
            dtype=dtype,
            backend="torch",
        )
        transfer = ctf.ctf(some.views.optics, self.scene.box, 2.0)
        accumulator.add(
            some.images,
            some.views,
            noise_variance=self.judge().noise_variance(some.views),
            ctf=transfer,
        )
        return accumulator.finish()

    def model(self, representation: Representation, forward: ForwardOperator) -> Model:
        return (
            Model(
                self.scene, representation, Identity(Options(), self.scene), forward, self.judge()
            )
            .double()
            .eval()
        )

    def objective(self, model: Model, rows=slice(None)) -> NormalEquations:
        """The normal equations of some rows, which are also those that judge; without jitter, in
        float32 as in a run.
        """
        found = self.statistics(rows).to(torch.float32)
        return NormalEquations(
            NormalEquations.Options(jitter=0.0), model, StatisticsData(found, found)
        )


@pytest.mark.parametrize(
    ("likelihood", "premultiplied"),
    list(itertools.product(("gaussian", "coloured"), (False, True))),
)
@given(seed=seeds, box=st.integers(8, 11))
@hypothesis(max_examples=4)
def test_loss_is_minus_the_mean_log_prob_of_the_model(likelihood, premultiplied, seed, box):
    """Up to a constant: for a random map, beyond an empty one. Loss and gain can cancel, so errors
    are held against their parts' size.
    """
    case = Case.draw(seed, box, likelihood, premultiplied)
    model = case.model(
        Voxel(Voxel.Options(floor="none"), case.scene), Slices(Options(), case.scene)
    )
    values = model.representation.values
    with torch.no_grad():
        values.copy_(
            0.3
            * torch.randn(
                values.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
            )
        )
        volume = model.raster()
        expected = float(model.gain(case.batch).mean())
        norm = float((0.5 * volume * case.statistics().apply(volume)).sum()) / len(case.batch)
    exact = case.statistics()
    assert -float(exact.loss(volume)) / exact.weight == pytest.approx(
        expected, abs=GRIDDING * (norm + abs(expected))
    )
    # The objective itself rasters, crops and judges in float32.
    objective = case.objective(model.float())
    loss = objective(model, torch.Generator())
    objective.follow(model, 0.0)
    for found in (-float(loss.detach()), objective.held_out()):
        assert found == pytest.approx(expected, abs=GRIDDING * (norm + abs(expected)))
    torch.testing.assert_close(objective.map().double(), volume, rtol=1e-5, atol=1e-6)


@given(seed=seeds, box=st.integers(9, 12), low=st.integers(0, 3), cut=st.integers(0, 3))
@hypothesis(max_examples=8)
def test_cropped_statistics_judge_maps_in_the_crop_as_the_whole_does(seed, box, low, cut):
    case = Case.draw(seed, box, "coloured", False)
    high = box - cut
    whole = case.statistics()
    inner = slice(low, high)
    part = whole.crop(Cube(box, low, high))
    small = torch.randn(
        (high - low,) * 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).requires_grad_()
    large = torch.zeros((box,) * 3, dtype=torch.float64)
    large[inner, inner, inner] = small.detach()
    large.requires_grad_()
    one = part.loss(small)
    other = whole.loss(large)
    expected = torch.autograd.grad(other, large)[0][inner, inner, inner]
    assert float(one.detach()) == pytest.approx(
        float(other.detach()), rel=1e-9, abs=1e-9 * float(expected.norm() * small.detach().norm())
    )
    assert (
        float((torch.autograd.grad(one, small)[0] - expected).norm() / expected.norm()) < ROUNDING
    )


class Memory:
    """Particles that are in memory."""

    def __init__(self, batch: Batch):
        self.all = batch

    def batch(self, rows: Tensor) -> Batch:
        return self.all[rows]


@pytest.mark.parametrize("premultiplied", [False, True])
def test_both_engines_agree_on_held_out_images(premultiplied):
    """A density that a lattice of voxels resolves (σ of 1.4 pixels) and the sphere contains has the
    same images by rays as by slices: 6e-5 of it lies beyond Nyquist, 1e-6 is lost between samples,
    and the slices are spread onto a grid.
    """
    g = torch.Generator().manual_seed(4)
    box = 28
    scene = Scene(box, 2.0)
    views = Views.of(
        rotations.random(12, generator=g), torch.randn(12, 2, generator=g, dtype=torch.float64)
    )
    density = scenes.gaussians(scene, g)
    projection = density.projection(views, scene)
    unit = float(3 / projection.std())
    # Signal before the CTF: the images need not be the model's own, only judged alike.
    case = Case.draw(
        5, box, "coloured", premultiplied, count=12, signal=unit * projection, views=views
    )
    case.scene = replace(case.scene, density_scale=unit)
    known = Known(RepresentationOptions(floor="none"), case.scene, density)
    model = case.model(known, Ray(Ray.Options(padding=1.0), case.scene))
    held_out = torch.arange(8, 12)
    images = MiniBatches(
        MiniBatches.Options(batch=3), model, ImageData(Memory(case.batch), held_out[:0], held_out)
    )
    expected = images.held_out()
    model = model.float()
    normal = case.objective(model, held_out)
    with torch.no_grad():
        normal(model, torch.Generator())
    normal.follow(model, 0.0)
    assert abs(expected) > 100, "nothing is said of the map"
    assert normal.held_out() == pytest.approx(expected, rel=GRIDDING)
    torch.testing.assert_close(
        normal.map(), images.map().float(), rtol=1e-4, atol=1e-6 * float(images.map().max())
    )


@pytest.mark.parametrize("name", [part.name for part in default().parts("representation")])
def test_nothing_is_found_in_noise(name):
    """Whatever a map is made of, held-out noise is at no evaluation likelier than chance
    allows: ½ z² nats for the best of a few evaluations.
    """
    case = Case.draw(6, 16, "gaussian", False, count=160)
    case.batch = case.batch.to(torch.float32)
    scene = replace(case.scene, density_scale=0.02)  # about the noise in a map of these images
    rows = torch.arange(160)
    fitted, judging = (case.statistics(some).to(torch.float32) for some in (rows[:120], rows[120:]))
    data = StatisticsData(fitted, judging)
    torch.manual_seed(0)
    model = compose(
        {**default_parts(), "representation": choose("representation", name, [])}, scene
    )
    objective = NormalEquations(
        NormalEquations.Options(steps=40, evaluate_every=4, patience=10), model, data
    )
    fit = loop.optimise(model, objective, generator=torch.Generator().manual_seed(0))
    assert len(fit.evaluations) == 10 and fit.evaluations[-1].loss < 0, (
        "nothing was fitted, so nothing was shown"
    )
    assert max(40 * evaluation.held_out for evaluation in fit.evaluations) < 6


def test_the_average_is_that_of_the_rasters():
    """average <- decay · average + (1 - decay) · now, kept where the mask allows density and a
    voxel further, zero elsewhere.
    """
    case = Case.draw(7, 10, "gaussian", False)
    mask = torch.zeros(10, 10, 10)
    mask[3:6, 4:7, 3:7] = 1
    case.scene = replace(case.scene, mask=mask)
    model = case.model(
        Voxel(Voxel.Options(floor="none"), case.scene), Slices(Options(), case.scene)
    ).float()
    objective = case.objective(model)
    maps = []
    for level in (1.0, 3.0):
        with torch.no_grad():
            model.representation.values.fill_(level)
            objective(model, torch.Generator())
        objective.follow(model, 0.25)
        maps.append(objective.map())
    torch.testing.assert_close(maps[0], 0.75 * mask)
    torch.testing.assert_close(maps[1], (0.25 * 0.75 + 0.75 * 3.0) * mask)


def test_what_has_no_normal_equations_is_refused():
    def reason(**names):
        parts = default_parts(names.get("deformation", "identity"))
        classes = part_classes({**parts, **{k: choose(k, n, []) for k, n in names.items()}})
        return NormalEquations.reason_against(classes)

    assert reason() is None
    assert reason(likelihood="coloured") is None
    assert reason(deformation="rigid") == "deformation Rigid gives every particle its own density"
    assert reason(likelihood="correlation") == "likelihood Correlation is not Gaussian"


class Slope(Representation):
    """ρ(x) = x, along the first axis."""

    def __init__(self, options, scene: Scene):
        super().__init__(options, scene)
        self.one = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.one * x[..., 0]


@pytest.mark.parametrize("points", [1, 2, 3])
def test_oversampling_draws_a_point_in_each_part_of_the_cell(points):
    """The mean of s³ points, one in each small cell: its deviation on a slope is a cell / √12
    s^(5/2), and its mean the centre's value.
    """
    scene = Scene(12, 2.0, count=1, noise_variance=torch.ones(1, 7), mask=torch.ones(12, 12, 12))
    cell = 3.0
    composed = compose(default_parts(), scene)
    others = composed.deformation, composed.forward_operator, composed.likelihood
    model = Model(scene, Slope(RepresentationOptions(floor="none"), scene), *others)
    lattice = Lattice(model)
    still = lattice.raster(model)
    torch.testing.assert_close(
        still, lattice.raster(model, points=points), rtol=0, atol=0
    )  # nothing moves without jitter
    draws = torch.stack(
        [
            lattice.raster(
                model, cell=cell, points=points, generator=torch.Generator().manual_seed(i)
            )
            for i in range(4)
        ]
    )
    inner = (
        grids.voxel_centres(12, 2.0).abs().amax(-1) < 9
    )  # farther out the box's edge is in the cell
    off = (draws - still).detach()[:, inner]
    wanted = cell / 12**0.5 / points**2.5
    assert (
        float(off.std()) == pytest.approx(wanted, rel=0.05)
        and abs(float(off.mean())) < 5 * wanted / off.numel() ** 0.5
    )
    assert float(off.abs().max()) <= 0.5 * cell
