"""Coordinates of particles: what images say of maps against explicit sums, subspaces and states
against motions that are known.
"""

import math
from itertools import pairwise

import mrcfile
import numpy as np
import pytest
import starfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr
from torch import Tensor

from instamap.data.particles import Particles
from instamap.fit.conformations import States
from instamap.fit.normal import Normal
from instamap.fit.objective import Evidence
from instamap.fourier.ctf import ctf
from instamap.geometry import grids, rotations
from instamap.maps import mask
from instamap.model import Model, compose
from instamap.motion import linear_subspace, posterior, state_mixture
from instamap.plugin.choice import choose, default_parts
from instamap.scene import Scene
from instamap.simulate import particle_set
from instamap.statistics.accumulator import Components
from instamap.statistics.particle_statistics import CUT, RANK, Coarse, rescaled, sparse

# Slices err by 3e-4 of the norm for white noise, spreading by as much (see test_statistics);
# squares and single images by a few times more.
GRIDDING = 3e-3
BOX = 16
PIXEL = 5.0
SIGMA = 1.6  # SIGMA: of blobs, in voxels
seeds = st.integers(0, 2**32 - 1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def off(found: Tensor, wanted: Tensor) -> float:
    """Distance relative to the norm."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


# What images say of maps

SMALL = 10
COUNT = 9
UNIT = torch.tensor([7, 2, 7, 2, 2, 40, 40, 7, 5])  # any numbers: of particles with 1 to 3 images


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "premultiplied"])
def particles(request, tmp_path_factory) -> Particles:
    """A handful of images with CTFs, shifts and two noise spectra."""
    star = particle_set.demo(
        tmp_path_factory.mktemp("data"),
        count=COUNT,
        box=SMALL,
        pixel_size=PIXEL,
        snr=0.5,
    )
    if request.param:
        tables = starfile.read(star)
        tables["optics"]["rlnCtfDataAreCtfPremultiplied"] = 1
        starfile.write(tables, star, overwrite=True)
        with mrcfile.open(star.parent / "particles.mrcs", "r+") as stack:
            transfer = ctf(Particles.open(star).views.optics, SMALL, PIXEL)
            images = torch.from_numpy(stack.data.copy()).double()
            stack.set_data(
                torch.fft.irfft2(torch.fft.rfft2(images) * transfer, s=(SMALL, SMALL))
                .float()
                .numpy()
            )
    return Particles.open(star)


@pytest.fixture(scope="module")
def variance() -> Tensor:
    return 0.5 + torch.rand(1, SMALL // 2 + 1, generator=seeded(3), dtype=torch.float64)


@pytest.fixture(scope="module")
def coarse(particles, variance) -> Coarse:
    return Coarse.read(particles, torch.arange(COUNT), variance, UNIT)


@pytest.fixture(scope="module")
def explicit(particles, variance) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Of each image, over all |k| < D/2: the matrix "K N³" that predicts C F of a map, the data as
    they are to be held against it, and 1 / (D² σ²).
    """
    n = SMALL
    views = particles.views
    k = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)
    ky, kx = (a.flatten() for a in torch.meshgrid(k, k, indexing="ij"))
    inside = torch.hypot(kx, ky) < n / 2 - 1e-6
    ky = ky[inside]
    kx = kx[inside]
    row = torch.where(kx >= 0, ky, -ky).long() % n
    column = kx.abs().long()
    plane = torch.stack([kx, ky], -1) / (n * PIXEL)

    def wave(frequency, at):
        return torch.exp(-2j * math.pi * (frequency @ at.T))

    pixels, voxels = (
        f(n, PIXEL, dtype=torch.float64).flatten(0, -2)
        for f in (grids.pixel_centres, grids.voxel_centres)
    )
    transfer = ctf(views.optics, n, PIXEL)
    images = particles.images(torch.arange(COUNT)).double()
    matrices = []
    data = []
    weights = []
    for i in range(COUNT):
        slices = (
            wave(plane, -views.origin[i][None])
            * PIXEL
            * wave(plane @ views.rotation[i, :2], voxels)
        )
        seen = wave(plane, pixels) @ images[i].flatten().to(torch.complex128)
        c = transfer[i, row, column]
        weights.append(1 / (n * n * variance[0, torch.hypot(kx, ky).round().long()]))
        matrices.append(c[:, None] * slices)
        # Aᴴ C y: of a premultiplied image, C is in the data.
        data.append(slices.mH @ ((seen if particles.premultiplied else c * seen) * weights[-1]))
    return matrices, data, weights


