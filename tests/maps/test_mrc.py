"""Maps survive the way to a file and back, with the header that RELION and ChimeraX agree on; bad
files are refused by name.
"""

import bz2
import gzip
import itertools
import os

import mrcfile
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mrcfile.dtypes import HEADER_DTYPE

from instamap.errors import DataError, OutputError
from instamap.maps import mrc


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mrc")


@pytest.fixture
def write_raw(tmp_path):
    """write_raw(data, size, axes) writes any array with any header."""

    def write(data, size=(1.0, 1.0, 1.0), axes=(1, 2, 3)):
        path = tmp_path / "raw.mrc"
        with mrcfile.new(path, overwrite=True) as file:
            file.set_data(np.zeros_like(data))
            file.data[...] = data  # unlike set_data, without a warning of what is not finite
            file.voxel_size = size
            file.header.mapc, file.header.mapr, file.header.maps = axes
        return path

    return write


@given(
    box=st.integers(1, 9), pixel_size=st.integers(100_000, 20_000_000), seed=st.integers(0, 2**32)
)
def test_a_map_comes_back_as_it_was(folder, box, pixel_size, seed):
    pixel_size /= (
        1e6  # six digits, as people write them; they come back in spite of the header's float32
    )
    map = torch.randn(box, box, box, generator=torch.Generator().manual_seed(seed))
    mrc.write(folder / "map.mrc", map, pixel_size)
    back, size = mrc.read(folder / "map.mrc")
    assert torch.equal(back, map) and back.dtype == torch.float32
    assert size == pytest.approx(pixel_size, rel=1e-6)


def test_the_header_says_what_other_programs_expect(tmp_path):
    path = tmp_path / "map.mrc"
    mrc.write(path, np.arange(60.0).reshape(3, 4, 5), 1.06)
    with mrcfile.open(path) as file:
        header = file.header
        assert (header.nx, header.ny, header.nz) == (5, 4, 3), "x is fastest"
        assert (
            header.mode == 2
            and header.ispg == 1
            and (header.mapc, header.mapr, header.maps) == (1, 2, 3)
        )
        assert (header.nxstart, header.nystart, header.nzstart) == (0, 0, 0)
        assert file.header.origin.item() == (0, 0, 0)
        assert header.cella.x == np.float32(5 * 1.06)
    assert mrcfile.validate(str(path))


def test_equal_maps_are_equal_files(tmp_path):
    for name in "ab":
        mrc.write(tmp_path / name, torch.ones(4, 4, 4), 1.0)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert b":" not in (tmp_path / "a").read_bytes()[:1024], "a time stamp in the header"


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint16, np.float16])
def test_other_modes_are_read(write_raw, dtype):
    data = np.arange(64).reshape(4, 4, 4).astype(dtype)
    map, size = mrc.read(write_raw(data, size=2.5))
    assert (
        map.dtype == torch.float32
        and torch.equal(map, torch.arange(64.0).reshape(4, 4, 4))
        and size == 2.5
    )


@pytest.mark.parametrize("axes", list(itertools.permutations((1, 2, 3))))
def test_the_axis_order_is_honoured(write_raw, axes):
    map = np.random.default_rng(0).normal(size=(5, 5, 5)).astype(np.float32)  # [z, y, x]
    mapc, mapr, maps = axes
    stored = map.transpose(
        [3 - axis for axis in (maps, mapr, mapc)]
    )  # axis 1 (x) is the last of [z, y, x]
    assert torch.equal(
        mrc.read(write_raw(np.ascontiguousarray(stored), axes=axes))[0], torch.from_numpy(map)
    )


def test_an_empty_axis_order_means_the_usual_one(write_raw):
    data = np.random.default_rng(0).normal(size=(4, 4, 4)).astype(np.float32)
    assert torch.equal(mrc.read(write_raw(data, axes=(0, 0, 0)))[0], torch.from_numpy(data))


CUBE = np.zeros((4, 4, 4), np.float32)
HOLE = np.where(np.arange(64).reshape(4, 4, 4) == 7, np.nan, CUBE)


