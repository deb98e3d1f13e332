"""cryoDRGN's pickles: arrays are read, and nothing else is."""

import os
import pickle
import pickletools
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instamap.data import formats
from instamap.data.formats import cryodrgn
from instamap.errors import DataError

COUNT = 4


class Harmful:
    """A pickle that would run a command."""

    def __reduce__(self):
        return os.system, ("touch harmed",)


def ctf(count: int = COUNT) -> np.ndarray:
    row = [64, 1.5, 12000, 11000, 30, 300, 2.7, 0.1, 90]
    return np.array([row] * count, np.float32)


@pytest.fixture
def poses(tmp_path) -> Path:
    return write(tmp_path, (np.array([np.eye(3)] * COUNT), np.full((COUNT, 2), 0.25)))


def write(folder: Path, content, protocol: int = 4) -> Path:
    (folder / "poses.pkl").write_bytes(pickle.dumps(content, protocol))
    (folder / "ctf.pkl").write_bytes(pickle.dumps(ctf(), protocol))
    (folder / "particles.64.mrcs").touch()
    return folder / "poses.pkl"


def fails(path: Path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        formats.read(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol(tmp_path, protocol):
    given_poses = (np.array([np.eye(3)] * COUNT), np.full((COUNT, 2), 0.25))
    table = formats.read(write(tmp_path, given_poses, protocol))
    assert table.origin.tolist() == [[24.0, 24.0]] * COUNT
    assert table.pixel_size.tolist() == [1.5] * COUNT
    assert table.box.tolist() == [64] * COUNT
    assert table.image_names[1] == "000002@particles.64.mrcs"
    assert table.optics.phase_shift[0] == pytest.approx(np.pi / 2)


def test_no_code_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in (Harmful(), (Harmful(), np.zeros(3)), [np.zeros((2, 3, 3)), Harmful()]):
        fails(write(tmp_path, content), "can't be read as a pickle of arrays", "system")
    assert not (tmp_path / "harmed").exists()
    fails(write(tmp_path, np.array([Harmful()], object)), "can't be read")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    "content, words",
    [
        (np.zeros((4, 2)), ["no rotations of 3 x 3"]),
        ((np.array([np.eye(3)] * 4), np.zeros((3, 2))), ["4 rotations", "(3, 2)"]),
        ((np.array([np.eye(3)] * 4), np.full((4, 2), 7.0)), ["row 1", "fractions of the box"]),
        ((np.array([np.eye(3), -np.eye(3)] * 2), np.zeros((4, 2))), ["row 2", "no rotation"]),
        ((np.full((4, 3, 3), np.nan), np.zeros((4, 2))), ["row 1", "4 of 4"]),
        (np.zeros((0, 3, 3)), ["no rows"]),
        (np.array([np.eye(3)] * 5), ["of shape (4, 9), not (5, 9)"]),
        ("words", ["no rotations"]),
        ({}, ["no rotations"]),
    ],
)
def test_contents_that_cannot_be(tmp_path, content, words):
    fails(write(tmp_path, content), *words)


def test_what_must_be_beside(poses):
    (poses.parent / "more.mrcs").touch()
    fails(poses, "more.mrcs, particles.64.mrcs found")
    (poses.parent / "ctf.pkl").unlink()
    fails(poses, "the CTF of", "missing", "put cryoDRGN's ctf.pkl")


@given(st.data())
def test_damaged_pickles_end_in_a_line(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    path = write(folder, (np.array([np.eye(3)] * COUNT), np.full((COUNT, 2), 0.25)))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    try:
        formats.read(path)
    except DataError as error:
        assert "\n" not in str(error)


def test_real_files(shared_data, tmp_path):
    folder = shared_data / "star-corpus"
    shutil.copy(folder / "toy_rot_trans.pkl", tmp_path / "poses.pkl")
    shutil.copy(folder / "test_ctf.pkl", tmp_path / "ctf.pkl")
    (tmp_path / "hand.mrcs").touch()
    table = formats.read(tmp_path / "poses.pkl")
    assert len(table) == 1000
    assert (table.rotation.det() - 1).abs().max() < 1e-5
    assert table.origin[0].tolist() == pytest.approx([30 * 0.11387942, 30 * -0.07255188])
    opcodes = {code.name for code, _, _ in pickletools.genops((tmp_path / "ctf.pkl").read_bytes())}
    assert "STACK_GLOBAL" in opcodes  # it does ask for names, all of which are NumPy's
    assert cryodrgn.CTF_COLUMNS[:2] == ("D", "Apix")
