"""Stacks give exactly the pixels that N@path names, in the order asked for; files that do not fit
are named.
"""

import bz2
import errno
import gzip
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mrcfile.dtypes import HEADER_DTYPE

from instamap.data import stacks
from instamap.data.stacks import Stacks, new_stack
from instamap.errors import DataError, OutputError


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
    """Images of one box at a time are read; what may have which is for `Particles` to say."""
    write_stack(tmp_path / "s.mrcs", numbered(2, 4))
    write_stack(tmp_path / "t.mrcs", numbered(1, 6))
    stacks = Stacks(["2@s.mrcs", "1@t.mrcs", "1@s.mrcs"], tmp_path / "a.star")
    assert stacks.boxes.tolist() == [4, 6, 4]
    assert stacks.box == 6
    rows = np.array([1, 2, 0])
    assert [places.tolist() for places in stacks.by_box(rows)] == [[1, 2], [0]]
    assert stacks.read(np.array([2, 0])).shape == (2, 4, 4)
    assert stacks.middle_lines(np.array([1])).shape == (1, 6)


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


def change(path: Path, **fields) -> None:
    """Write fields of a header anew: by name, or bytes at a place (at_208=...)."""
    content = bytearray(path.read_bytes())
    for name, value in fields.items():
        if name.startswith("at_"):
            start = int(name[3:])
            content[start : start + len(value)] = value
        else:
            start = HEADER_DTYPE.fields[name][1]
            content[start : start + 4] = int(value).to_bytes(4, "little")
    path.write_bytes(content)


def read_all(path: Path) -> np.ndarray:
    count = Stacks([f"1@{path.name}"], path.with_name("a.star"))._stacks[0].layout.shape[0]
    names = [f"{i + 1}@{path.name}" for i in range(count)]
    return Stacks(names, path.with_name("a.star")).read(np.arange(count))


@pytest.mark.parametrize(
    "stamp",
    [b"DD\0\0", b"DA\0\0", b"D\x11\0\0", b"D   ", b"\0\0\0\0", b"\x11\x11\0\0", b"\xff" * 4],
)
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<i2", ">u2", "i1"])
def test_any_stamp_is_read_to_the_same_bits(tmp_path, write_stack, stamp, dtype):
    images = (numbered(3, 5) / 7).astype(dtype)
    path = write_stack(tmp_path / "s.mrcs", images)
    change(path, at_212=stamp)
    assert np.array_equal(read_all(path), images.astype(np.float32))


@pytest.mark.parametrize(
    ("stamp", "flags", "is_signed"),
    [(1146047817, 0, False), (1146047817, 1, True), (1146047817, 6, False), (0, 0, True)],
)
@pytest.mark.parametrize("order", "<>")
def test_bytes_have_the_sign_that_imod_says(tmp_path, write_stack, stamp, flags, is_signed, order):
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    path = write_stack(tmp_path / "s.mrcs", values.view(np.int8))
    if order == ">":
        content = path.read_bytes()
        swapped = np.frombuffer(content, HEADER_DTYPE, 1).byteswap()
        swapped["machst"] = 17
        path.write_bytes(swapped.tobytes() + content[1024:])
    change(path, at_152=np.array([stamp, flags], f"{order}i4").tobytes())
    expected = values.view(np.int8) if is_signed else values
    assert np.array_equal(read_all(path), expected.astype(np.float32))


@pytest.mark.parametrize("box", [4, 5])
def test_four_bits_a_pixel(tmp_path, write_stack, box):
    """The first of two pixels is in the lower bits; a row of odd length ends in half a byte."""
    images = np.random.default_rng(0).integers(0, 16, (3, box, box)).astype(np.uint8)
    even = np.pad(images, ((0, 0), (0, 0), (0, box % 2)))
    packed = even[..., 0::2] | even[..., 1::2] << 4
    path = write_stack(tmp_path / "s.mrcs", np.zeros((3, box, box), np.int8))
    path.write_bytes(path.read_bytes()[:1024] + packed.tobytes())
    change(path, mode=101)
    assert np.array_equal(read_all(path), images)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
