"""Stacks give exactly the pixels that N@path names, in the order asked for; files that do not fit
are named.
"""

import errno
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instamap.data import stacks
from instamap.data.stacks import Stacks
from instamap.errors import DataError


def numbered(count: int, box: int, start: int = 0, dtype=np.float32) -> np.ndarray:
    """Images whose pixel [n, y, x] is start + 100 n + 10 y + x: small whole numbers, exact in every
    type but int8.
    """
    n, y, x = np.ogrid[:count, :box, :box]
    return (start + 100 * n + 10 * y + x).astype(dtype)


def fails(names, star, *words, datadir=None) -> None:
    """Opening raises a DataError of one line that holds all `words`."""
    with pytest.raises(DataError) as caught:
        Stacks(names, star, datadir)
    message = str(caught.value)
    assert "\n" not in message
    for word in (";", *words):
        assert word in message, message


@pytest.mark.parametrize("dtype", ["float32", "float16", "int16", "uint16", ">f4", ">i2"])
@pytest.mark.parametrize("box", [4, 5])
def test_every_type_is_read_exactly(tmp_path, write_stack, dtype, box):
    images = numbered(3, box, dtype=dtype)
    write_stack(tmp_path / "s.mrcs", images)
    seen = Stacks(["3@s.mrcs", "1@s.mrcs", "2@s.mrcs"], tmp_path / "a.star")
    assert (seen.box, len(seen)) == (box, 3)
    read = seen.read(np.array([0, 1, 2, 0]))
    assert read.dtype == np.float32
    assert np.array_equal(read, images[[2, 0, 1, 2]].astype(np.float32))


def test_bytes_are_signed(tmp_path, write_stack):
    images = np.arange(-8, 8, dtype=np.int8).reshape(1, 4, 4)
    write_stack(tmp_path / "s.mrcs", images)
    assert np.array_equal(
        Stacks(["1@s.mrcs"], tmp_path / "a.star").read(np.array([0])), images.astype(np.float32)
    )


@pytest.mark.parametrize("name", ["s.mrc", "1@s.mrc"])
def test_single_image_is_a_stack_of_one(tmp_path, write_stack, name):
    write_stack(tmp_path / "s.mrc", numbered(1, 4)[0])
    assert np.array_equal(Stacks([name], tmp_path / "a.star").read(np.array([0])), numbered(1, 4))


def test_volume_flag_extended_header_and_trailing_bytes_do_not_matter(tmp_path):
    path = tmp_path / "s.mrcs"
    with mrcfile.new(path) as mrc:
        mrc.set_extended_header(np.zeros(64, "V1"))
        mrc.set_data(numbered(3, 4))
        mrc.set_volume()
    with path.open("r+b") as file:
        file.seek(208)
        file.write(b"    ")  # no map string, as in files from before 2000
        file.seek(0, 2)
        file.write(b"rest")
    assert np.array_equal(
        Stacks(["2@s.mrcs"], tmp_path / "a.star").read(np.array([0])), numbered(3, 4)[1:2]
    )


@given(st.data())
def test_any_rows_in_any_order_from_several_stacks(write_stack, data):
    counts = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    where = [(stack, index) for stack, count in enumerate(counts) for index in range(count)]
    where = data.draw(st.permutations(where))
    rows = data.draw(st.lists(st.integers(0, len(where) - 1), max_size=8))
    with tempfile.TemporaryDirectory() as folder:
        images = [numbered(count, 3, 1000 * stack) for stack, count in enumerate(counts)]
        for stack, values in enumerate(images):
            write_stack(Path(folder) / f"{stack}.mrcs", values)
        seen = Stacks(
            [f"{index + 1:06d}@{stack}.mrcs" for stack, index in where], Path(folder) / "a.star"
        )
        read = seen.read(np.array(rows, np.int64))
    assert read.shape == (len(rows), 3, 3)
    for image, row in zip(read, rows, strict=True):
        stack, index = where[row]
        assert np.array_equal(image, images[stack][index])


@pytest.fixture
def opened(monkeypatch):
    """Names of the files that are opened, in order."""
    names = []
    open_file = stacks.OpenFile
    monkeypatch.setattr(stacks, "OpenFile", lambda path: names.append(path.name) or open_file(path))
    return names


