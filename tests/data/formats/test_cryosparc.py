"""cryoSPARC tables: rows joined by uid, poses in its convention, damaged files in a line."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from instamap.data import formats, writers
from instamap.data.formats.cryosparc import CryosparcFormat
from instamap.data.particles import Particles
from instamap.data.preprocess import Preprocess
from instamap.errors import DataError

COUNT = 6


def save(path: Path, rows: np.ndarray) -> Path:
    with path.open("wb") as file:
        np.save(file, rows)
    return path


def rows_of(**columns: np.ndarray) -> np.ndarray:
    columns = {name.replace("__", "/"): column for name, column in columns.items()}
    layout = [(name, column.dtype, column.shape[1:]) for name, column in columns.items()]
    rows = np.empty(len(next(iter(columns.values()))), layout)
    for name, column in columns.items():
        rows[name] = column
    return rows


def alignments(count: int = COUNT) -> np.ndarray:
    pose = np.zeros((count, 3), np.float32)
    pose[:, 2] = math.pi / 2
    return rows_of(
        uid=np.arange(10, 10 + count, dtype=np.uint64),
        alignments3D__pose=pose,
        alignments3D__shift=np.array([[3.0, -1.0]] * count, np.float32),
        alignments3D__psize_A=np.full(count, 4.0, np.float32),
    )


def images(count: int = COUNT, sign: float = 1.0) -> np.ndarray:
    return rows_of(
        uid=np.arange(10, 10 + count, dtype=np.uint64),
        blob__path=np.full(count, b">J1/stack.mrcs"),
        blob__idx=np.arange(count, dtype=np.uint32)[::-1].copy(),
        blob__shape=np.full((count, 2), 8, np.uint32),
        blob__psize_A=np.full(count, 2.0, np.float32),
        blob__sign=np.full(count, sign, np.float32),
        ctf__accel_kv=np.full(count, 300.0, np.float32),
        ctf__cs_mm=np.full(count, 2.7, np.float32),
        ctf__amp_contrast=np.full(count, 0.1, np.float32),
        ctf__df1_A=np.arange(count, dtype=np.float32) + 12000,
        ctf__df2_A=np.full(count, 11000.0, np.float32),
        ctf__df_angle_rad=np.full(count, 0.5, np.float32),
    )


def fails(path: Path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        formats.read(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.fixture
def job(tmp_path, write_stack) -> Path:
    """A refinement whose images and CTF are in the passthrough file, in another order."""
    save(tmp_path / "J2_particles.cs", alignments())
    save(tmp_path / "J2_passthrough_particles.cs", images(COUNT + 2)[::-1])
    numbers = np.arange(1, COUNT + 3, dtype=np.float32)
    write_stack(tmp_path / "J1" / "stack.mrcs", numbers.repeat(64).reshape(-1, 8, 8))
    return tmp_path / "J2_particles.cs"


def test_what_is_passed_through_is_joined_by_uid(job):
    table = formats.read(job)
    assert table.optics.defocus_u.tolist() == [12000.0 + i for i in range(COUNT)]
    numbers = [int(name.partition("@")[0]) for name in table.image_names]
    assert numbers == [COUNT + 2 - i for i in range(COUNT)]
    assert table.origin.tolist() == [[12.0, -4.0]] * COUNT
    quarter = [[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]  # RELION's psi of 90 degrees
    expected = torch.tensor(quarter, dtype=torch.float64)
    torch.testing.assert_close(table.rotation[0], expected, atol=1e-7, rtol=0)


def test_a_group_names_its_files(job):
    group = job.with_name("J2_particles_exported.csg")
    group.write_text(
        "group: {name: particles}\nresults:\n"
        "  alignments3D:\n    metafile: '>J2_particles.cs'\n    num_items: 6\n"
        "  blob:\n    metafile: '>J2_passthrough_particles.cs'\n"
    )
    assert formats.read(group).image_names == formats.read(job).image_names
    group.write_text("results:\n")
    fails(group, "names no metafile")


def test_rows_that_the_other_file_lacks(job):
    save(job.with_name("J2_passthrough_particles.cs"), images(4))
    fails(job, "row 5", "uid 14", "nor are 1 others of 6")
    save(job.with_name("J2_passthrough_particles_class_0.cs"), images())
    fails(job, "2 passthrough files", ".csg")


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", ["can't be read as a .cs file"]),
        (b"\x94CSDAT" + bytes(20), ["is compressed", "cryosparc-tools"]),
        (b"\x93NUMPY\x01\x00", ["can't be read"]),
        (b"hello", ["can't be read"]),
    ],
)
def test_files_that_are_none(tmp_path, content, words):
    path = tmp_path / "x.cs"
    path.write_bytes(content)
    fails(path, str(path), *words)


def test_arrays_that_are_none(tmp_path):
    fails(save(tmp_path / "a.cs", np.zeros(3)), "no rows with a uid")
    fails(save(tmp_path / "b.cs", alignments()[:0]), "no rows;")
    twice = alignments()
    twice["uid"][1] = twice["uid"][0]
    fails(save(tmp_path / "c.cs", twice), "1 of 6 rows", "repeat a uid")
    whole = save(tmp_path / "d.cs", alignments()).read_bytes()
    (tmp_path / "d.cs").write_bytes(whole[:-9])
    fails(tmp_path / "d.cs", "can't be read")
    code = tmp_path / "e.cs"
    with code.open("wb") as file:
        np.save(file, np.array([{"uid": 1}], object), allow_pickle=True)
    fails(code, "can't be read")


def test_dark_protein_becomes_white(job):
    white = Particles.open(job).images(torch.arange(COUNT))
    save(job.with_name("J2_passthrough_particles.cs"), images(COUNT + 2, sign=-1.0)[::-1])
    dark = Particles.open(job)
    assert torch.equal(dark.images(torch.arange(COUNT)), -white)


def test_written_images_say_what_they_are(job, write_stack, tmp_path):
    random = np.random.default_rng(0).normal(size=(COUNT + 2, 8, 8)).astype(np.float32)
    write_stack(job.parent / "J1" / "stack.mrcs", random)
    save(job.with_name("J2_passthrough_particles.cs"), images(COUNT + 2, sign=-1.0)[::-1])
    steps = Preprocess(crop=8, box=8, normalise=True)
    before = Particles.open(job, preprocess=steps)
    (tmp_path / "new").mkdir()
    star = tmp_path / "new" / "particles.star"
    stack = star.with_suffix(".mrcs")
    writers.write_particles(before, star, stack, name="particles.mrcs")
    after = Particles.open(star.with_suffix(".cs"))
    rows = torch.arange(COUNT)
    assert torch.equal(after.images(rows), before.images(rows))
    assert torch.equal(after.views.origin, before.views.origin)


def test_real_files(shared_data):
    folder = shared_data / "star-corpus"
    table = CryosparcFormat().read(folder / "cryosparc_P12_J24_001_particles.cs")
    assert len(table) == 2019
    assert (table.rotation.det() - 1).abs().max() < 1e-6
    assert table.pixel_size.unique().tolist() == pytest.approx([2.95])
    assert table.image_names[0].startswith("000001@J19/extract/2015")
    assert sorted(table.half.unique().tolist()) == [0, 1]
    assert table.sign.unique().tolist() == [-1.0]
    assert table.ignored == ()
    fails(folder / "cryosparc_J2_particles_exported.cs", "alignments3D", "3-D refinement")