@pytest.mark.parametrize("name", ["s.mrcs.gz", "s.mrcs"])
def test_compressed_stacks(tmp_path, write_stack, pack, name):
    """Known by what is in them, not by their name; extended headers and trailing bytes too."""
    names = []
    for i in range(3):
        path = write_stack(tmp_path / f"{i}-{name}", numbered(4, 5, 1000 * i, ">i2"))
        content = path.read_bytes()
        head = np.frombuffer(content, HEADER_DTYPE.newbyteorder(">"), 1).copy()
        head["nsymbt"] = 77
        content = head.tobytes() + bytes(77) + content[1024:] + b"rest" * i
        path.write_bytes(pack(content[:300]) + pack(content[300:]) + bytes(i))
        names += [f"{n + 1}@{path.name}" for n in range(4)]
    seen = Stacks(names, tmp_path / "a.star")
    rows = np.random.default_rng(0).permutation(12)
    expected = np.concatenate([numbered(4, 5, 1000 * i) for i in range(3)])
    for _ in range(2):
        assert np.array_equal(seen.read(rows), expected[rows])


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_damaged_compressed_stacks(tmp_path, write_stack, pack):
    images = np.random.default_rng(0).normal(size=(40, 16, 16)).astype(np.float32)
    path = write_stack(tmp_path / "s.mrcs", images)
    star = tmp_path / "a.star"
    packed = pack(path.read_bytes())
    whole = path.read_bytes()
    middle = len(packed) // 2
    for spoilt in (
        packed[:middle],
        packed[:middle] + bytes(40) + packed[middle + 40 :],
        packed[:-6] + bytes(6),
        pack(whole[:-1]),
    ):
        path.write_bytes(spoilt)
        with pytest.raises(
            DataError, match=r"'.*s.mrcs' can't be read.*(its \w+ data|makes no sense)"
        ):
            Stacks(["3@s.mrcs"], star).read(np.array([0]))
    path.write_bytes(packed[:30])
    fails(["1@s.mrcs"], star, str(path), "can't be read as MRC")


def test_what_expands_without_end_is_not_unpacked(tmp_path, write_stack):
    """Hardly more than the header says; and a header cannot say more than gzip can hold."""
    path = write_stack(tmp_path / "s.mrcs", numbered(3, 4))
    path.write_bytes(gzip.compress(path.read_bytes() + bytes(50_000_000)))
    seen = Stacks(["3@s.mrcs"], tmp_path / "a.star")
    with pytest.raises(DataError, match="s.mrcs' .*longer than its header says"):
        seen.read(np.array([0]))
    path = write_stack(tmp_path / "t.mrcs", numbered(3, 4))
    change(path, nx=30_000, ny=30_000, nz=30_000)
    path.write_bytes(gzip.compress(path.read_bytes()))
    fails(["3@t.mrcs"], tmp_path / "a.star", "t.mrcs", "shorter than its header says")


def test_no_room_to_unpack(tmp_path, write_stack, monkeypatch):
    path = write_stack(tmp_path / "s.mrcs", numbered(3, 4))
    path.write_bytes(gzip.compress(path.read_bytes()))
    seen = Stacks(["3@s.mrcs"], tmp_path / "a.star")

    def full(*arguments):
        raise OSError(errno.ENOSPC, "said by the library")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError, match=r"s.mrcs' of 192 bytes.*no space is left.*TMPDIR"):
        seen.read(np.array([0]))


def test_stacks_beyond_four_gigabytes(tmp_path, write_stack):
    box = 2048
    count = 300
    path = write_stack(tmp_path / "s.mrcs", np.zeros((1, box, box), np.float32))
    change(path, nz=count)
    last = numbered(1, box, 5)
    with path.open("r+b") as file:
        file.seek(1024 + (count - 1) * last.nbytes)
        file.write(last.tobytes())
    assert path.stat().st_size > 1 << 32
    seen = Stacks([f"{count}@s.mrcs", "2@s.mrcs"], tmp_path / "a.star")
    assert np.array_equal(seen.read(np.arange(2)), np.concatenate([last, 0 * last]))


