"""Files of tensors: what is read is what was written, damage is noticed, and other programs read
them.
"""

import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instamap import checksums
from instamap.errors import OutputError
from instamap.tensor_files import (
    DamagedFile,
    read_npy,
    read_npz,
    read_safetensors,
    write_npz,
    write_safetensors,
)

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "double": torch.tensor(0.1, dtype=torch.float64),
    "flags": torch.tensor([True, False, True]),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 4),
    "turned": torch.arange(12).view(3, 4).mT,
    "strided": torch.zeros(1).as_strided((1,), (0,)),
    "odd": torch.arange(5, dtype=torch.uint8),
}
VALUES = {"version": 1, "scene": {"pixel_size": 0.1, "mask": None, "name": "β-sheet"}}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, TENSORS, VALUES)
    return path


def test_what_is_read_is_what_was_written(path):
    tensors, values = read_safetensors(path)
    assert values == VALUES
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_the_layout_is_that_of_the_format(path):
    """Header's length, JSON, numbers that follow each other without gaps, aligned to their size."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert length % 8 == 0
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert all(isinstance(value, str) for value in metadata.values())
    end = 0
    for name, entry in header.items():
        begin, stop = entry["data_offsets"]
        assert begin == end, name
        assert begin % TENSORS[name].element_size() == 0
        end = stop
    assert 8 + length + end == len(data)
    begin, stop = header["a"]["data_offsets"]
    numbers = np.frombuffer(data[8 + length :][begin:stop], "<f4")
    assert header["a"]["shape"] == [2, 3] and numbers.tolist() == [0, 1, 2, 3, 4, 5]


def test_the_package_of_that_name_reads_it(path):
    safetensors = pytest.importorskip("safetensors.torch", reason="needs the package safetensors")
    found = safetensors.load_file(path)
    assert set(found) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


@given(st.data())
def test_any_change_of_any_byte_is_noticed(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("files")
    write_safetensors(folder / "x.safetensors", TENSORS, VALUES)
    write_npz(folder / "x.npz", {"a": np.arange(6.0), "text": np.array("β"), "empty": np.zeros(0)})
    for name, read in (("x.safetensors", read_safetensors), ("x.npz", read_npz)):
        whole = (folder / name).read_bytes()
        place = data.draw(st.integers(0, len(whole) - 1))
        change = data.draw(st.integers(1, 255))
        damaged = bytearray(whole)
        damaged[place] ^= change
        (folder / name).write_bytes(damaged)
        try:
            found = read(folder / name)
        except DamagedFile:
            continue
        # Blanks in a header and times in an archive mean nothing: what was read is what was written
        (folder / name).write_bytes(whole)
        assert repr(found) == repr(read(folder / name))


@pytest.mark.parametrize("kept", [0, 7, 8, 100, 0.5, 0.999])
def test_a_file_that_is_cut_off_is_damaged(path, kept):
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    with pytest.raises(DamagedFile):
        read_safetensors(path)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[" * 100000,
        b"[]",
        b"{",
        b'{"a": 1}',
        b'{"__metadata__": 3}',
        b"\xff\xfe",
        b"9" * 9999,
    ],
)
def test_a_header_that_is_none_is_damaged(tmp_path, header):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(DamagedFile):
        read_safetensors(path)
    path.write_bytes(struct.pack("<Q", 2**63) + header)
    with pytest.raises(DamagedFile, match="cut off"):
        read_safetensors(path)


def test_files_of_other_programs_have_no_checksum(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, a=np.arange(3))
    with pytest.raises(DamagedFile, match="no checksum"):
        read_npz(path)
    np.savez_compressed(path, a=np.zeros(10_000_000))
    with pytest.raises(DamagedFile, match="longer than the file"):
        read_npz(path)


def test_objects_are_never_read(tmp_path):
    class Trap:
        def __reduce__(self):
            return (print, ("code was run",))

    array = np.array([Trap()], dtype=object)
    with open(tmp_path / "x.npy", "wb") as file:
        np.save(file, array, allow_pickle=True)
    with pytest.raises(DamagedFile, match="other things than numbers"):
        read_npy(tmp_path / "x.npy")
    with open(tmp_path / "x.npz", "wb") as file:
        np.savez(file, allow_pickle=True, a=array)
    with pytest.raises(DamagedFile):
        read_npz(tmp_path / "x.npz")


def test_a_header_that_promises_more_than_there_is_takes_no_memory(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.zeros(3))
    whole = path.read_bytes()
    damaged = whole.replace(b"(3,), }" + b" " * 9, b"(3000000000,), }")
    assert damaged != whole
    path.write_bytes(damaged)
    with pytest.raises(DamagedFile, match="more or fewer numbers than it says"):
        read_npy(path)


def test_arrays_come_back(tmp_path):
    arrays = {"turned": np.asfortranarray(np.arange(6).reshape(2, 3)), "one": np.array(2.5)}
    write_npz(tmp_path / "x.npz", arrays)
    found = read_npz(tmp_path / "x.npz")
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())
    np.save(tmp_path / "x.npy", arrays["turned"])
    assert np.array_equal(read_npy(tmp_path / "x.npy"), arrays["turned"])
    with pytest.raises(FileNotFoundError):
        read_npz(tmp_path / "absent.npz")
    with pytest.raises(OutputError, match="cannot be written"):
        write_npz(tmp_path / "absent" / "x.npz", arrays)


def test_checksums_depend_on_all_but_the_order():
    a = {"x": np.arange(3), "y": np.array("text")}
    assert checksums.of_arrays(a) == checksums.of_arrays(dict(reversed(a.items())))
    others = [
        {**a, "x": np.arange(3.0)},
        {**a, "x": np.arange(3)[:, None]},
        {**a, "x": np.array([0, 1, 3])},
        {"z": a["x"], "y": a["y"]},
    ]
    sums = {checksums.of_arrays(one) for one in (a, *others)}
    assert len(sums) == 5
    assert checksums.of_values({"a": 1, "b": 2}) == checksums.of_values({"b": 2, "a": 1})


def test_a_list_of_checksums_is_that_of_sha256sum(tmp_path):
    (tmp_path / "a b.mrc").write_bytes(b"abc")
    checksums.write_list(tmp_path)
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (tmp_path / "SHA256SUMS").read_text() == f"{known}  a b.mrc\n"
    checksums.check(tmp_path, ["a b.mrc", "absent"])
    assert checksums.read_list(tmp_path / "absent") == {}
