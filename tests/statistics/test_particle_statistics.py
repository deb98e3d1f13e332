"""Statistics of single particles: what images say of maps, against explicit sums."""

import math
from dataclasses import replace

import mrcfile
import pytest
import starfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.blobs import blob, pair, seeded
from torch import Tensor

from instamap.data.particles import Particles
from instamap.fourier.ctf import ctf
from instamap.geometry import grids
from instamap.simulate import particle_set
from instamap.statistics import particle_statistics
from instamap.statistics.accumulator import Accumulator
from instamap.statistics.particle_images import BASIS_MAPS
from instamap.statistics.particle_statistics import (
    MIN_RELATIVE_SHARE,
    ParticleStatistics,
    drop_small_shares,
)

# Slices err by 3e-4 of the norm for white noise, spreading by as much (see test_statistics);
# squares and single images by a few times more.
GRIDDING = 3e-3
PIXEL = 5.0
seeds = st.integers(0, 2**32 - 1)


def off(found: Tensor, wanted: Tensor) -> float:
    """Distance relative to the norm."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


SMALL = 10
COUNT = 9
PARTICLE = torch.tensor(
    [7, 2, 7, 2, 2, 40, 40, 7, 5]
)  # any numbers: of particles with 1 to 3 images


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
def coarse(particles, variance) -> ParticleStatistics:
    return ParticleStatistics.read(particles, torch.arange(COUNT), variance, PARTICLE)


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


@pytest.mark.parametrize("count", [1, 3, BASIS_MAPS + 4], ids=["one", "some", "more than a basis"])
def test_normal_equations_are_the_sum_over_images(coarse, explicit, count):
    maps = inside_sphere(min(count, 3))
    if count > 3:  # of a subspace, which a basis holds
        maps = torch.einsum("cj,jzyx->czyx", torch.randn(count, 3, generator=seeded(2)), maps)
    gram, h = coarse.normal_equations(maps)
    flat = maps.flatten(1).T.to(torch.complex128)
    names = PARTICLE.unique()
    assert coarse.count == len(names) == 4 and gram.dtype == h.dtype == torch.float64
    for number, name in enumerate(names.tolist()):
        wanted_gram = 0
        wanted_h = 0
        for i in (name == PARTICLE).nonzero()[:, 0].tolist():
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
    sums, kernels = coarse.weighted_sums(data[:, None], power[:, None])
    found = replace(coarse.statistics(power), b=sums[0], kernel=kernels[0])
    b = 0
    kv = 0
    kept = (PARTICLE.max() != PARTICLE).nonzero()[:, 0].tolist()
    for i in kept:
        number = int((PARTICLE.unique() == PARTICLE[i]).nonzero())
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


def test_sums_with_many_weights_are_those_with_each(coarse):
    """To the last bit, which the compiled form promises and so no fit may change by."""
    generator = seeded(8)
    data = torch.randn(coarse.count, 2, generator=generator, dtype=torch.float64)
    power = torch.randn(coarse.count, 5, generator=generator, dtype=torch.float64)
    b, kernels = coarse.weighted_sums(data, power)
    assert b.shape == (2, SMALL, SMALL, SMALL)
    assert kernels.shape == (5, SMALL + 1, 2 * SMALL, 2 * SMALL)
    for found, weights in zip(b, data.T, strict=True):
        assert torch.equal(found, coarse.statistics(weights).b)
    for found, weights in zip(kernels, power.T, strict=True):
        assert torch.equal(found, coarse.statistics(weights).kernel)


def test_sums_do_not_depend_on_how_many_are_gathered_at_once(coarse, monkeypatch):
    weights = torch.randn(coarse.count, 5, generator=seeded(9), dtype=torch.float64)
    together = coarse.weighted_sums(weights, weights)
    monkeypatch.setattr(particle_statistics, "SUMS_AT_ONCE", 1)
    for found, wanted in zip(coarse.weighted_sums(weights, weights), together, strict=True):
        assert torch.equal(found, wanted)


def test_statistics_and_normal_equations_tell_the_same_likelihood(coarse):
    """log p(V) = h - ½ G by particles, and -loss of the statistics of all of them."""
    volume = inside_sphere()
    gram, h = coarse.normal_equations(volume[None])
    weights = torch.tensor([1.0, 0.5, 0.0, 2.0], dtype=torch.float64)
    wanted = -float(coarse.statistics(weights).loss(volume))
    gain = weights @ (h[:, 0] - 0.5 * gram[:, 0, 0])
    assert float(gain) == pytest.approx(wanted, abs=GRIDDING * float(weights @ gram[:, 0, 0]))


def test_some_particles_are_those(coarse):
    maps = inside_sphere(2)
    gram, h = coarse.normal_equations(maps)
    kept = torch.tensor([3, 1])
    some = coarse.select(kept)
    assert some.count == 2 and len(some.data) == 3
    for whole, part in zip((gram, h), some.normal_equations(maps), strict=True):
        torch.testing.assert_close(
            part, whole[kept.sort().values], rtol=1e-5, atol=1e-5 * float(whole.abs().max())
        )


@given(seed=seeds, states=st.integers(2, 200))
def test_dropping_small_shares_leaves_no_particle_out(seed, states):
    share = torch.softmax(
        3 * torch.randn(40, states, generator=seeded(seed), dtype=torch.float64), 1
    )
    kept = drop_small_shares(share)
    torch.testing.assert_close(kept.sum(1), share.sum(1))
    small = share < MIN_RELATIVE_SHARE * share.amax(1, keepdim=True)
    assert (kept[small] == 0).all() and (kept[~small] >= share[~small] - 1e-15).all()
    even = torch.full((3, states), 1 / states, dtype=torch.float64)
    torch.testing.assert_close(drop_small_shares(even), even)  # whatever their number


def test_blobs_are_seen_where_they_are():
    """What these tests are made of is what `normal_equations` takes images for: the true map is the
    likeliest.
    """
    seen = pair(torch.ones(40), seeded(), math.inf)
    maps = torch.stack([blob(-3, 0, 0), blob(3, 1, -1)])
    gram, h = seen.normal_equations(maps)
    torch.testing.assert_close(gram.sum(2), h, rtol=0, atol=2e-3 * float(h.abs().max()))


def test_aberrations_are_undone_as_in_accumulation(tmp_path):
    """The statistics of all images are the accumulator's, with beam tilt, Zernike terms and a
    distortion too.
    """
    star = particle_set.demo(tmp_path, count=20, box=12, pixel_size=PIXEL, snr=0.5)
    tables = starfile.read(star)
    aberrations = {
        "rlnBeamTiltX": 30.0,
        "rlnBeamTiltY": -20.0,
        "rlnOddZernike": "[5,-8,400,0,0,200]",
        "rlnEvenZernike": "[0.3,30,-7,40,2000,-800,-1800,700,900]",
        "rlnMagMat00": 1.04,
        "rlnMagMat01": 0.03,
        "rlnMagMat10": -0.02,
        "rlnMagMat11": 0.97,
    }
    for name, value in aberrations.items():
        tables["optics"][name] = value
    plain = Particles.open(star)
    starfile.write(tables, star, overwrite=True)
    particles = Particles.open(star)
    rows = torch.arange(20)
    variance = torch.ones(int(particles.views.group.max()) + 1, 7)
    found = {}
    for name, opened in (("aberrant", particles), ("plain", plain)):
        read = ParticleStatistics.read(opened, rows, variance, rows)
        accumulator = Accumulator(12, PIXEL)
        batch = opened.batch(rows)
        transfer = ctf(batch.views.optics, 12, PIXEL)
        accumulator.add(batch.images, batch.views, noise_variance=torch.ones(7), ctf=transfer)
        found[name] = (read.statistics(read.unit_weights()), accumulator.finish())
    one, other = found["aberrant"]
    assert off(one.b, other.b) < GRIDDING and off(one.kernel, other.kernel) < GRIDDING
    assert off(found["plain"][0].b, other.b) > 0.3