def spoil(path: Path, how: str) -> None:
    if how == "cut off":
        os.truncate(path, 1024 + 70)
    elif how == "longer":
        with path.open("ab") as file:
            file.write(b"more")
    elif how == "replaced":
        path.with_name("new").write_bytes(path.read_bytes())
        path.with_name("new").replace(path)
    elif how == "changed":
        os.utime(path, ns=(1, 1))
    elif how == "a folder":
        path.unlink()
        path.mkdir()
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("cut off", "(cut off|changed while).*"),
        ("longer", "changed while it was in use .it had 1216 bytes and has 1220"),
        ("replaced", "changed while it was in use"),
        ("changed", "changed while it was in use"),
        ("vanished", "has vanished.*put it back"),
        ("a folder", "(changed while|is a folder)"),
    ],
)
@pytest.mark.parametrize("is_open", [True, False])
def test_a_stack_that_changes_while_it_is_in_use(tmp_path, write_stack, how, said, is_open):
    path = write_stack(tmp_path / "s.mrcs", numbered(3, 4))
    seen = Stacks(["2@s.mrcs", "3@s.mrcs"], tmp_path / "a.star")
    if is_open:
        seen.read(np.arange(2))
    spoil(path, how)
    with pytest.raises(DataError, match=rf"stack '{path}' .*{said}") as caught:
        seen.read(np.arange(1, 2))
    assert "row 2" in str(caught.value) or how == "vanished"


def test_an_input_output_error_is_one_line(tmp_path, write_stack, monkeypatch):
    path = write_stack(tmp_path / "s.mrcs", numbered(3, 4))
    seen = Stacks(["2@s.mrcs"], tmp_path / "a.star")

    def broken(*arguments):
        raise OSError(errno.EIO, "said by the library")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(DataError, match=rf"'{path}'.*image 2.*row 1.*input/output.*check the disk"):
        seen.read(np.array([0]))


def test_reading_goes_on_where_the_system_stops_early(tmp_path, write_stack, monkeypatch):
    """Calls beyond 2 GB, and signals, end with fewer bytes than were asked for."""
    write_stack(tmp_path / "s.mrcs", numbered(9, 5))
    seen = Stacks([f"{i + 1}@s.mrcs" for i in range(9)], tmp_path / "a.star")
    preadv = os.preadv

    def few(descriptor, buffers, offset):
        view = memoryview(buffers[0]).cast("B")
        return preadv(descriptor, [view[:37]], offset)

    monkeypatch.setattr(os, "preadv", few)
    assert np.array_equal(seen.read(np.arange(9)), numbered(9, 5))