def inside_sphere(*shape: int) -> Tensor:
    inside = grids.voxel_centres(SMALL, 1.0).norm(dim=-1) <= SMALL // 2 - 0.5
    return torch.randn(*shape, SMALL, SMALL, SMALL, generator=seeded(1)) * inside


@pytest.mark.parametrize("count", [1, 3, RANK + 4], ids=["one", "some", "more than a basis"])
def test_evidence_is_the_sum_over_images(coarse, explicit, count):
    maps = inside_sphere(min(count, 3))
    if count > 3:  # of a subspace, which a basis holds
        maps = torch.einsum("cj,jzyx->czyx", torch.randn(count, 3, generator=seeded(2)), maps)
    gram, h = coarse.evidence(maps)
    flat = maps.flatten(1).T.to(torch.complex128)
    names = UNIT.unique()
    assert coarse.count == len(names) == 4 and gram.dtype == h.dtype == torch.float64
    for number, name in enumerate(names.tolist()):
        wanted_gram = 0
        wanted_h = 0
        for i in (name == UNIT).nonzero()[:, 0].tolist():
            seen = explicit[0][i] @ flat
            right = explicit[1][i]
            w = explicit[2][i]
            wanted_gram = wanted_gram + (seen.mH @ (w[:, None] * seen)).real
            wanted_h = wanted_h + (right.conj() @ flat).real
        assert off(gram[number], wanted_gram) < GRIDDING
        assert float((h[number] - wanted_h).norm()) < GRIDDING * float(
            wanted_gram.diagonal().sum().sqrt() + wanted_h.norm()
        )