@pytest.mark.parametrize(
    ("data", "header", "said"),
    [
        (np.zeros((3, 4, 4), np.float32), {}, r"shape \(3, 4, 4\).*cubic"),
        (np.zeros((4, 4), np.float32), {}, r"shape \(4, 4\).*cubic"),
        (np.zeros((4, 4, 4), np.complex64), {}, "complex"),
        (HOLE.astype(np.float32), {}, "1 values that are not finite"),
        (CUBE, {"axes": (1, 1, 3)}, "1, 1, 3.*permutation"),
        (CUBE, {"size": (1.0, 1.0, 1.1)}, "1 x 1 x 1.1"),
        (CUBE, {"size": 0.0}, "voxel size 0"),
    ],
)
def test_maps_that_cannot_be_used_are_refused(write_raw, data, header, said):
    path = write_raw(data, **header)
    with pytest.raises(DataError, match=said) as error:
        mrc.read(path)
    assert str(path) in str(error.value)


def test_files_that_are_no_maps_are_refused(tmp_path):
    with pytest.raises(DataError, match="nowhere.mrc' does not exist"):
        mrc.read(tmp_path / "nowhere.mrc")
    (tmp_path / "text.mrc").write_text("not a map" * 1000)
    with pytest.raises(DataError, match="text.mrc' cannot be read as MRC"):
        mrc.read(tmp_path / "text.mrc")
    mrc.write(tmp_path / "cut.mrc", CUBE, 1.0)
    (tmp_path / "cut.mrc").write_bytes((tmp_path / "cut.mrc").read_bytes()[:-4])
    with pytest.raises(DataError, match="cut.mrc' cannot be read as MRC"):
        mrc.read(tmp_path / "cut.mrc")


