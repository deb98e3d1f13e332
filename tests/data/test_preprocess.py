"""Cropping, Fourier cropping and normalisation keep origin, units and metadata; on the fly and on
disk they are the same.
"""

import gzip
import math
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.command import QUICK, instamap, maps

from instamap.data import particles as reading
from instamap.data import writers as writing
from instamap.data.formats import star
from instamap.data.particles import Particles
from instamap.data.preprocess import NOTHING, Preprocess, Preprocessor, fourier_crop, normalise
from instamap.data.writers import write_particles
from instamap.errors import DataError, OptionError
from instamap.geometry import grids
from instamap.maps import fsc, mask
from instamap.simulate import particle_set
from instamap.statistics import initial_map
from instamap.workflows.settings import Settings
from instamap.workflows.shards import accumulate, merge
from instamap.workflows.statistics_folder import SETS

SIZES = st.integers(28, 80)
seeds = st.integers(0, 2**31)


def bells(centres: torch.Tensor, sigma: float, box: int, pixel_size: float) -> torch.Tensor:
    """An image "D D" of Gaussians of width `sigma` and of masses 1, 2, ... at `centres` "P 2" (x, y
    in Å).
    """
    square = (
        (grids.pixel_centres(box, pixel_size, dtype=torch.float64)[..., None, :] - centres)
        .square()
        .sum(-1)
    )
    return (torch.exp(-square / (2 * sigma**2)) * torch.arange(1, len(centres) + 1)).sum(-1)


# Cropping and Fourier cropping