def test_statistics_are_the_sum_over_images_with_their_particles_weights(coarse, explicit):
    power = torch.tensor(
        [1.3, -0.4, 0.7, 0.0], dtype=torch.float64
    )  # by the units' order; the last does not count
    data = torch.tensor([0.2, 1.0, 0.0, 0.0], dtype=torch.float64)
    volume = inside_sphere()
    found = coarse.statistics(power, data)
    b = 0
    kv = 0
    kept = (UNIT.max() != UNIT).nonzero()[:, 0].tolist()
    for i in kept:
        number = int((UNIT.unique() == UNIT[i]).nonzero())
        seen = explicit[0][i] @ volume.flatten().to(torch.complex128)
        b = b + data[number] * explicit[1][i].real
        kv = kv + power[number] * (explicit[0][i].mH @ (explicit[2][i] * seen)).real
    ball = (grids.voxel_centres(SMALL, 1.0).norm(dim=-1) <= SMALL // 2 - 0.5).flatten()
    assert off(found.b.flatten()[ball], b[ball]) < GRIDDING
    assert off(found.apply(volume).flatten()[ball], kv[ball]) < GRIDDING
    assert found.count == len(kept) == 7
    assert found.weight == pytest.approx(
        float(power[:3] @ torch.tensor([3, 1, 3], dtype=torch.float64))
    )  # over images, as in Statistics


def test_statistics_and_evidence_tell_the_same_likelihood(coarse):
    """log p(V) = h - ½ G by particles, and -loss of the statistics of all of them."""
    volume = inside_sphere()
    gram, h = coarse.evidence(volume[None])
    weights = torch.tensor([1.0, 0.5, 0.0, 2.0], dtype=torch.float64)
    wanted = -float(coarse.statistics(weights).loss(volume))
    gain = weights @ (h[:, 0] - 0.5 * gram[:, 0, 0])
    assert float(gain) == pytest.approx(wanted, abs=GRIDDING * float(weights @ gram[:, 0, 0]))


def test_some_particles_are_those(coarse):
    maps = inside_sphere(2)
    gram, h = coarse.evidence(maps)
    kept = torch.tensor([3, 1])
    some = coarse.some(kept)
    assert some.count == 2 and len(some.data) == 3
    for whole, part in zip((gram, h), some.evidence(maps), strict=True):
        torch.testing.assert_close(
            part, whole[kept.sort().values], rtol=1e-5, atol=1e-5 * float(whole.abs().max())
        )


@pytest.mark.parametrize(
    ("before", "after"), [(16, 24), (24, 16), (17, 24), (24, 17), (16, 16), (15, 23)]
)
def test_rescaled_maps_hold_the_same_density(before, after):
    edge = 48.0
    centre = torch.tensor([2.3, -4.1, 1.7])
    sigma = 4.5  # Å: so wide that no component is lost, and within the box

    def blob(box):
        return torch.exp(
            -(grids.voxel_centres(box, edge / box) - centre).square().sum(-1) / (2 * sigma**2)
        )

    torch.testing.assert_close(
        rescaled(torch.stack([blob(before), 3 * blob(before)]), after)[1],
        3 * blob(after),
        rtol=0,
        atol=1e-3,
    )


@given(seed=seeds, states=st.integers(2, 200))
def test_sparse_shares_leave_no_particle_out(seed, states):
    share = torch.softmax(
        3 * torch.randn(40, states, generator=seeded(seed), dtype=torch.float64), 1
    )
    kept = sparse(share)
    torch.testing.assert_close(kept.sum(1), share.sum(1))
    small = share < CUT * share.amax(1, keepdim=True)
    assert (kept[small] == 0).all() and (kept[~small] >= share[~small] - 1e-15).all()
    even = torch.full((3, states), 1 / states, dtype=torch.float64)
    torch.testing.assert_close(sparse(even), even)  # whatever their number


# Images of blobs: their transforms are known


def images(
    centre: Tensor, height: Tensor, level: float, generator: torch.Generator, per: int = 1
) -> Coarse:
    """`per` images of each particle, at random poses: Gaussians at `centre` "m B 3" (x, y, z in
    voxels) of `height` "m B".

    level: of 1 / (D² σ²), infinite for no noise.
    """
    part = Components(BOX, torch.float32, torch.device("cpu"))
    unit = torch.arange(len(centre)).repeat_interleave(per)
    frames = rotations.random(len(unit), generator=generator)[:, :2]
    q = torch.einsum("pk,nkx->npx", part.plane.double(), frames) / BOX
    shape = (
        (2 * math.pi) ** 1.5
        * SIGMA**3
        * torch.exp(-2 * (math.pi * SIGMA) ** 2 * q.square().sum(-1))
    )
    turn = torch.exp(-2j * math.pi * torch.einsum("npx,nbx->npb", q, centre.double()[unit]))
    seen = shape * (turn * height.double()[unit, None]).sum(-1)
    power = (1.0 if math.isinf(level) else level) * part.share.double().expand(len(unit), -1)
    noise = torch.randn(*seen.shape, 2, generator=generator, dtype=torch.float64)
    noise[..., 1] *= (part.shell > 0).double()  # the mean of an image is real
    if not math.isinf(level):
        seen = seen + torch.view_as_complex(noise) / (2 * power).sqrt()
    frames = frames.float().contiguous()
    return Coarse(
        BOX,
        PIXEL,
        (power * seen).to(torch.complex64),
        power.float().contiguous(),
        frames,
        part.plane,
        unit,
    )


def blob(*centre: float) -> Tensor:
    """The map of one Gaussian at x, y, z in voxels."""
    return torch.exp(
        -(grids.voxel_centres(BOX, 1.0) - torch.tensor(centre)).square().sum(-1) / (2 * SIGMA**2)
    )


def pair(here: Tensor, generator: torch.Generator, level: float = 0.02) -> Coarse:
    """A blob beside which there is as much of another as `here` "m" says."""
    centre = torch.tensor([[-3.0, 0, 0], [3, 1, -1]]).expand(len(here), -1, -1)
    return images(centre, torch.stack([torch.ones_like(here), here], 1), level, generator)


WINDOW = mask.sphere(BOX, 1.0, BOX / 2 - 0.5, 1.0)


def test_blobs_are_seen_where_they_are():
    """What the tests below are made of is what `Coarse.evidence` takes images for: the true map is
    the likeliest.
    """
    seen = pair(torch.ones(40), seeded(), math.inf)
    maps = torch.stack([blob(-3, 0, 0), blob(3, 1, -1)])
    gram, h = seen.evidence(maps)
    torch.testing.assert_close(gram.sum(2), h, rtol=0, atol=2e-3 * float(h.abs().max()))


# The linear subspace


def mean_map(coarse: Coarse) -> Tensor:
    return state_mixture.least_squares(
        coarse.statistics(torch.ones(coarse.count, dtype=torch.float64)), WINDOW, 5
    )


def test_what_comes_and_goes_is_a_subspace_of_one_dimension():
    g = seeded(1)
    here = torch.randint(0, 2, (400,), generator=g).float()
    fitted = pair(here, g)
    judge = pair(torch.randint(0, 2, (150,), generator=g).float(), g)
    found = linear_subspace.fit(fitted, judge, mean_map(fitted), WINDOW, 3, g)
    assert len(found.maps) == 2, found.held_out
    assert found.held_out[0] == 0 and found.held_out[1] > 1
    z = linear_subspace.coordinates(fitted, found.maps)
    assert z.shape == (400, 1)
    assert abs(np.corrcoef(z[:, 0].numpy(), here.numpy())[0, 1]) > 0.9
    pattern = blob(3, 1, -1)
    assert (
        abs(torch.corrcoef(torch.stack([found.maps[1].flatten(), pattern.flatten()]))[0, 1]) > 0.9
    )
    assert 0.6 < float(z.square().mean().sqrt()) < 1.5  # near the prior, after a few rounds of EM


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_of_one_structure_there_is_no_subspace(seed):
    g = seeded(seed)
    fitted = pair(torch.ones(300), g)
    judge = pair(torch.ones(150), g)
    found = linear_subspace.fit(fitted, judge, mean_map(fitted), WINDOW, 3, g)
    assert len(found.maps) == 1 and len(found.held_out) == 2


@given(seed=seeds, q=st.integers(1, 2))
def test_the_posterior_is_the_integral_over_coordinates(seed, q):
    g = seeded(seed)
    root = torch.randn(1, 5, q + 1, generator=g, dtype=torch.float64)
    gram = root.mT @ root
    h = 2 * torch.randn(1, q + 1, generator=g, dtype=torch.float64)
    axis = torch.linspace(-12, 12, 601 if q == 2 else 4801, dtype=torch.float64)
    z = torch.cartesian_prod(*[axis] * q).view(-1, q)
    c = torch.cat([torch.ones(len(z), 1, dtype=torch.float64), z], 1)
    log = (
        c @ h[0]
        - 0.5 * torch.einsum("nj,jk,nk->n", c, gram[0], c)
        - 0.5 * z.square().sum(1)
        - 0.5 * q * math.log(2 * math.pi)
    )
    mean, covariance, found = linear_subspace.posterior(gram, h)
    weight = torch.softmax(log, 0)
    torch.testing.assert_close(mean[0], weight @ z)
    torch.testing.assert_close(
        covariance[0],
        (weight[:, None] * z).T @ z - mean[0, :, None] * mean[0],
        rtol=1e-6,
        atol=1e-8,
    )
    assert float(found) == pytest.approx(
        float(torch.logsumexp(log, 0)) + q * math.log(float(axis[1] - axis[0])), abs=1e-8
    )


# States and their order


def arc(count: int) -> Tensor:
    """Places "K 3" along three quarters of a circle, so that the ends are nearer to each other than
    to the middle.
    """
    angle = torch.linspace(0, 1.5 * math.pi, count)
    return torch.stack([4 * angle.cos(), 4 * angle.sin(), torch.zeros(count)], -1)


@given(seed=seeds)
def test_states_are_put_in_order_along_their_path(seed):
    g = seeded(seed)
    order = torch.randperm(12, generator=g)
    maps = torch.stack([blob(*place) for place in arc(12)[order].tolist()]) + 0.01 * torch.randn(
        12, BOX, BOX, BOX, generator=g
    )
    place = state_mixture.embed(maps, WINDOW, 1)
    assert sorted(place[:, 0].tolist()) == list(range(12))
    assert place[:, 0].tolist() in (order.double().tolist(), (11 - order).double().tolist())


@given(seed=seeds)
def test_states_of_two_coordinates_are_spread_as_they_lie(seed):
    g = seeded(seed)
    where = torch.cartesian_prod(torch.linspace(-3, 3, 5), torch.linspace(-2, 2, 4))[
        torch.randperm(20, generator=g)
    ]
    maps = torch.stack([blob(x, y, 0.0) for x, y in where.tolist()]) + 0.01 * torch.randn(
        20, BOX, BOX, BOX, generator=g
    )
    place = state_mixture.embed(maps, WINDOW, 2)
    known = torch.cat([place, torch.ones(20, 1, dtype=place.dtype)], 1)
    rest = where.double() - known @ torch.linalg.lstsq(known, where.double()).solution
    assert (rest.square().mean(0) < 0.05 * where.double().var(0)).all()


@given(seed=seeds, count=st.integers(3, 8))
def test_one_coordinate_is_the_share_of_particles_below(seed, count):
    g = seeded(seed)
    place = torch.randperm(count, generator=g)[:, None].double()
    node = torch.randint(0, count, (50,), generator=g)
    z = state_mixture.scaled(place, torch.nn.functional.one_hot(node, count).double())
    ranks = rankdata(place[node, 0].numpy())  # of equal ones the mean, counted from 1
    np.testing.assert_allclose(z[node, 0].numpy(), 2 * (ranks - 0.5) / 50 - 1, atol=1e-12)


@given(seed=seeds)
def test_several_coordinates_have_unit_rms(seed):
    g = seeded(seed)
    place = torch.randn(7, 3, generator=g, dtype=torch.float64)
    share = torch.rand(60, 7, generator=g, dtype=torch.float64)
    share = share / share.sum(1, keepdim=True)
    each = share @ state_mixture.scaled(place, share)
    torch.testing.assert_close(
        each.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(
        share.mean(0) @ state_mixture.scaled(place, share).square(),
        torch.ones(3, dtype=torch.float64),
    )


def test_what_neighbours_share_is_a_partition():
    place = torch.tensor([[0.0], [1], [2], [3]], dtype=torch.float64)
    shared = state_mixture.neighbours(place, 0.5)
    torch.testing.assert_close(shared.sum(1), torch.ones(4, dtype=torch.float64))
    assert float(shared[1, 0] / shared[1, 1]) == pytest.approx(math.exp(-2)), "one step is two σ"


def test_a_blob_on_a_curve_is_ordered():
    """From images alone: a subspace, states, their order; the path is three quarters of a circle,
    so no principal axis orders it.
    """
    g = seeded(5)
    share = torch.rand(900, generator=g)
    angle = 1.5 * math.pi * share
    moving = torch.stack([4 * angle.cos(), 4 * angle.sin(), torch.zeros(900)], -1)
    still = torch.tensor([0.0, 0, 3]).expand(900, 3)
    seen = images(torch.stack([still, moving], 1), torch.ones(900, 2), 0.02, g)
    fitted = seen.some(torch.arange(750))
    judge = seen.some(torch.arange(750, 900))
    linear = linear_subspace.fit(fitted, judge, mean_map(fitted), WINDOW, 3, g)
    found = state_mixture.fit(fitted, judge, linear.maps, WINDOW, 7, 1, g)
    z = posterior.posterior(fitted, found.maps, found.z)[0][:, 0]
    assert abs(spearmanr(z.numpy(), share[:750].numpy()).statistic) > 0.95
    assert (found.z[:, 0].diff() > 0).all() and found.held_out > 1
    # Mid-ranks: uniform over the particles, whatever their distribution.
    assert float(z.mean()) == pytest.approx(0, abs=0.1) and float(z.std()) == pytest.approx(
        1 / math.sqrt(3), rel=0.15
    )


# Coordinates by given states


@pytest.mark.parametrize("per", [1, 2])
def test_coordinates_of_a_moving_blob_are_found_between_states(per):
    g = seeded(2)
    z = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    at = 2 * torch.rand(60, generator=g) - 1
    maps = torch.stack([blob(3.0 * float(k), 0.0, 0.0) for k in z])
    centre = torch.stack([3 * at, torch.zeros(60), torch.zeros(60)], -1)
    seen = images(centre[:, None], torch.ones(60, 1), 5.0, g, per)
    order = torch.randperm(9, generator=g)
    found, share, _ = posterior.posterior(seen, maps[order], z[order])
    assert posterior.spacing(z) == pytest.approx(0.25)
    error = (found[:, 0] - at).abs()
    # A view along the motion shows none: of 60 particles a few are seen so.
    assert float(error.median()) < 0.1 * 0.25 and float((error < 0.25).double().mean()) > 0.9
    torch.testing.assert_close(share.sum(1), torch.ones(60, dtype=torch.float64))


def test_log_p_of_a_particle_is_that_of_all_states_together():
    g = seeded(4)
    seen = images(torch.zeros(5, 1, 3), torch.ones(5, 1), 0.02, g)
    maps = torch.stack([blob(k, 0.0, 0.0) for k in (-1.0, 0.0, 1.5)])
    found = posterior.posterior(seen, maps, torch.tensor([[-1.0], [0], [1.5]]))[2]
    each = torch.stack([state_mixture.log_prob(seen, m[None])[:, 0] for m in maps], 1)
    torch.testing.assert_close(found, each.exp().mean(1).log(), rtol=1e-6, atol=1e-6)


def test_one_state_is_where_all_are():
    seen = images(torch.zeros(3, 1, 3), torch.ones(3, 1), 0.02, seeded())
    found, share, _ = posterior.posterior(
        seen, blob(0.0, 0.0, 0.0)[None], torch.tensor([[0.4]], dtype=torch.float64)
    )
    torch.testing.assert_close(found, torch.full((3, 1), 0.4, dtype=torch.float64))
    assert (share == 1).all()


# The objective of states


@pytest.fixture(scope="module")
def model() -> Model:
    """A voxel map that a bending field with two coordinates leaves alone."""
    parts = default_parts("bending-field") | {
        "representation": choose("representation", "voxel", ["floor=none"]),
        "deformation": choose("deformation", "bending-field", ["latent=2", "points=6"]),
    }
    torch.manual_seed(0)
    made = compose(
        parts, Scene(BOX, PIXEL, noise_variance=torch.ones(1, BOX // 2 + 1), mask=WINDOW)
    )
    with torch.no_grad():
        made.representation.values[0, 0] = blob(-2, 0, 0) + blob(2, 1, 0)
    return made


@pytest.fixture(scope="module")
def data() -> list:
    """Statistics of three states."""
    g = seeded(6)
    each = [
        images(
            torch.tensor([[-2.0, 0, 0], [2, float(y), 0]]).expand(30, -1, -1),
            torch.ones(30, 2),
            0.02,
            g,
        )
        for y in (-1, 0, 2)
    ]
    return [one.statistics(torch.ones(30, dtype=torch.float64)) for one in each]


def test_one_state_without_bending_is_the_engine_of_normal_equations(model, data):
    states = States(States.Options(jitter=0.0), model, data[:1], data[1:2], torch.zeros(1, 2))
    normal = Normal(
        Normal.Options(jitter=0.0), model, Evidence(statistics=data[0], held_out_statistics=data[1])
    )
    one, other = (float(objective(model, seeded()).detach()) for objective in (states, normal))
    assert one == pytest.approx(other, rel=1e-6) and abs(one) > 1
    for objective in (states, normal):
        objective.follow(model, 0.0)
    assert states.held_out() == pytest.approx(normal.held_out(), rel=1e-6)


def stirred(model: Model) -> Model:
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.deformation.named_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) if "decoder" in name else 0.0)
    return model


def test_states_add_up(model, data):
    """With all states in a step, the loss per image is the mean of theirs, weighted by how many
    images each has.
    """
    import copy

    bent = stirred(copy.deepcopy(model))
    z = torch.tensor([[-1.0, 0], [0, 0.5], [1, 1]])
    weighted = [one.scaled(w) for one, w in zip(data, (1.0, 0.2, 0.6), strict=True)]
    quiet = States.Options(jitter=0.0)
    whole = float(States(quiet, bent, weighted, weighted, z)(bent, seeded()).detach())
    each = [
        float(States(quiet, bent, [s], [s], z[k : k + 1])(bent, seeded()).detach()) * s.weight
        for k, s in enumerate(weighted)
    ]
    assert whole == pytest.approx(sum(each) / sum(s.weight for s in weighted), rel=1e-6)
    assert max(abs(a - b) for a, b in pairwise(each)) > 1, "states differ"


def test_the_gradient_is_that_of_the_loss(model, data):
    import copy

    bent = stirred(copy.deepcopy(model))
    z = torch.tensor([[-1.0, 0], [0, 0.5], [1, 1]])
    objective = States(States.Options(jitter=0.0), bent, data, data, z)
    objective(bent, seeded()).backward()
    for part in (bent.representation, bent.deformation):
        parameters = [p for p in part.parameters() if p.grad is not None and p.grad.abs().max() > 0]
        assert parameters
        steps = [p.grad / p.grad.norm() for p in parameters]
        slope = sum(
            float((p.grad * s).double().sum()) for p, s in zip(parameters, steps, strict=True)
        )
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                for p, s in zip(parameters, steps, strict=True):
                    p.add_(sign * 1e-3 * s)
                losses.append(float(objective(bent, seeded())))
                for p, s in zip(parameters, steps, strict=True):
                    p.sub_(sign * 1e-3 * s)
        assert (losses[0] - losses[1]) / 2e-3 == pytest.approx(slope, rel=0.02)


def test_the_kept_model_follows_the_fitted_one(model, data):
    import copy

    moved = copy.deepcopy(model)
    objective = States(States.Options(), moved, data, data, torch.zeros(3, 2))
    with torch.no_grad():
        moved.representation.values.add_(1.0)
    objective.follow(moved, 0.75)
    torch.testing.assert_close(
        objective.state()["representation.values"], model.representation.values + 0.25
    )
    before = objective.state()
    objective.follow(moved, 0.0)
    objective.restore(before)
    torch.testing.assert_close(
        objective.map(), model.eval().raster() + 0.25 * (model.raster() != 0), rtol=0, atol=0.26
    )