@pytest.mark.parametrize(
    ("map", "said"),
    [
        (np.zeros((4, 4)), "shape"),
        (HOLE, "1 values that are not finite"),
        (np.full((4, 4, 4), 1e300), "64 values that are not finite"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(tmp_path, map, said):
    with pytest.raises(DataError, match=said):
        mrc.write(tmp_path / "map.mrc", map, 1.0)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OutputError, match="map.mrc' cannot be written"):
        mrc.write(tmp_path / "no-such-folder" / "map.mrc", CUBE, 1.0)


def with_bytes(path, start, content):
    """The file with some bytes in its header changed."""
    whole = bytearray(path.read_bytes())
    whole[start : start + len(content)] = content
    path.write_bytes(whole)
    return path


@pytest.mark.parametrize(
    ("start", "content"),
    [
        (212, b"\x44\x11\0\0"),  # many maps of the EMDB
        (212, b"\x44\x20\x20\x20"),  # IMOD
        (212, bytes(4)),  # Amira
        (212, b"\x11\x11\0\0"),  # of the other byte order
        (208, bytes(4)),  # before the year 2000
        (104, b"\xff" * 8),  # neither a version nor a type of extended header
        (28, bytes(12)),  # an empty grid: that of the values
        (108, bytes(4)),
    ],
)
@pytest.mark.parametrize("trailing", [b"", bytes(77)])
def test_oddities_of_headers_do_not_matter(tmp_path, start, content, trailing):
    path = tmp_path / "map.mrc"
    density = torch.randn(5, 5, 5, generator=torch.Generator().manual_seed(0))
    mrc.write(path, density, 1.06)
    with_bytes(path, start, content)
    path.write_bytes(path.read_bytes() + trailing)
    found, size = mrc.read(path)
    assert torch.equal(found, density)
    assert size == 1.06


@pytest.mark.parametrize("dtype", ["f4", "i2", "u2", "f2", "i1"])
@pytest.mark.parametrize("stamp", [b"\x11\x11\0\0", b"DD\0\0", bytes(4)])
def test_big_endian_maps(tmp_path, dtype, stamp):
    path = tmp_path / "map.mrc"
    data = np.arange(125).reshape(5, 5, 5).astype(f">{dtype}")
    with mrcfile.new(path) as file:
        file.set_data(data)
        file.voxel_size = 2.5
    content = path.read_bytes()
    header = np.frombuffer(content, HEADER_DTYPE, 1)
    if header["mode"][0] == 0:  # of bytes, mrcfile has no order
        content = header.byteswap().tobytes() + content[1024:]
    path.write_bytes(content)
    with_bytes(path, 212, stamp)
    found, size = mrc.read(path)
    assert torch.equal(found, torch.arange(125.0).reshape(5, 5, 5))
    assert size == 2.5


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_compressed_maps(tmp_path, pack):
    path = tmp_path / "map.mrc"
    density = torch.randn(9, 9, 9, generator=torch.Generator().manual_seed(0))
    mrc.write(path, density, 1.06)
    plain = path.read_bytes()
    packed = pack(plain)
    path.write_bytes(packed + bytes(3))
    found, size = mrc.read(path)
    assert torch.equal(found, density)
    assert size == 1.06
    middle = len(packed) // 2
    for spoilt in (
        packed[:middle],
        packed[:40],
        packed[:middle] + bytes(40) + packed[middle + 40 :],
        packed[:-6] + bytes(6),
        pack(plain[:-1]),
        pack(plain + bytes(50_000_000)),
    ):
        path.write_bytes(spoilt)
        with pytest.raises(DataError, match=r"'.*map.mrc' cannot be read as MRC: it") as caught:
            mrc.read(path)
        assert "\n" not in str(caught.value)


def test_a_header_that_promises_more_than_gzip_can_hold(tmp_path):
    path = tmp_path / "map.mrc"
    mrc.write(path, CUBE, 1.0)
    with_bytes(path, 0, np.array([2000] * 3, "<i4").tobytes())
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(DataError, match="map.mrc' .*shorter than its header says"):
        mrc.read(path)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (os.mkdir, "a folder, not a file"),
        (os.mkfifo, "a named pipe, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "a device, not a file"),
        (lambda path: path.touch(), "empty"),
        (lambda path: path.write_bytes(b"\x89HDF\r\n" + bytes(2000)), "an HDF5 file"),
        (lambda path: path.write_bytes(bytes(5000)), "makes no sense"),
        (lambda path: path.write_bytes(b"\x01" * 700), "700 of 1024"),
        (lambda path: path.symlink_to("map.mrc"), "circle of links"),
    ],
)
def test_what_is_no_map_is_said(tmp_path, make, word):
    make(tmp_path / "map.mrc")
    with pytest.raises(DataError, match=f"map.mrc' cannot be read as MRC: .*{word}.*; "):
        mrc.read(tmp_path / "map.mrc")


def test_a_stack_of_volumes_is_no_map(tmp_path):
    path = tmp_path / "map.mrc"
    mrc.write(path, CUBE, 1.0)
    with_bytes(path, 88, (401).to_bytes(4, "little"))
    assert torch.equal(mrc.read(path)[0], torch.from_numpy(CUBE)), "a stack of one"
    with_bytes(path, 36, (2).to_bytes(4, "little"))
    with pytest.raises(DataError, match="holds 2 volumes"):
        mrc.read(path)


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan"), float("inf")])
def test_a_pixel_size_that_cannot_be_is_not_written(tmp_path, size):
    with pytest.raises(DataError, match="map.mrc' has voxels of .* Å; give a size above 0"):
        mrc.write(tmp_path / "map.mrc", CUBE, size)
    assert not list(tmp_path.iterdir())


def test_the_file_is_what_mrcfile_would_write(tmp_path):
    """Statistics too."""
    density = np.random.default_rng(0).normal(size=(7, 7, 7)).astype(np.float32)
    mrc.write(tmp_path / "ours.mrc", density, 1.37)
    with mrcfile.new(tmp_path / "theirs.mrc") as file:
        file.set_data(density)
        file.set_volume()
        file.voxel_size = 1.37
        file.header.label[0] = b"instamap"
    assert (tmp_path / "ours.mrc").read_bytes() == (tmp_path / "theirs.mrc").read_bytes()


@pytest.mark.parametrize("name", ["map.mrc", "map.mrc.gz"])
@pytest.mark.parametrize("full", [[], [0], [5], [2, 3]])
def test_empty_planes_are_holes_that_read_as_zeros(tmp_path, name, full):
    volume = torch.zeros(6, 64, 64)
    volume[full] = torch.randn(len(full), 64, 64)
    path = tmp_path / name
    mrc.write(path, volume, 1.5)
    content = path.read_bytes()
    if name.endswith(".gz"):
        content = gzip.decompress(content)
    assert content[1024:] == volume.numpy().tobytes()


def test_statistics_are_those_of_numpy_also_of_maps_that_hardly_vary(tmp_path):
    for volume in (np.random.default_rng(1).normal(1, 1e-7, (9, 9, 9)), np.full((3, 3, 3), 7.5)):
        data = volume.astype(np.float32)
        mrc.write(tmp_path / "map.mrc", data, 1.0)
        header = mrcfile.open(tmp_path / "map.mrc", header_only=True).header
        assert header.dmean == data.mean(dtype=np.float32)
        assert header.rms == pytest.approx(data.std(dtype=np.float32), rel=1e-5, abs=1e-12)
        assert (header.dmin, header.dmax) == (data.min(), data.max())


def test_a_map_has_a_place_and_a_label(tmp_path):
    path = tmp_path / "map.mrc"
    mrc.write(path, CUBE, 1.5, origin=(1.5, -3.0, 7.25), label="local resolution in Å")
    assert mrc.read_origin(path) == (1.5, -3.0, 7.25)
    assert torch.equal(mrc.read(path)[0], torch.from_numpy(CUBE))
    with mrcfile.open(path) as file:
        assert file.get_labels() == ["instamap", "local resolution in ?"]
        assert file.header.nxstart == 0
    assert mrcfile.validate(path)


def test_a_name_that_ends_in_gz_is_of_a_compressed_map(tmp_path):
    """The same values and header as without compression, and the same file for the same map."""
    volume = torch.zeros(12, 12, 12)
    volume[3:6, 4, 5:9] = 1.5
    place = {"origin": (3.0, 0.0, -6.0), "label": "a bar"}
    for name in ("plain.mrc", "one.mrc.gz", "other.mrc.gz"):
        mrc.write(tmp_path / name, volume, 1.37, **place)
    packed = (tmp_path / "one.mrc.gz").read_bytes()
    assert gzip.decompress(packed) == (tmp_path / "plain.mrc").read_bytes()
    assert packed == (tmp_path / "other.mrc.gz").read_bytes() and len(packed) < 1000
    read, pixel_size = mrc.read(tmp_path / "one.mrc.gz")
    assert torch.equal(read, volume) and pixel_size == 1.37
    assert mrc.read_origin(tmp_path / "one.mrc.gz") == place["origin"]
    assert mrcfile.validate(tmp_path / "one.mrc.gz")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [False, True])
def test_where_the_origin_is_empty_the_start_is_the_place(tmp_path, order, packed):
    """By columns, rows, sections: here z, x, y."""
    path = tmp_path / "map.mrc"
    mrc.write(path, CUBE, 2.0)
    header = np.frombuffer(path.read_bytes()[:1024], HEADER_DTYPE.newbyteorder("<"))
    header = header.astype(HEADER_DTYPE.newbyteorder(order))
    header["machst"] = (0x44, 0x44, 0, 0) if order == "<" else (0x11, 0x11, 0, 0)
    header["nxstart"], header["nystart"], header["nzstart"] = 3, -4, 5
    header["mapc"], header["mapr"], header["maps"] = 3, 1, 2
    content = header.tobytes() + path.read_bytes()[1024:]
    path.write_bytes(gzip.compress(content) if packed else content)
    assert mrc.read_origin(path) == (-8.0, 10.0, 6.0)


def test_a_place_of_no_map_is_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        mrc.read_origin(tmp_path / "none.mrc")
    (tmp_path / "text.mrc").write_text("words")
    with pytest.raises(DataError, match="text.mrc' cannot be read as MRC"):
        mrc.read_origin(tmp_path / "text.mrc")