@given(st.tuples(SIZES, SIZES, SIZES).map(sorted), seeds)
def test_closed_form_of_gaussians(sizes, seed):
    """A Gaussian of σ = 2 new pixels reaches Nyquist with exp(-2π²) = 3e-9 of its middle, and the
    edge, 6 σ away, with 2e-8.
    """
    box, edge, whole = sizes
    pixel_size = 1.3
    coarse = pixel_size * edge / box
    centres = coarse * (
        3 * torch.rand(3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        - 1.5
    )
    done = Preprocessor(Preprocess(crop=edge, box=box), whole, pixel_size)
    assert (done.edge, done.box, done.pixel_size) == (edge, box, coarse)
    found = done(bells(centres, 2 * coarse, whole, pixel_size)[None])
    torch.testing.assert_close(found[0], bells(centres, 2 * coarse, box, coarse), atol=3e-7, rtol=0)


@given(st.tuples(SIZES, SIZES).map(sorted), seeds)
def test_components_are_those_of_the_large_image(sizes, seed):
    """By FFTs, with the origin moved to the corner and back; where box is even, Nyquist's are the
    means of the two that become one.
    """
    box, edge = sizes
    image = torch.randn(
        edge, edge, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )

    # of frequency 0 in pixel D // 2
    def component(i):
        return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(i))) / i.numel()

    matrix = fourier_crop(edge, box)
    found = component(matrix @ image @ matrix.mT)
    given = component(image)
    inner = box - 1 if box % 2 == 0 else box
    torch.testing.assert_close(
        grids.crop(found, inner), grids.crop(given, inner), atol=1e-14, rtol=0
    )
    if box % 2 == 0 and box < edge:
        middle = edge // 2
        both = (given[middle - box // 2, middle] + given[middle + box // 2, middle]) / 2
        assert abs(found[0, box // 2] - both) < 1e-14


@given(st.tuples(SIZES, SIZES).map(sorted))
def test_mean_and_noise(sizes):
    """Values are kept, so the mean and, as the field of view is, the integral; white noise loses
    what lies outside.
    """
    box, edge = sizes
    matrix = fourier_crop(edge, box)
    ones = torch.ones(edge, dtype=torch.float64)
    zero = torch.zeros(box, edge, dtype=torch.float64)
    torch.testing.assert_close(
        matrix @ ones, torch.ones(box, dtype=torch.float64)
    )  # a constant stays what it is
    torch.testing.assert_close(matrix.mean(0), ones / edge)  # and the mean is that of all pixels
    if box == edge:
        torch.testing.assert_close(matrix, zero + torch.eye(box), atol=1e-12, rtol=0)
    else:
        torch.testing.assert_close(
            matrix.square().sum(1),
            torch.full((box,), (box - (0.5 if box % 2 == 0 else 0)) / edge).double(),
        )


@pytest.mark.parametrize("whole", [20, 21])
@pytest.mark.parametrize("edge", [10, 11, 20])
def test_a_crop_keeps_the_origin_and_every_pixel(whole, edge):
    image = torch.arange(whole**2, dtype=torch.float64).reshape(1, whole, whole)
    done = Preprocessor(Preprocess(crop=edge), whole, 2.0)
    found = done(image)[0]
    assert (done.box, done.pixel_size, found.shape) == (edge, 2.0, (edge, edge))
    assert found[edge // 2, edge // 2] == image[0, whole // 2, whole // 2]
    assert torch.equal(found.diff(dim=1), torch.ones(edge, edge - 1).double())
    assert torch.equal(found.diff(dim=0), torch.full((edge - 1, edge), whole).double())


# Normalisation


@given(st.integers(8, 30), seeds)
def test_background_is_normalised_whatever_plane_it_was_on(box, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(3, box, box, generator=generator, dtype=torch.float64)
    background = grids.pixel_centres(box, 1.0).norm(dim=-1) > 0.375 * box
    found = normalise(images, background)
    there = found[:, background]
    torch.testing.assert_close(there.mean(1), torch.zeros(3).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(there.square().mean(1), torch.ones(3).double())
    x, y = grids.pixel_centres(box, 1.0, dtype=torch.float64).unbind(-1)
    a, b, c, scale = torch.randn(4, 3, 1, 1, generator=generator, dtype=torch.float64).unbind(0)
    torch.testing.assert_close(
        normalise(scale.abs() * images + 50 * a + b * x + c * y, background),
        found,
        atol=1e-10,
        rtol=0,
    )
    particle = torch.where(background, 0.0, 7.0).double()  # what is inside changes nothing outside
    torch.testing.assert_close(
        normalise(images + particle, background)[:, background], there, atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_plane_alone_is_nothing_to_normalise_by(dtype):
    x, y = grids.pixel_centres(16, 1.0, dtype=dtype).unbind(-1)
    images = torch.stack([torch.zeros_like(x), 1e4 + 3 * x - y, torch.full_like(x, 0.1)])
    assert normalise(images, x**2 + y**2 > 36).isnan().all()


def test_background_begins_at_three_eighths_of_the_edge():
    images = torch.randn(2, 40, 40, generator=torch.Generator().manual_seed(0))
    usual = Preprocessor(Preprocess(crop=32, box=24, normalise=True), 40, 3.0)
    said = Preprocessor(
        Preprocess(crop=32, box=24, normalise=True, background=0.375 * 96.0), 40, 3.0
    )
    other = Preprocessor(Preprocess(crop=32, box=24, normalise=True, background=48.0), 40, 3.0)
    assert torch.equal(usual(images), said(images)) and not torch.equal(
        usual(images), other(images)
    )


# Options


def test_what_is_said_of_the_steps():
    steps = Preprocess(96, 64, True, 80.0)
    assert (
        str(steps) == "cropped to 96 px, scaled to 64 px, background beyond 80 Å normalised"
        and steps
    )
    assert (
        steps.record() == {"crop": 96, "box": 64, "normalise": True, "background": 80.0}
        and Preprocess(**steps.record()) == steps
    )
    assert (
        str(NOTHING) == "none"
        and not NOTHING
        and NOTHING.record() == {}
        and Preprocess(normalise=True)
    )
    assert str(Preprocess(normalise=True)) == "background normalised"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"crop": 41}, "crop is 41, but the images are 40 pixels wide; give at most 40"),
        ({"box": 41}, "box is 41, but the images are 40 pixels wide; give at most 40"),
        (
            {"crop": 20, "box": 24},
            "box is 24, but the images are 20 pixels wide once cropped; give at most 20",
        ),
        ({"box": 7}, "box is 7; it must be at least 8 pixels"),
        ({"crop": 0}, "crop is 0; it must be at least 8 pixels"),
        (
            {"normalise": True, "background": 0.0},
            "background is 0.0; it must be a radius in Å above 0",
        ),
        ({"normalise": True, "background": math.nan}, "background is nan; it must be"),
        ({"background": 30.0}, "background is 30 Å, but nothing is normalised; add --normalise"),
        (
            {"crop": 20, "normalise": True, "background": 31.0},
            "background is 31 Å, but the images reach 30 Å from their middle",
        ),
    ],
)
def test_options_that_cannot_be(options, said):
    with pytest.raises(OptionError, match=said):
        Preprocessor(Preprocess(**options), 40, 3.0)


# Particles, on the fly and written


@pytest.fixture
def make(tmp_path, write_star, write_stack, make_optics, make_particle):
    """make(tables=None, box, count) is the STAR file of random images; `tables` instead of good
    ones of RELION 3.1.
    """

    def build(tables: dict | None = None, box: int = 24, count: int = 5) -> Path:
        images = np.random.default_rng(box).normal(3, 2, (count, box, box)).astype(np.float32)
        write_stack(tmp_path / "stack.mrcs", images)
        rows = [
            make_particle(
                rlnImageName=f"{count - i}@stack.mrcs",
                rlnOriginXAngst=1.5 * i,
                rlnOriginYAngst=0.5,
            )
            for i in range(count)
        ]
        usual = {"optics": [make_optics(rlnImageSize=box)], "particles": rows}
        return write_star(tmp_path / "given.star", usual if tables is None else tables)

    return build


def written(star: Path, steps: Preprocess, folder: Path) -> Path:
    """The STAR file of the preprocessed particles in a folder of their own."""
    folder.mkdir()
    write_particles(
        Particles.open(star, preprocess=steps),
        folder / "new.star",
        folder / "new.mrcs",
        name="new.mrcs",
    )
    return folder / "new.star"


@pytest.mark.parametrize(
    "steps",
    [
        Preprocess(crop=21, box=12, normalise=True),
        Preprocess(box=13),
        Preprocess(crop=16),
        Preprocess(normalise=True, background=20.0),
    ],
    ids=str,
)
def test_written_particles_are_those_on_the_fly(make, tmp_path, steps):
    star = make()
    flying = Particles.open(star, preprocess=steps)
    kept = Particles.open(written(star, steps, tmp_path / "new"))
    rows = torch.tensor([4, 0, 2])
    assert flying.images(rows).dtype == torch.float32
    assert torch.equal(flying.images(rows), kept.images(rows))
    assert torch.equal(flying.images(torch.arange(5)), kept.batch(torch.arange(5)).images)
    assert (flying.box, flying.pixel_size, flying.count) == (kept.box, kept.pixel_size, kept.count)
    assert torch.equal(flying.views.origin, kept.views.origin) and torch.equal(
        flying.views.rotation, kept.views.rotation
    )
    assert torch.equal(
        flying.images(rows), Preprocessor(steps, 24, 2.0)(Particles.open(star).images(rows))
    )
    with mrcfile.open(tmp_path / "new" / "new.mrcs") as file:
        assert file.is_image_stack() and float(file.voxel_size.x) == pytest.approx(
            flying.pixel_size
        )
        assert file.header.mode == 2


def test_an_image_depends_on_no_other_and_few_are_in_memory(make, tmp_path, monkeypatch):
    star = make(count=9)
    steps = Preprocess(box=12)
    read = []
    whole = Particles.open(star, preprocess=steps).images(torch.arange(9))
    images = reading.Stacks.read
    monkeypatch.setattr(
        reading.Stacks, "read", lambda self, rows: read.append(len(rows)) or images(self, rows)
    )
    monkeypatch.setattr(reading, "_PIXELS_AT_ONCE", 2 * 24**2)
    assert torch.equal(Particles.open(star, preprocess=steps).images(torch.arange(9)), whole)
    assert read == [2, 2, 2, 2, 1]
    read.clear()
    monkeypatch.setattr(reading, "_PIXELS_AT_ONCE", 1 << 21)
    monkeypatch.setattr(writing, "_PIXELS_AT_ONCE", 3 * 24**2)
    assert torch.equal(
        Particles.open(written(star, steps, tmp_path / "new")).images(torch.arange(9)), whole
    )
    assert read == [3, 3, 3, 9]
    assert len(Particles.open(star, preprocess=steps).images(torch.arange(0))) == 0


def test_images_that_cannot_be_normalised(make, tmp_path):
    star = make()
    with mrcfile.mmap(tmp_path / "stack.mrcs", "r+") as file:
        file.data[1] = 5.0
    given = Particles.open(star, preprocess=Preprocess(normalise=True))
    with pytest.raises(
        DataError,
        match=(
            "'2@stack.mrcs' of row 4 of .* has a background in which nothing varies.*; remove"
            " that row"
        ),
    ):
        given.images(torch.arange(5))


def test_premultiplied_images_are_scaled_and_not_normalised(make, make_optics, make_particle):
    star = make(
        {"optics": [make_optics(rlnCtfDataAreCtfPremultiplied=1)], "particles": [make_particle()]}
    )
    assert Particles.open(star, preprocess=Preprocess(crop=20, box=10)).box == 10
    with pytest.raises(DataError, match="premultiplied by their CTF.*leave out --normalise"):
        Particles.open(star, preprocess=Preprocess(normalise=True))


# Metadata


def words(path: Path) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Columns and rows of every table as they are written, by name; one without loop_ is a row."""
    found = {}
    for text in path.read_text().split("data_")[1:]:
        name, _, body = text.partition("\n")
        lines = [
            line
            for line in body.splitlines()
            if line.strip() and not line.startswith("#") and line.strip() != "loop_"
        ]
        head = [line.split() for line in lines if line.startswith("_")]
        rows = [line.split() for line in lines if not line.startswith("_")] or [
            [row[1] for row in head]
        ]
        found[name] = ([row[0] for row in head], rows)
    return found


def test_everything_else_of_a_file_is_kept_to_the_letter(
    make, tmp_path, make_optics, make_particle
):
    """Two groups, tables and columns nobody knows, values that a number would spoil."""
    odd = {
        "fooLabel": "000012",
        "fooTiny": "1.2e-11",
        "fooLong": "0.12345678901234567",
        "fooText": "a/b-c",
        "rlnOriginXAngst": "-1.250000",
        "rlnOriginYAngst": "0.50",
        "fooNothing": "nan",
        "rlnCoordinateX": "1203.5",
        "rlnRandomSubset": 2,
    }
    sizes = {
        "rlnImageSize": 24,
        "rlnImagePixelSize": "1.100000",
        "rlnMicrographOriginalPixelSize": "0.55",
    }
    first = [make_optics(rlnOpticsGroup=i, **sizes) for i in (1, 2)]
    rows = [
        make_particle(rlnImageName=f"{i}@stack.mrcs", rlnOpticsGroup=1 + i % 2, **odd)
        for i in (3, 1, 2)
    ]
    star = make(
        {"particles": rows, "optics": first, "foo": [{"fooBar": "x", "fooNumber": "1.50"}] * 2}
    )
    star.write_text("data_general\n\n_fooVersion 1.10\n_fooFlag 1\n\n" + star.read_text())
    before = words(star)
    after = words(written(star, Preprocess(crop=20, box=10), tmp_path / "new"))
    assert list(after) == list(before) == ["general", "particles", "optics", "foo"]
    for name in before:
        assert after[name][0] == before[name][0]
    changed = {
        "_rlnImageSize": ["10", "10"],
        "_rlnImagePixelSize": [repr(2 * 1.1)] * 2,
        "_rlnImageName": [f"{i:06d}@new.mrcs" for i in (1, 2, 3)],
    }
    for name, (head, body) in before.items():
        for i, column in enumerate(head):
            assert [row[i] for row in after[name][1]] == changed.get(
                column, [row[i] for row in body]
            ), column


def test_a_file_of_relion_3_0(make, tmp_path, make_particle):
    """Origins and priors are pixels and shrink; the magnification, which says the pixel size, as
    well; the detector is what it was.
    """
    optics = {"rlnVoltage": 300, "rlnSphericalAberration": 2.7, "rlnAmplitudeContrast": 0.1}
    row = make_particle(
        **optics,
        rlnDetectorPixelSize=14,
        rlnMagnification=70000,
        rlnOriginY=1.25,
        rlnOriginXPrior=1.5,
    )
    del row["rlnOpticsGroup"]
    rows = [row | {"rlnImageName": f"{i + 1}@stack.mrcs", "rlnOriginX": 3.0 - i} for i in range(3)]
    star = make({"": rows})
    old = Particles.open(star)
    new = Particles.open(written(star, Preprocess(crop=18, box=12), tmp_path / "new"))
    assert (old.pixel_size, new.box) == (2.0, 12) and new.pixel_size == pytest.approx(
        3.0, rel=1e-12
    )
    torch.testing.assert_close(new.views.origin, old.views.origin, atol=1e-12, rtol=0)

    def number(name):
        return new.table.columns.numbers(name).tolist()

    assert number("rlnOriginX") == pytest.approx([2.0, 4 / 3, 2 / 3]) and number(
        "rlnOriginXPrior"
    ) == pytest.approx([1.0] * 3)
    assert (
        number("rlnMagnification") == pytest.approx([70000 / 1.5] * 3)
        and number("rlnDetectorPixelSize") == [14] * 3
    )
    assert list(new.table.columns.particles.columns) == list(rows[0])


def test_a_magnification_of_the_micrograph_is_kept(make, tmp_path, make_optics, make_particle):
    """As in files of a later RELION whose images had been scaled down: 1 Å per pixel of the
    detector, 2 Å of the images.
    """
    star = make(
        {
            "optics": [make_optics()],
            "particles": [make_particle(rlnDetectorPixelSize=5, rlnMagnification=50000)],
        }
    )
    new = Particles.open(written(star, Preprocess(box=12), tmp_path / "new"))
    assert new.pixel_size == 4.0 and new.table.columns.numbers("rlnMagnification")[0] == 50000


def test_optics_without_a_size_and_without_a_loop(make, tmp_path, make_particle):
    star = make({"particles": [make_particle()]})
    row = (
        "_rlnOpticsGroup 1\n_rlnVoltage 300\n_rlnSphericalAberration 2.7\n_rlnAmplitudeContrast"
        " 0.1\n_rlnPixelSize 2\n"
    )
    star.write_text(f"data_optics\n\n{row}\n" + star.read_text())
    packed = star.with_suffix(".star.gz")
    packed.write_bytes(gzip.compress(star.read_bytes()))
    table = starfile.read(written(packed, Preprocess(crop=16, box=8), tmp_path / "new"))["optics"]
    assert (table["rlnPixelSize"], table["rlnImageSize"]) == (4.0, 8)
    assert list(table)[0] == "rlnOpticsGroup"
    unscaled = starfile.read(written(packed, Preprocess(normalise=True), tmp_path / "other"))[
        "optics"
    ]
    assert "rlnImageSize" not in unscaled


def test_a_value_that_cannot_be_scaled(make, tmp_path, make_optics, make_particle):
    row = make_particle(rlnOriginX=0.0, rlnOriginY=0.0, rlnOriginXPrior="none")
    star = make({"optics": [make_optics()], "particles": [row]})
    with pytest.raises(
        DataError,
        match="rlnOriginXPrior of .*given.star' is none, which cannot be scaled; make it a number",
    ):
        written(star, Preprocess(box=12), tmp_path / "new")
    written(star, Preprocess(crop=12), tmp_path / "cropped")


@pytest.mark.parametrize(
    "name",
    [
        "sample_relion_symmetry_group_D4.star",
        "sample_particles_relion30.star",
        "sample_particles_relion31.star",
        "relion31.star",
        "relion31.v2.star",
        "relion5.star",
    ],
)
def test_real_files(shared_data, tmp_path, name, write_stack):
    """Their stacks are made here, in a small box; origins are what they were, and all but a few
    columns is kept to the letter.
    """
    source = tmp_path / name
    box = 20
    top = {}
    shutil.copy(shared_data / "star-corpus" / name, source)
    table = star.read(source)
    said = int(table.columns.numbers("rlnImageSize", default=box)[0])
    source.write_text(re.sub(rf"(?<=\s){said}(?=\s)", str(box), source.read_text()))
    for number, path in (image.split("@") for image in table.image_names):
        top[path] = max(top.get(path, 0), int(number))
    for path, count in top.items():
        write_stack(
            tmp_path / path,
            np.random.default_rng(0).normal(size=(count, box, box)).astype(np.float32),
        )
    old = Particles.open(source)
    new = Particles.open(written(source, Preprocess(box=box // 2), tmp_path / "new"))
    torch.testing.assert_close(new.views.origin, old.views.origin, atol=1e-9, rtol=1e-12)
    assert new.pixel_size == pytest.approx(2 * old.pixel_size, rel=1e-9) and new.views.group.equal(
        old.views.group
    )
    after = words(tmp_path / "new" / "new.star")
    for block, (head, body) in words(source).items():
        for i, column in enumerate(head):
            if column not in (
                "_rlnImageName",
                "_rlnImageSize",
                "_rlnImagePixelSize",
                "_rlnOriginX",
                "_rlnOriginY",
                "_rlnMagnification",
            ):
                assert [row[i] for row in after[block][1]] == [row[i] for row in body], column


# Reconstructions


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A simulated set whose molecule fits the middle 24 of 32 pixels."""
    return particle_set.demo(
        tmp_path_factory.mktemp("data"),
        count=300,
        box=32,
        pixel_size=4.0,
        snr=1.0,
        seed=5,
    )


def least_squares(star: Path, folder: Path, steps: Preprocess) -> torch.Tensor:
    """The map of all images of a set that are not held out."""
    stats = accumulate(Settings(star, **steps.record()), folder)
    both = stats.statistics("half1") + stats.statistics("half2")
    scene = stats.scene
    return initial_map.solve(both, mask.sphere(scene.box, scene.pixel_size, scene.radius, 0.0))


def smaller(map: torch.Tensor, box: int) -> torch.Tensor:
    """A map after Fourier cropping, by FFTs; box is odd or its Nyquist component is left out."""
    components = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(map.double()))) / map.numel()
    inner = box - 1 + box % 2
    start = len(map) // 2 - inner // 2
    to = box // 2 - inner // 2
    kept = torch.zeros(box, box, box, dtype=components.dtype)
    kept[to:, to:, to:] = components[
        start : start + inner, start : start + inner, start : start + inner
    ]
    return torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(kept)).real) * box**3


