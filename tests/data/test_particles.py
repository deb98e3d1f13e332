"""Particles join images, poses and halves row by row; sets that don't fit together are refused."""

import math
import tempfile
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instamap.data.particles import Particles
from instamap.errors import DataError
from instamap.geometry import rotations


@pytest.fixture(scope="session")
def make(write_star, write_stack, make_optics, make_particle):
    """make(folder, [changes of each row], optics=[changes of each group]) writes a set of 4 x 4
    images; image n is n everywhere.
    """

    def write(folder: Path, rows: list[dict], optics=({},), box: int = 4) -> Path:
        write_stack(
            folder / "stack.mrcs",
            np.arange(1, len(rows) + 1, dtype=np.float32).repeat(box * box).reshape(-1, box, box),
        )
        particles = [
            make_particle(rlnImageName=f"{i + 1}@stack.mrcs") | row for i, row in enumerate(rows)
        ]
        return write_star(
            folder / "a.star",
            {"optics": [make_optics(**row) for row in optics], "particles": particles},
        )

    return write


def fails(path, *words, call=Particles.open) -> None:
    """The call raises a DataError of one line that names the file and holds all `words`."""
    with pytest.raises(DataError) as caught:
        call(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(path), ";", *words):
        assert word in message, message


@pytest.mark.parametrize("box", [4, 5])
def test_everything_of_a_small_set(tmp_path, make, box):
    shift = {"rlnOriginXAngst": 3.0, "rlnOriginYAngst": -1.0}
    turned = {"rlnAngleRot": 90.0, "rlnAngleTilt": 0.0, "rlnAnglePsi": 0.0}
    rows = [shift | turned | {"rlnOpticsGroup": 2}, {name: 0.0 for name in shift}]
    particles = Particles.open(
        make(tmp_path, rows, [{}, {"rlnOpticsGroup": 2, "rlnVoltage": 200.0}], box)
    )
    assert (particles.path, particles.count, len(particles), particles.box) == (
        tmp_path / "a.star",
        2,
        2,
        box,
    )
    assert particles.pixel_size == 2.0
    assert particles.premultiplied is False
    assert particles.half is None
    assert particles.ignored == []
    views = particles.views
    assert views.rotation.dtype == views.origin.dtype == torch.float64
    quarter = torch.tensor(
        [[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64
    )
    torch.testing.assert_close(
        views.rotation[0], quarter, atol=1e-15, rtol=0
    )  # the axes turn, so x goes to -y
    ten = torch.tensor(math.pi / 18, dtype=torch.float64)
    torch.testing.assert_close(
        views.rotation[1], rotations.from_euler(ten, 2 * ten, 3 * ten), atol=1e-15, rtol=0
    )
    assert views.origin.tolist() == [[3.0, -1.0], [0.0, 0.0]]
    assert views.index.tolist() == [0, 1]
    assert views.group.tolist() == [1, 0]
    assert views.optics.voltage.tolist() == [200.0, 300.0]
    assert torch.equal(
        particles.images(torch.tensor([1, 0, 1])),
        torch.tensor([2.0, 1.0, 2.0])[:, None, None].expand(3, box, box),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch(tmp_path, make, dtype):
    particles = Particles.open(make(tmp_path, [{"rlnAngleRot": 10.0 * i} for i in range(4)]))
    rows = torch.tensor([3, 1])
    batch = particles.batch(rows, dtype) if dtype != torch.float32 else particles.batch(rows)
    assert len(batch) == 2
    assert (
        batch.images.dtype
        == batch.views.rotation.dtype
        == batch.views.optics.defocus_u.dtype
        == dtype
    )
    assert batch.images[:, 0, 0].tolist() == [4.0, 2.0]
    assert batch.views.index.tolist() == [3, 1]
    assert torch.equal(batch.views.rotation, particles.views.rotation[rows].to(dtype))


def test_datadir(tmp_path, make):
    path = make(tmp_path, [{}])
    (tmp_path / "there").mkdir()
    (tmp_path / "stack.mrcs").rename(tmp_path / "there" / "stack.mrcs")
    fails(path, "--datadir")
    assert Particles.open(str(path), datadir=str(tmp_path / "there")).count == 1


def test_without_contrast_transfer(tmp_path, make):
    path = make(tmp_path, [{}])
    assert Particles.open(path, ctf=False).views.optics is None
    assert Particles.open(path).views.optics is not None


def test_pixels_that_are_not_finite(tmp_path, make):
    path = make(tmp_path, [{}, {}, {}])
    with mrcfile.mmap(tmp_path / "stack.mrcs", "r+") as mrc:
        mrc.data[1, 2, 3], mrc.data[2, 0, 0] = np.nan, np.inf
    particles = Particles.open(path)
    assert torch.equal(particles.images(torch.tensor([0])), torch.ones(1, 4, 4))
    fails(
        path,
        "'2@stack.mrcs'",
        "row 2",
        "not finite",
        "remove that row",
        call=lambda p: particles.images(torch.tensor([0, 1])),
    )
    fails(
        path,
        "'3@stack.mrcs'",
        "row 3",
        "not finite",
        call=lambda p: particles.batch(torch.tensor([2])),
    )


def test_box_that_the_optics_table_denies(tmp_path, make):
    fails(
        make(tmp_path, [{}], [{"rlnImageSize": 6}]),
        "rlnImageSize",
        "is 6 for row 1",
        "4 pixels wide",
        "written with this STAR file",
    )
    assert Particles.open(make(tmp_path, [{}], [{"rlnImageSize": 4}])).box == 4


def test_pixel_sizes(tmp_path, make):
    def two(size):
        return [{}, {"rlnOpticsGroup": 2, "rlnImagePixelSize": size}]

    rows = [{}, {"rlnOpticsGroup": 2}]
    several = Particles.open(make(tmp_path, rows, two(2.5)))
    assert several.lattice_change is not None and several.pixel_size == 2.5
    assert Particles.open(make(tmp_path, rows, two(2.00001))).pixel_size == 2.0  # rounding
    assert (
        Particles.open(make(tmp_path, [{}, {}], two(2.5))).pixel_size == 2.0
    )  # a group without particles


def test_premultiplied(tmp_path, make):
    flag = "rlnCtfDataAreCtfPremultiplied"
    rows = [{}, {"rlnOpticsGroup": 2}]
    path = make(tmp_path, rows, [{flag: 1}, {"rlnOpticsGroup": 2, flag: 1}])
    assert Particles.open(path).premultiplied is True
    fails(path, flag, "is 1", "with their CTF", call=lambda p: Particles.open(p, ctf=False))
    fails(
        make(tmp_path, rows, [{flag: 1}, {"rlnOpticsGroup": 2, flag: 0}]),
        flag,
        "0 for some",
        "1 for others",
        "select the optics groups",
    )
    fails(
        make(tmp_path, rows, [{flag: 1}, {"rlnOpticsGroup": 2, flag: 2}]),
        flag,
        "row 2",
        "is 2",
        "0 or 1",
    )


def test_ignored(tmp_path, make):
    path = make(tmp_path, [{}], [{"rlnOddZernike": "None"}])
    assert Particles.open(path).ignored == ["rlnOddZernike"]


def test_halves_of_the_file(tmp_path, make):
    path = make(
        tmp_path,
        [
            {"rlnRandomSubset": n, "rlnGroupName": g}
            for n, g in ((2, "a"), (1, "b"), (2, "c"), (2, "a"), (1, "d"))
        ],
    )
    particles = Particles.open(path)
    assert particles.half.dtype == torch.long
    assert particles.half.tolist() == [1, 0, 1, 1, 0]
    assert torch.equal(particles.split(3), particles.half)
    assert torch.equal(particles.split(3, "rlnGroupName"), particles.half)
    fails(
        make(tmp_path, [{"rlnRandomSubset": 1}, {"rlnRandomSubset": 0}]),
        "rlnRandomSubset",
        "row 2",
        "is 0",
        "1 or 2",
    )


def test_halves_of_the_file_that_part_a_group(tmp_path, make):
    path = make(
        tmp_path,
        [{"rlnRandomSubset": n, "rlnGroupName": g} for n, g in ((2, "a"), (1, "b"), (2, "b"))],
    )
    fails(
        path,
        "rlnRandomSubset",
        "rlnGroupName 'b' in both halves",
        "remove",
        call=lambda p: Particles.open(p).split(0, "rlnGroupName"),
    )


@given(count=st.integers(2, 30), seed=st.integers(0, 2**31))
def test_drawn_halves_are_balanced_and_follow_the_seed(make, count, seed):
    with tempfile.TemporaryDirectory() as folder:
        particles = Particles.open(make(Path(folder), [{}] * count))
        half, again, other = (particles.split(s) for s in (seed, seed, seed + 1))
    assert abs(int((half == 0).sum()) - int((half == 1).sum())) == count % 2
    assert torch.equal(half, again)
    if count == 30:  # 1 in 10^8 for a true change of seed
        assert not torch.equal(half, other)


@given(
    labels=st.lists(st.integers(1, 6), min_size=2, max_size=30).filter(lambda v: len(set(v)) > 1),
    seed=st.integers(0, 2**31),
)
def test_rows_that_belong_together_stay_together(make, labels, seed):
    with tempfile.TemporaryDirectory() as folder:
        particles = Particles.open(make(Path(folder), [{"rlnGroupName": f"g{n}"} for n in labels]))
        group = particles.groups("rlnGroupName")
        half = particles.split(seed, "rlnGroupName")
    assert [labels.index(n) for n in labels] == [
        group.tolist().index(g) for g in group.tolist()
    ]  # the same partition
    assert sorted(set(group.tolist())) == list(range(len(set(labels))))
    assert all(len(set(half[group == g].tolist())) == 1 for g in group.unique())
    assert set(half.tolist()) == {0, 1}
    largest = max(labels.count(n) for n in labels)
    assert abs(int((half == 0).sum()) - int((half == 1).sum())) <= largest


def test_groups_that_cannot_be(tmp_path, make):
    path = make(tmp_path, [{"rlnGroupName": g} for g in ("a", "nan", "a")])
    particles = Particles.open(path)
    fails(path, "no column rlnFoo", "name a column", call=lambda p: particles.split(0, "rlnFoo"))
    fails(
        path,
        "rlnGroupName of row 2",
        "no value",
        "remove that row",
        call=lambda p: particles.groups("rlnGroupName"),
    )
    fails(
        path,
        "only one value of rlnOpticsGroup",
        "give more",
        call=lambda p: particles.split(0, "rlnOpticsGroup"),
    )
    path = make(tmp_path, [{}])
    fails(path, "one particle", "without halves", call=lambda p: Particles.open(p).split(0))


def test_six_optics_groups_of_two_pixel_sizes(shared_data, tmp_path, write_stack):
    """The real file names 139 stacks, which are made here; its two pixel sizes become one, all of
    its aberrations are read, and one group of it is left as it is.
    """
    source = (
        (shared_data / "star-corpus" / "relion31.6opticsgroups.star")
        .read_text()
        .replace(" 196 2 0 ", " 8 2 0 ")
    )
    lines = source.splitlines()
    wanted = []
    for line in lines:
        name = next((word for word in line.split() if "@" in word), None)
        if name:
            number, _, path = name.partition("@")
            wanted.append((int(number), path))
    for path in {p for _, p in wanted}:
        top = max(n for n, p in wanted if p == path)
        write_stack(
            tmp_path / path,
            np.arange(1, top + 1, dtype=np.int16)[:, None, None] * np.ones((1, 8, 8), np.int16),
        )
    star = tmp_path / "all.star"
    star.write_text(source)
    both = Particles.open(star)
    assert both.lattice_change == (
        "optics groups of 8 px of 1.25 Å and 8 px of 1.24 Å are brought to 6 px of 1.25 Å"
    )
    assert both.ignored == []
    assert both.views.magnification.unique(dim=0).shape == (6, 2, 2)
    constant = torch.tensor([float(n) for n, _ in wanted])[:, None, None].expand(-1, 6, 6)
    torch.testing.assert_close(both.images(torch.arange(both.count)), constant)
    sixth = tmp_path / "some.star"
    sixth.write_text(
        "\n".join(line for line in lines if "@" not in line or line.split()[10] == "6") + "\n"
    )
    particles = Particles.open(sixth)
    numbers = [
        n
        for (n, _), line in zip(wanted, [line for line in lines if "@" in line], strict=True)
        if line.split()[10] == "6"
    ]
    assert particles.images(torch.arange(particles.count))[:, 3, 5].tolist() == numbers
    assert particles.ignored == []
    assert particles.views.group.unique().tolist() == [5]


def test_real_tilt_images(shared_data):
    folder = shared_data / "ribosome-tilts"
    particles = Particles.open(folder / "particles.star")
    assert (particles.count, particles.box, particles.pixel_size, particles.premultiplied) == (
        1430,
        32,
        12.0,
        True,
    )
    rows = torch.tensor([1429, 0, 700, 3])
    whole = mrcfile.read(folder / "particles.mrcs")
    assert whole.dtype == np.float16
    assert torch.equal(
        particles.images(rows), torch.from_numpy(whole[rows.numpy()].astype(np.float32))
    )
    half = particles.split(0, group_by="rlnGroupName")
    assert particles.groups("rlnGroupName").max() == 39
    assert torch.equal(half, particles.half)
    assert (particles.views.rotation.det() - 1).abs().max() < 1e-12


def test_real_single_particles(shared_data):
    particles = Particles.open(shared_data / "empiar-10076-7" / "particles.star")
    assert (particles.count, particles.box, particles.pixel_size, particles.premultiplied) == (
        7,
        320,
        1.31,
        False,
    )
    assert particles.half is None
    assert particles.images(torch.arange(7)).shape == (7, 320, 320)
    assert sorted(particles.split(1).bincount().tolist()) == [3, 4]