def test_few_stacks_stay_open_and_those_serve_again(tmp_path, write_stack, opened, monkeypatch):
    monkeypatch.setattr(stacks, "_most_open_files", lambda: 2)
    for i in range(4):
        write_stack(tmp_path / f"{i}.mrcs", numbered(2, 3, 1000 * i))
    seen = Stacks([f"{n}@{i}.mrcs" for n in (2, 1) for i in range(4)], tmp_path / "a.star")
    assert len(opened) == 4, "each header is read once"
    del opened[:]
    first = seen.read(np.arange(8))[:, 0, 0]
    assert first.tolist() == [100, 1100, 2100, 3100, 0, 1000, 2000, 3000]
    assert opened == ["0.mrcs", "1.mrcs", "2.mrcs", "3.mrcs"]
    assert np.array_equal(seen.read(np.array([2, 3, 6, 7]))[:, 0, 0], [2100, 3100, 2000, 3000])
    assert len(opened) == 4  # those that are open serve again
    for row in (2, 0, 2):
        seen.read(np.array([row]))
    assert opened[4:] == ["0.mrcs"]  # which took the place of stack 3, not used for longest


def test_paths_start_at_the_star_file_or_a_parent(tmp_path, write_stack):
    project = tmp_path / "project"
    job = tmp_path / "project" / "Refine3D" / "job001"
    job.mkdir(parents=True)
    write_stack(project / "Extract" / "s.mrcs", numbered(1, 3, 1))
    write_stack(job / "own.mrcs", numbered(1, 3, 2))
    write_stack(project / "far.mrcs", numbered(1, 3, 3))
    (project / "Refine3D" / "own.mrcs").symlink_to(job / "own.mrcs")
    seen = Stacks(
        ["1@Extract/s.mrcs", "1@own.mrcs", f"1@{project}/far.mrcs"], job / "run_data.star"
    )
    assert seen.read(np.arange(3))[:, 0, 0].tolist() == [1, 2, 3]


def test_a_path_that_fits_two_files_is_refused(tmp_path, write_stack):
    """RELION would take the project's, others the one beside the STAR file."""
    write_stack(tmp_path / "s.mrcs", numbered(1, 3, 1))
    write_stack(tmp_path / "Refine" / "s.mrcs", numbered(1, 3, 2))
    star = tmp_path / "Refine" / "a.star"
    places = [f"'{folder / 's.mrcs'}'" for folder in (tmp_path / "Refine", tmp_path)]
    fails(["1@s.mrcs"], star, "row 1", *places, "different", "--datadir")
    for folder, value in ((tmp_path, 1), (tmp_path / "Refine", 2)):
        assert Stacks(["1@s.mrcs"], star, folder).read(np.array([0]))[0, 0, 0] == value


def test_relative_star_path(tmp_path, write_stack, monkeypatch):
    write_stack(tmp_path / "Extract" / "s.mrcs", numbered(1, 3, 1))
    (tmp_path / "job").mkdir()
    monkeypatch.chdir(tmp_path / "job")
    assert Stacks(["1@Extract/s.mrcs"], Path("a.star")).read(np.array([0]))[0, 0, 0] == 1


def test_datadir_replaces_the_places(tmp_path, write_stack):
    datadir = tmp_path / "data"
    write_stack(datadir / "sub" / "s.mrcs", numbered(1, 3, 1))
    write_stack(datadir / "s.mrcs", numbered(1, 3, 2))
    write_stack(datadir / "t.mrcs", numbered(1, 3, 3))
    write_stack(tmp_path / "u.mrcs", numbered(1, 3, 4))
    names = ["1@sub/s.mrcs", "1@s.mrcs", "1@/gone/t.mrcs"]
    assert Stacks(names, tmp_path / "a.star", datadir).read(np.arange(3))[:, 0, 0].tolist() == [
        1,
        2,
        3,
    ]
    fails(
        ["1@u.mrcs"],
        tmp_path / "a.star",
        "u.mrcs",
        "missing",
        f"'{datadir / 'u.mrcs'}'",
        "--datadir",
        datadir=datadir,
    )


def test_missing_stack_says_where_it_was_looked_for(tmp_path):
    star = tmp_path / "job" / "a.star"
    places = [
        f"'{folder / 'sub' / 's.mrcs'}'"
        for folder in (tmp_path / "job", tmp_path, tmp_path.parent, Path("/"))
    ]
    fails(["1@sub/s.mrcs"], star, "stack 'sub/s.mrcs' of row 1", str(star), *places, "--datadir")


def test_index_beyond_the_stack(tmp_path, write_stack):
    write_stack(tmp_path / "s.mrcs", numbered(3, 4))
    words = ("row 2", "image 4", str(tmp_path / "s.mrcs"), "has 3", "written with this STAR file")
    fails(["3@s.mrcs", "4@s.mrcs"], tmp_path / "a.star", *words)