@pytest.mark.parametrize("box", [16, 17])
def test_half_the_box_gives_the_fourier_cropped_map(data, tmp_path, box):
    """Pixels of 8 Å: the same components of the same images. What differs is interpolation, and the
    edge of the sphere.
    """
    whole = smaller(least_squares(data, tmp_path / "whole", NOTHING), box)
    half = least_squares(data, tmp_path / "half", Preprocess(box=box)).double()
    inside = mask.sphere(box, 1.0, 0.5 * box - 1, 2.0).double()
    curve = fsc.fsc(whole, half, inside)
    assert curve[: box // 2].min() > 0.98, curve
    scale = float((whole * half * inside).sum() / (half * half * inside).sum())
    assert scale == pytest.approx(1, abs=0.05), "both are in the unit of the images per Å"


def test_reconstruct_repeats_from_its_record(data, tmp_path):
    once = instamap(
        "reconstruct", data, "-o", tmp_path / "a", "--crop", 24, "--box", 12, "--normalise", *QUICK
    )
    assert once.code == 0, once
    assert "300 images of 12 px at 8 Å" in once.err
    settings = tomllib.loads((tmp_path / "a" / "run.toml").read_text())
    assert (settings["crop"], settings["box"], settings["normalise"]) == (24, 12, True)
    assert (
        instamap("reconstruct", "--config", tmp_path / "a" / "run.toml", "-o", tmp_path / "b").code
        == 0
    )
    first = maps(tmp_path / "a")
    second = maps(tmp_path / "b")
    assert first["map"].shape == (12, 12, 12) and all(
        torch.equal(first[name], second[name]) for name in first
    )
    other = instamap(
        "reconstruct",
        "--config",
        tmp_path / "a" / "run.toml",
        "--box",
        10,
        "--no-normalise",
        "-o",
        tmp_path / "c",
    )
    assert other.code == 0, other
    changed = tomllib.loads((tmp_path / "c" / "run.toml").read_text())
    assert (changed["crop"], changed["box"]) == (24, 10)
    assert not changed.get("normalise")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("bxo = 3", "'bxo' in .* is unknown; choose .*crop, box"),
        ("box = 9.5", "'box' in .* is 9.5; it must be a whole number"),
        ("normalise = 1", "'normalise' in .* is 1; it must be true or false"),
        ("box = 64", "box is 64, but the images are 32 pixels wide"),
    ],
)
def test_a_record_that_is_wrong(data, tmp_path, line, said):
    (tmp_path / "run.toml").write_text(f'particles = "{data}"\n{line}\n')
    assert re.search(
        said,
        instamap("reconstruct", "--config", tmp_path / "run.toml", "-o", tmp_path / "out").refusal,
    )