def test_more_stacks_than_open_files(tmp_path, write_stack):
    """In a process that may open few; none of the limit is left for others."""
    for i in range(80):
        write_stack(tmp_path / f"{i}.mrcs", numbered(1, 4, i))
    program = f"""
import os, resource, sys
from pathlib import Path
import numpy as np
from instamap.data.stacks import Stacks
resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
names = [f"1@{{i}}.mrcs" for i in range(80)] * 2
seen = Stacks(names, Path({str(tmp_path / "a.star")!r}))
expected = [float(name[2:-5]) for name in names]
assert seen.read(np.arange(160))[:, 0, 0].tolist() == expected
held = []
try:
    while True:
        held.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    os.close(held.pop())
assert [float(seen.read(np.array([i]))[0, 0, 0]) for i in range(160)] == expected
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_images_that_are_not_finite_are_all_named(tmp_path, write_stack):
    images = numbered(40, 4)
    for i in (3, *range(10, 25)):
        images[i, 1, 2] = (np.nan, np.inf, -np.inf)[i % 3]
    path = write_stack(tmp_path / "s.mrcs", np.zeros_like(images))
    path.write_bytes(path.read_bytes()[:1024] + images.tobytes())
    seen = Stacks([f"{i + 1}@s.mrcs" for i in range(40)], tmp_path / "a.star")
    words = r"'4@s.mrcs' of row 4 of '.*a.star'.*not finite.*rows 11, 12, .*19 and 6 more; "
    with pytest.raises(DataError, match=words):
        seen.read(np.arange(39, -1, -1))
    huge = np.full((2, 4, 4), 3e38, np.float32)
    path = write_stack(tmp_path / "huge.mrcs", np.zeros_like(huge))
    path.write_bytes(path.read_bytes()[:1024] + huge.tobytes())  # finite, though the sum is not
    rows = Stacks(["1@huge.mrcs", "2@huge.mrcs"], tmp_path / "a.star").read(np.arange(2))
    assert np.array_equal(rows, huge)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (Path.mkdir, "a folder"),
        (os.mkfifo, "a named pipe"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
        (lambda path: path.touch(), "empty"),
        (lambda path: path.write_bytes(b"\x89HDF\r\n" + bytes(2000)), "an HDF5 file"),
        (lambda path: path.write_bytes(b"\xfd7zXZ" + bytes(2000)), "compressed by xz"),
        (lambda path: path.write_bytes(bytes(5000)), "makes no sense"),
        (lambda path: path.write_bytes(b"\x01" * 700), "700 of 1024"),
    ],
)
def test_what_is_no_stack_is_said(tmp_path, make, word):
    make(tmp_path / "s.mrcs")
    fails(["1@s.mrcs"], tmp_path / "a.star", f"'{tmp_path / 's.mrcs'}'", word)


def test_a_pipe_in_the_place_of_a_stack_does_not_make_it_wait(tmp_path, write_stack):
    path = write_stack(tmp_path / "s.mrcs", numbered(3, 4))
    seen = Stacks(["1@s.mrcs"], tmp_path / "a.star")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="a named pipe"):
        seen.read(np.array([0]))


def test_a_new_stack_is_as_mrcfile_would_have_it(tmp_path):
    images = np.random.default_rng(0).normal(size=(5, 6, 6)).astype(np.float32)
    with new_stack(tmp_path / "new.mrcs", 5, 6, 1.37) as stack:
        stack.write(2, images[2:])
        stack.write(0, images[:2])
        assert np.array_equal(stack.read(1, 4), images[1:4])
    with mrcfile.new(tmp_path / "theirs.mrcs") as theirs:
        theirs.set_data(images)
        theirs.set_image_stack()
        theirs.voxel_size = 1.37
        theirs.reset_header_stats()
        theirs.header.label[0] = b"instamap"
    new = (tmp_path / "new.mrcs").read_bytes()
    assert new == (tmp_path / "theirs.mrcs").read_bytes()
    assert mrcfile.validate(str(tmp_path / "new.mrcs"))


def test_a_new_stack_is_whole_or_absent(tmp_path):
    with pytest.raises(ZeroDivisionError), new_stack(tmp_path / "s.mrcs", 5, 6, 1.0) as stack:
        stack.write(0, np.zeros((2, 6, 6)))
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_for_a_new_stack(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "said by the library")

    monkeypatch.setattr(os, "posix_fallocate", full)
    words = r"s.mrcs' cannot be written: it takes 1744 bytes, of which \d+ are free.*space.*; make"
    with pytest.raises(OutputError, match=words), new_stack(tmp_path / "s.mrcs", 5, 6, 1.0):
        raise AssertionError("nothing is computed in vain")
    monkeypatch.undo()
    monkeypatch.setattr(os, "pwrite", full)
    words = "s.mrcs' cannot be written: no space is left on its disk; make room"
    with pytest.raises(OutputError, match=words), new_stack(tmp_path / "s.mrcs", 5, 6, 1.0):
        pass
    assert not list(tmp_path.iterdir())
