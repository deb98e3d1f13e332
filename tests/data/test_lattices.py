"""Images of several boxes and pixel sizes on one lattice: closed forms, to half a pixel exactly."""

import mrcfile
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instamap.data.lattices import Lattice, Resampler, common, series_matrix
from instamap.data.particles import Particles
from instamap.data.preprocess import fourier_crop
from instamap.data.writers import write_particles
from instamap.errors import DataError
from instamap.geometry import grids

SIGMA = 5.0  # Å


def blob(lattice: Lattice, centre: tuple[float, float]) -> torch.Tensor:
    """A Gaussian at x, y in Å from the origin."""
    u = grids.pixel_centres(lattice.box, lattice.pixel_size, dtype=torch.float64)
    square = (u - torch.tensor(centre, dtype=torch.float64)).square().sum(-1)
    return torch.exp(-square / (2 * SIGMA**2))


@pytest.mark.parametrize(
    "lattices, expected",
    [
        ([Lattice(320, 1.05)], Lattice(320, 1.05)),
        ([Lattice(31, 2.0), Lattice(31, 2.0)], Lattice(31, 2.0)),
        ([Lattice(320, 1.05), Lattice(256, 1.31)], Lattice(256, 1.31)),  # 335.4 Å within 336
        ([Lattice(256, 1.05), Lattice(256, 1.31)], Lattice(204, 1.31)),  # 268.8 Å: 205 pixels
        ([Lattice(256, 1.25), Lattice(320, 1.0)], Lattice(256, 1.25)),  # 320 Å both
        ([Lattice(64, 2.0), Lattice(48, 2.0)], Lattice(48, 2.0)),
    ],
)
def test_coarsest_pixels_in_the_smallest_box(lattices, expected):
    assert common(lattices) == expected
    assert common(lattices[::-1]) == expected


@given(
    box=st.integers(40, 48),
    pixel=st.floats(1.5, 2.5),
    ratio=st.floats(1.0, 1.2),
    x=st.floats(-8, 8),
    y=st.floats(-8, 8),
)
def test_gaussians_stay_where_they_are(box, pixel, ratio, x, y):
    """Values at the new pixels' centres, whatever the ratio of the pixels and whether boxes are
    even or odd: half a pixel amiss would be an error of 0.1.
    """
    before = Lattice(box, pixel)
    after = common([before, Lattice(box, pixel * ratio)])
    found = Resampler(before, after)(blob(before, (x, y))[None])[0]
    assert (found - blob(after, (x, y))).abs().max() < 1e-4


def test_equal_edges_are_fourier_cropping():
    matrix = series_matrix(Lattice(30, 1.0), Lattice(24, 1.25))
    torch.testing.assert_close(matrix, fourier_crop(30, 24))


def test_equal_pixels_are_cropped():
    images = torch.randn(2, 12, 12, generator=torch.Generator().manual_seed(0))
    found = Resampler(Lattice(12, 2.0), Lattice(8, 2.0))(images)
    assert torch.equal(found, grids.crop(images, 8))