def test_statistics_say_what_was_done_to_the_images(data, tmp_path):
    words = ("accumulate", data, "--crop", 24, "--box", 12, "--normalise", "--background", 40)
    assert instamap(*words, "-o", tmp_path / "whole").code == 0
    said = tomllib.loads((tmp_path / "whole" / "accumulate.toml").read_text())
    assert (said["image_box"], said["pixel_size"]) == (12, 8.0)
    steps = ("crop", "box", "normalise", "background")
    assert [said[name] for name in steps] == [24, 12, True, 40.0]
    assert instamap("fit", tmp_path / "whole", "-o", tmp_path / "fit", "-O", "steps=5").code == 0
    run = tmp_path / "fit" / "run.toml"
    of_run = tomllib.loads(run.read_text())
    assert [of_run[name] for name in steps] == [said[name] for name in steps]
    assert instamap("reconstruct", "--config", run, "-o", tmp_path / "again").code == 0
    assert torch.equal(maps(tmp_path / "fit")["map"], maps(tmp_path / "again")["map"])
    words = ("reconstruct", "--config", run, "--box", 10, "-o", tmp_path / "other")
    refusal = instamap(*words).refusal
    assert "box is '10', but the statistics in" in refusal
    assert "were gathered with '12'" in refusal
    for i, box in ((1, 12), (2, 10)):
        assert (
            instamap(
                "accumulate", data, "--box", box, "--shard", f"{i}/2", "-o", tmp_path / f"{i}"
            ).code
            == 0
        )
    with pytest.raises(DataError, match="cannot be merged: box is 12 and 10"):
        merge([tmp_path / "1", tmp_path / "2"], tmp_path / "both")
    words = ("accumulate", data, "--crop", 24, "--box", 12, "-o", tmp_path / "whole")
    assert "normalise is False and True" in instamap(*words).refusal