@pytest.mark.parametrize(
    "name", ["0@s.mrcs", "x@s.mrcs", "-1@s.mrcs", "1.5@s.mrcs", "@s.mrcs", "1@"]
)
def test_names_that_say_no_image(tmp_path, write_stack, name):
    write_stack(tmp_path / "s.mrcs", numbered(3, 4))
    fails([name], tmp_path / "a.star", "row 1", f"'{name}'", "N@stack with N from 1")


def test_stack_without_a_number(tmp_path, write_stack):
    write_stack(tmp_path / "s.mrcs", numbered(3, 4))
    fails(["s.mrcs"], tmp_path / "a.star", "row 1", "'s.mrcs'", "a stack of 3 images", "N@stack")


def test_images_that_are_not_square(tmp_path, write_stack):
    write_stack(tmp_path / "s.mrcs", numbered(3, 4)[:, :, :3])
    fails(["1@s.mrcs"], tmp_path / "a.star", str(tmp_path / "s.mrcs"), "3 x 4 pixels", "square")


def test_unequal_boxes(tmp_path, write_stack):
    write_stack(tmp_path / "s.mrcs", numbered(1, 4))
    write_stack(tmp_path / "t.mrcs", numbered(1, 6))
    fails(
        ["1@s.mrcs", "1@t.mrcs"],
        tmp_path / "a.star",
        str(tmp_path / "s.mrcs"),
        "4 pixels",
        str(tmp_path / "t.mrcs"),
        "6",
        "one box",
    )


def test_files_that_are_no_stacks(tmp_path, write_stack):
    star = tmp_path / "a.star"
    path = tmp_path / "s.mrcs"
    path.write_text("hello")
    fails(["1@s.mrcs"], star, str(path), "can't be read as MRC", "copy it again")
    path.write_bytes(b"x" * 4000)
    fails(["1@s.mrcs"], star, str(path), "can't be read as MRC", "copy it again")
    write_stack(path, numbered(3, 4))
    path.write_bytes(path.read_bytes()[:-10])
    fails(["1@s.mrcs"], star, str(path), "shorter than its header says", "copy it again")
    write_stack(path, numbered(3, 4).astype(np.complex64))
    fails(["1@s.mrcs"], star, str(path), "complex64", "real images")
    write_stack(path, numbered(4, 4).reshape(2, 2, 4, 4))
    fails(["1@s.mrcs"], star, str(path), "4 dimensions", "stack of real images")


def test_stack_that_may_not_be_read(tmp_path, write_stack, monkeypatch):
    write_stack(tmp_path / "s.mrcs", numbered(1, 4))

    def refuse(*arguments):
        raise PermissionError(errno.EACCES, "said by the library")

    monkeypatch.setattr(os, "open", refuse)
    words = (str(tmp_path / "s.mrcs"), "permission is denied", "make it readable")
    fails(["1@s.mrcs"], tmp_path / "a.star", *words)


@pytest.mark.parametrize(
    "names",
    [("day1/g.mrcs", "day2/g.mrcs"), ("there/g.mrcs", "day2/g.mrcs"), ("g.mrcs", "a/g.mrcs")],
)
def test_two_paths_that_end_at_one_file_name_are_refused(tmp_path, write_stack, names):
    write_stack(tmp_path / "d" / "g.mrcs", numbered(1, 3, 1))
    write_stack(tmp_path / "d" / "there" / "g.mrcs", numbered(1, 3, 2))
    for order in (names, names[::-1]):
        words = ("row 2", *[f"'{name}'" for name in order], f"'{tmp_path / 'd' / 'g.mrcs'}'")
        star = tmp_path / "a.star"
        fails([f"1@{name}" for name in order], star, *words, datadir=tmp_path / "d")


def test_threads_share_the_open_files(tmp_path, write_stack, monkeypatch):
    """Two fits read at once: no more files than allowed stay open, and every image is right."""
    count = 40
    for i in range(count):
        write_stack(tmp_path / f"{i}.mrc", np.full((4, 4), i, np.float32))
    monkeypatch.setattr(stacks, "_most_open_files", lambda: 3)
    made = Stacks([f"{i}.mrc" for i in range(count)], tmp_path / "particles.star")
    orders = [
        np.random.default_rng(seed).permutation(np.tile(np.arange(count), 20)) for seed in (1, 2)
    ]

    def read(order):
        for row in order:
            assert (made.read(np.array([row])) == row).all()
            assert len(made._sources) <= 3

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(read, order) for order in orders]:
            done.result()