def test_white_noise_stays_white():
    """Its variance falls by the share of the Fourier components that stay, alike on all shells."""
    before = Lattice(50, 1.0)
    after = common([before, Lattice(40, 1.23)])
    images = torch.randn(
        4000, 50, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    found = Resampler(before, after)(images)
    assert float(found.var()) == pytest.approx(1 / 1.23**2, rel=0.03)
    power = torch.fft.rfft2(found).abs().square().mean(0) / after.box**2
    shell = grids.shells(after.box, 2)[:, : after.box // 2 + 1]
    of_shells = torch.stack([power[shell == s].mean() for s in range(1, after.box // 2 - 1)])
    assert (of_shells * 1.23**2 - 1).abs().max() < 0.1


def two_groups(folder, write_star, lattices, centres, images=None):
    """A file of one image of each lattice, in an optics group of its own."""
    optics = []
    particles = []
    for number, (lattice, centre) in enumerate(zip(lattices, centres, strict=True), 1):
        image = blob(lattice, centre).float().numpy()
        with mrcfile.new(folder / f"{number}.mrcs") as file:
            file.set_data(image[None])
            file.set_image_stack()
        optics.append(
            {
                "rlnOpticsGroup": number,
                "rlnVoltage": 300,
                "rlnSphericalAberration": 2.7,
                "rlnAmplitudeContrast": 0.1,
                "rlnImagePixelSize": lattice.pixel_size,
                "rlnImageSize": lattice.box,
            }
        )
        particles.append(
            {
                "rlnImageName": f"1@{number}.mrcs",
                "rlnOpticsGroup": number,
                "rlnAngleRot": 0,
                "rlnAngleTilt": 0,
                "rlnAnglePsi": 0,
                "rlnDefocusU": 10000,
                "rlnDefocusV": 10000,
                "rlnDefocusAngle": 0,
            }
        )
    path = folder / "particles.star"
    return write_star(path, {"optics": optics, "particles": particles})


def test_groups_of_a_file_are_brought_to_one_lattice(tmp_path, write_star):
    """In the rows' order, as the same blobs there; and what was done is said."""
    lattices = [Lattice(40, 2.0), Lattice(30, 2.62), Lattice(36, 2.0)]
    centres = [(3.0, -5.0), (-4.0, 6.5), (0.0, 1.0)]
    path = two_groups(tmp_path, write_star, lattices, centres)
    particles = Particles.open(path)
    after = Lattice(particles.box, particles.pixel_size)
    assert after == Lattice(26, 2.62)  # 72 Å
    images = particles.images(torch.tensor([2, 0, 1]))
    for image, row in zip(images, (2, 0, 1), strict=True):
        assert (image - blob(after, centres[row])).abs().max() < 2e-4
    change = particles.lattice_change
    assert change is not None
    for words in ("40 px of 2 Å", "30 px of 2.62 Å", "36 px of 2 Å", "brought to 26 px of 2.62 Å"):
        assert words in change
    assert particles.same_pixels.tolist() == [0, 1, 2]
    smaller = particles.with_box(20)
    assert smaller.pixel_size == pytest.approx(26 * 2.62 / 20)


def test_one_lattice_is_left_alone(tmp_path, write_star):
    lattice = Lattice(16, 2.0)
    path = two_groups(tmp_path, write_star, [lattice] * 2, [(0, 0), (1, 1)])
    particles = Particles.open(path)
    assert particles.lattice_change is None
    read = mrcfile.read(tmp_path / "2.mrcs")
    assert np.array_equal(particles.images(torch.tensor([1]))[0].numpy(), read)


def test_one_group_has_one_box(tmp_path, write_star):
    path = two_groups(tmp_path, write_star, [Lattice(16, 2.0), Lattice(20, 2.0)], [(0, 0), (1, 1)])
    text = path.read_text().replace("1@2.mrcs 2 ", "1@2.mrcs 1 ").replace(" 2.0 16", " 2.0 x")
    path.write_text(text.replace("_rlnImageSize", "_rlnX"))
    with pytest.raises(DataError, match="16 pixels wide, those of '2.mrcs' 20; extract all"):
        Particles.open(path)


def test_written_again_all_have_one_lattice(tmp_path, write_star):
    lattices = [Lattice(40, 2.0), Lattice(30, 2.62)]
    path = two_groups(tmp_path, write_star, lattices, [(3.0, -5.0), (-4.0, 6.5)])
    particles = Particles.open(path)
    file = tmp_path / "one" / "particles.star"
    file.parent.mkdir()
    write_particles(particles, file, file.with_name("all.mrcs"), name="all.mrcs")
    again = Particles.open(file)
    assert again.lattice_change is None
    assert (again.box, again.pixel_size) == (particles.box, particles.pixel_size)
    rows = torch.arange(2)
    assert torch.equal(again.images(rows), particles.images(rows))