# The command


def test_the_command(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = instamap(
        "preprocess", data, "--crop", 24, "--box", 12, "--normalise", "-o", "below/small"
    )
    assert (done.code, done.out) == (
        0,
        "300 images of 12 px at 8 Å in below/small/: particles.star, particles.mrcs\n",
    )
    assert "300 images of 32 px: cropped to 24 px" in done.err and "read 300 images in" in done.err
    assert [path.name for path in sorted((tmp_path / "below").rglob("*"))] == [
        "small",
        "particles.mrcs",
        "particles.star",
        "preprocess.toml",
    ]
    steps = Preprocess(24, 12, True)
    new = Particles.open("below/small/particles.star")
    flying = Particles.open(data, preprocess=steps)
    assert new.table.image_names[0] == "000001@below/small/particles.mrcs", (
        "as RELION names files: from where it is run"
    )
    assert torch.equal(new.images(torch.arange(300)), flying.images(torch.arange(300)))
    one = accumulate(Settings(Path("below/small/particles.star")), Path("one"))
    other = accumulate(Settings(data, **steps.record()), Path("two"))
    assert all(torch.equal(one.statistics(name).b, other.statistics(name).b) for name in SETS)
    monkeypatch.chdir(tmp_path / "below" / "small")
    refusal = instamap("preprocess", data, "--box", 8, "-o", ".").refusal
    assert "already holds particles; choose another or add --force" in refusal
    assert instamap("preprocess", data, "--box", 8, "-o", ".", "--force").code == 0
    assert Particles.open("particles.star").box == 8


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "",
            "there is nothing to do to '.*particles.star'; give --crop, --box, --normalise or"
            " --invert",
        ),
        ("--box 40", "box is 40, but the images are 32 pixels wide; give at most 32"),
        ("--crop 20 --box 24", "box is 24, but the images are 20 pixels wide once cropped"),
        (
            "--box 16 -o {data}",
            "has a file 'particles.mrcs' that particles would replace and that no earlier one",
        ),
        (
            "--box 16 -o {data} --force",
            "has a file 'particles.mrcs' that particles would replace and that no earlier one",
        ),
        ("--box 16 -o run --force", "output folder 'run' holds a run; choose another"),
        ("--box 16 -o file", "output 'file' is a file; name a folder"),
    ],
)
def test_what_the_command_refuses(data, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.toml").write_text("")
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*")), sorted(data.parent.rglob("*"))
    assert re.search(
        said, instamap("preprocess", data, *words.format(data=data.parent).split()).refusal
    )
    assert (
        sorted(tmp_path.rglob("*")),
        sorted(data.parent.rglob("*")),
    ) == before, "something was left behind"


def test_a_failure_leaves_nothing(data, tmp_path, monkeypatch):
    shutil.copytree(data.parent, tmp_path / "data")
    with mrcfile.mmap(tmp_path / "data" / "particles.mrcs", "r+") as file:
        file.data[299, 0, 0] = np.nan
    before = sorted(tmp_path.rglob("*"))
    refused = instamap(
        "preprocess", tmp_path / "data" / "particles.star", "--box", 16, "-o", tmp_path / "new"
    )
    assert (
        refused.code == 2
        and "row 300" in refused.err.splitlines()[-1]
        and sorted(tmp_path.rglob("*")) == before
    )


# RELION

relion = pytest.mark.skipif(
    shutil.which("relion_preprocess") is None,
    reason="RELION (Debian package relion) is not installed",
)


def run(folder: Path, *command) -> None:
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def stack(path: Path) -> torch.Tensor:
    return torch.tensor(mrcfile.read(path)).double()


def without_nyquist(images: torch.Tensor) -> torch.Tensor:
    found = torch.fft.fft2(images)
    found[:, images.shape[1] // 2], found[:, :, images.shape[2] // 2] = 0, 0
    return torch.fft.ifft2(found).real


@pytest.fixture(scope="module")
def noisy(data) -> Path:
    """The set's stack: noise in every component, so that none goes unseen."""
    return data.with_name("particles.mrcs")


@relion
@pytest.mark.parametrize("program", ["preprocess", "image_handler"])
def test_relion_scales_alike(noisy, data, tmp_path, program):
    """To float32, but for Nyquist, of whose two components RELION keeps one and not the mean; half
    a pixel leaves a correlation of 0.4.
    """
    if program == "preprocess":
        run(
            tmp_path,
            "relion_preprocess",
            "--operate_on",
            noisy,
            "--operate_out",
            "r.mrcs",
            "--scale",
            16,
        )
    else:
        run(
            tmp_path,
            "relion_image_handler",
            "--i",
            noisy,
            "--o",
            "r.mrcs",
            "--angpix",
            4,
            "--rescale_angpix",
            8,
        )
    theirs = stack(tmp_path / "r.mrcs")
    ours = Particles.open(data, preprocess=Preprocess(box=16)).images(torch.arange(300)).double()
    torch.testing.assert_close(without_nyquist(ours), without_nyquist(theirs), atol=2e-5, rtol=0)
    assert torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1] > 0.97


@relion
@pytest.mark.parametrize("edge", [22, 24])  # it makes odd ones even
def test_relion_crops_alike(noisy, data, tmp_path, edge):
    run(
        tmp_path,
        "relion_preprocess",
        "--operate_on",
        noisy,
        "--operate_out",
        "r.mrcs",
        "--window",
        edge,
    )
    ours = Particles.open(data, preprocess=Preprocess(crop=edge)).images(torch.arange(300)).double()
    assert torch.equal(ours, stack(tmp_path / "r.mrcs"))


@relion
def test_relion_normalises_alike(data, tmp_path, write_stack):
    x, y = grids.pixel_centres(32, 1.0).unbind(-1)
    tilted = stack(data.with_name("particles.mrcs")) * 3 + 100 + 0.5 * x - 0.2 * y
    write_stack(tmp_path / "particles.mrcs", tilted.float().numpy())
    shutil.copy(data, tmp_path)
    run(
        tmp_path,
        "relion_preprocess",
        "--operate_on",
        "particles.mrcs",
        "--operate_out",
        "r.mrcs",
        "--norm",
        "--bg_radius",
        12,
    )
    ours = (
        Particles.open(tmp_path / "particles.star", preprocess=Preprocess(normalise=True))
        .images(torch.arange(300))
        .double()
    )
    torch.testing.assert_close(ours, stack(tmp_path / "r.mrcs"), atol=1e-4, rtol=0)


@relion
def test_relion_reconstructs_from_the_written_set(data, tmp_path, monkeypatch):
    """In the folder in which the command was run; the map is what RELION makes of the whole images,
    Fourier-cropped.
    """
    monkeypatch.chdir(tmp_path)
    assert instamap("preprocess", data, "--box", 16, "-o", "small").code == 0
    run(tmp_path, "relion_reconstruct", "--i", "small/particles.star", "--o", "small.mrc", "--ctf")
    run(
        data.parent,
        "relion_reconstruct",
        "--i",
        "particles.star",
        "--o",
        tmp_path / "whole.mrc",
        "--ctf",
    )
    with mrcfile.open("small.mrc") as file:
        assert float(file.voxel_size.x) == pytest.approx(8.0)
    half = stack(Path("small.mrc"))
    whole = smaller(stack(Path("whole.mrc")), 16)
    inside = mask.sphere(16, 1.0, 7.0, 2.0).double()
    assert fsc.fsc(half, whole, inside)[:7].min() > 0.95
