"""Noise levels: exact on few pixels, right on white noise, honest about what can't be measured."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instamap.data import noise
from instamap.data.particles import Particles
from instamap.errors import DataError
from instamap.fourier.ctf import ctf


@pytest.fixture(scope="session")
def make(write_star, write_stack, make_optics, make_particle):
    """make(folder, images, group of each image from 0, premultiplied) opens a set of them."""

    def write(
        folder: Path,
        images: np.ndarray,
        group: list[int] | None = None,
        premultiplied: bool = False,
    ) -> Particles:
        group = group or [0] * len(images)
        write_stack(folder / "s.mrcs", images.astype(np.float32))
        optics = [
            make_optics(rlnOpticsGroup=g + 1, rlnCtfDataAreCtfPremultiplied=int(premultiplied))
            for g in range(max(group) + 1)
        ]
        rows = [
            make_particle(
                rlnImageName=f"{i + 1}@s.mrcs", rlnOpticsGroup=g + 1, rlnDefocusU=1e4 + 500 * i
            )
            for i, g in enumerate(group)
        ]
        return Particles.open(write_star(folder / "a.star", {"optics": optics, "particles": rows}))

    return write


def level(levels: torch.Tensor, group: int, box: int) -> float:
    """The variance of a pixel that a spectrum stands for: its mean over all components of the
    plane.
    """
    k = np.fft.fftfreq(box, 1 / box)
    shell = np.minimum(np.rint(np.hypot(k[:, None], k[None])).astype(int), box // 2)
    return float(levels[group].numpy()[shell].mean())


def by_hand(images: np.ndarray) -> list[float]:
    """Variance outside box/2 of each image, pixel by pixel."""
    box = images.shape[-1]
    far = [
        (y, x)
        for y in range(box)
        for x in range(box)
        if (x - box // 2) ** 2 + (y - box // 2) ** 2 > box**2 / 4
    ]
    return [np.var([image[y, x] for y, x in far], ddof=1) for image in images]


@given(
    box=st.integers(6, 13),
    seed=st.integers(0, 2**31),
    groups=st.lists(st.integers(0, 2), min_size=1, max_size=5),
)
def test_exactly(make, box, seed, groups):
    random = np.random.default_rng(seed)
    images = random.normal(size=(len(groups), box, box)).astype(np.float32) * 3 + 5
    outside = by_hand(images.astype(np.float64))
    with tempfile.TemporaryDirectory() as folder:
        levels = noise.estimate(make(Path(folder), images, groups))
    assert levels.shape == (max(groups) + 1, box // 2 + 1)
    for g in range(max(groups) + 1):
        own = [v for v, h in zip(outside, groups, strict=True) if h == g] or outside
        assert level(levels, g, box) == pytest.approx(np.mean(own), rel=1e-9)
        assert (levels[g] > 0).all()


@pytest.mark.parametrize("box", [16, 17])
def test_premultiplied_exactly(tmp_path, make, box):
    images = np.random.default_rng(box).normal(size=(3, box, box))
    particles = make(tmp_path, images, premultiplied=True)
    stored = particles.images(torch.arange(3)).double().numpy()
    outside = by_hand(stored)
    half = ctf(particles.views.optics, box, particles.pixel_size).numpy()
    # every component, not one of each conjugate pair
    power = (
        sum(
            half[:, y, x] ** 2 if x <= box // 2 else half[:, -y, box - x] ** 2
            for y in range(box)
            for x in range(box)
        ).sum()
        / box**2
    )
    levels = noise.estimate(particles)
    assert level(levels, 0, box) == pytest.approx(sum(outside) / power, rel=1e-9)


def test_premultiplied_noise_has_the_level_of_the_unfiltered(tmp_path, make):
    """White noise of variance 4 times C: 300 images of 220 corner pixels, correlated by C, give it
    to a few per cent.
    """
    random = np.random.default_rng(1)
    box = 32
    plain = 2 * random.normal(size=(300, box, box))
    (tmp_path / "plain").mkdir()
    views = make(tmp_path / "plain", plain).views
    filtered = np.fft.irfft2(
        np.fft.rfft2(plain) * ctf(views.optics, box, 2.0).numpy(), s=(box, box)
    )
    levels = noise.estimate(make(tmp_path, filtered, premultiplied=True))
    assert level(levels, 0, box) == pytest.approx(4.0, rel=0.03)


def test_a_signal_in_the_middle_does_not_count_as_noise(tmp_path, make):
    random = np.random.default_rng(2)
    box = 32
    images = random.normal(size=(200, box, box))
    images[:, 12:20, 12:20] += 3 * random.normal(size=(200, 8, 8))
    levels = noise.estimate(make(tmp_path, images))
    # 1.2 % is three standard errors of the noise's variance
    assert level(levels, 0, box) == pytest.approx(1.0, rel=0.02)


def test_limit_draws_evenly_over_groups_with_the_seed(tmp_path, make, monkeypatch):
    group = [0, 1, 1, 0, 1, 0, 1, 1, 1, 0, 1, 1] * 10  # 40 and 80
    particles = make(tmp_path, np.random.default_rng(4).normal(size=(120, 8, 8)), group)
    seen = []
    real = Particles.images
    monkeypatch.setattr(
        Particles, "images", lambda self, rows: seen.extend(rows.tolist()) or real(self, rows)
    )
    levels = noise.estimate(particles, limit=30, seed=5)
    assert len(set(seen)) == 30
    assert [sum(group[row] == g for row in seen) for g in (0, 1)] == [10, 20]
    first, seen[:] = list(seen), []
    assert torch.equal(noise.estimate(particles, limit=30, seed=5), levels)
    assert seen == first
    seen[:] = []
    noise.estimate(particles, limit=120)
    assert sorted(seen) == list(range(120))
    draws = {
        tuple(noise._draw(particles, torch.arange(120), 30, seed).tolist()) for seed in range(20)
    }
    assert len(draws) == 4  # steps of 4 have 4 starts


def test_rows(tmp_path, make):
    images = np.random.default_rng(6).normal(size=(6, 16, 16))
    particles = make(tmp_path, images, [0, 0, 1, 1, 2, 2])
    outside = by_hand(images.astype(np.float32).astype(np.float64))
    levels = noise.estimate(particles, torch.tensor([1, 5]))
    expected = [
        outside[1],
        (outside[1] + outside[5]) / 2,
        outside[5],
    ]  # the group that was not seen gets the mean
    assert [level(levels, g, 16) for g in range(3)] == pytest.approx(expected, rel=1e-9)


def test_more_images_than_fit_in_memory_at_once(tmp_path, make, monkeypatch):
    particles = make(tmp_path, np.random.default_rng(7).normal(size=(10, 8, 8)), premultiplied=True)
    whole = noise.estimate(particles)
    monkeypatch.setattr(noise, "_PIXELS_AT_ONCE", 3 * 8 * 8)
    parts = noise.estimate(particles)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("masked", [False, True])
def test_images_without_noise(tmp_path, make, masked):
    images = np.random.default_rng(8).normal(size=(3, 8, 8))
    images[1] = 0
    if masked:
        images[1, 4, 4] = 1
    with pytest.raises(DataError) as caught:
        noise.estimate(make(tmp_path, images))
    for word in ("'2@s.mrcs'", "row 2", str(tmp_path / "a.star"), "no variance", "remove that row"):
        assert word in str(caught.value)


def test_real_images(shared_data):
    """RELION normalises the background to 1 before it premultiplies; real background is coloured,
    so this is a check of the order only.
    """
    tilts = Particles.open(shared_data / "ribosome-tilts" / "particles.star")
    levels = noise.estimate(tilts, limit=200)
    assert levels.shape == (1, 17)
    assert 0.1 < level(levels, 0, 32) < 3
    single = Particles.open(shared_data / "empiar-10076-7" / "particles.star")
    levels = noise.estimate(single)
    assert 0.5 < level(levels, 0, 320) < 2  # normalised images


@pytest.mark.parametrize("slope", [0.0, 4.0])
def test_the_spectrum_is_recovered(tmp_path, make, slope):
    """Noise whose power falls with frequency by a factor 1 + slope; 400 images of the corners give
    each shell to a few per cent.
    """
    random = np.random.default_rng(9)
    box = 48
    k = np.fft.fftfreq(box, 1 / box)
    radius = np.hypot(k[:, None], k[None])
    power = 1 + slope / (1 + (radius / 10) ** 2)
    images = np.fft.ifft2(np.fft.fft2(random.normal(size=(400, box, box))) * np.sqrt(power)).real
    found = noise.estimate(make(tmp_path, images))[0].numpy()
    expected = np.array([power[np.rint(radius) == s].mean() for s in range(box // 2 + 1)])
    assert found[2:-2] == pytest.approx(expected[2:-2], rel=0.1)
    assert found == pytest.approx(
        expected, rel=0.25
    )  # the window blurs the ends: a shell's value reaches a few shells far
