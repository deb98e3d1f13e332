"""The cube around the molecule: found in a first look, recorded, and without loss in the maps."""

import re
import tomllib

import pytest
import torch
from support.command import instamap

from instamap.geometry.cube import Cube
from instamap.maps import mrc
from instamap.simulate import particle_set
from instamap.workflows import extent

BOX = 32
QUICK = ("-O", "steps=40", "--contrast", "none")


@pytest.fixture(scope="module")
def star(tmp_path_factory):
    """A molecule that fills a part of its box."""
    small = particle_set.demo(
        tmp_path_factory.mktemp("small"), count=300, box=BOX, pixel_size=3.0, snr=0.5
    )
    truth, _ = mrc.read(small.with_name("truth.mrc"))
    wide = torch.zeros(2 * BOX, 2 * BOX, 2 * BOX)
    middle = slice(BOX // 2, BOX // 2 + BOX)
    wide[middle, middle, middle] = truth
    folder = tmp_path_factory.mktemp("wide")
    mrc.write(folder / "wide.mrc", wide, 3.0)
    made = instamap("simulate", folder / "wide.mrc", "-n", 300, "--snr", 0.2, "-o", folder / "set")
    assert made.code == 0, made
    return folder / "set" / "particles.star"


@pytest.fixture(autouse=True)
def looks_at_small_boxes(monkeypatch):
    monkeypatch.setattr(extent, "MIN_BOX", 48)
    monkeypatch.setattr(extent, "COARSE_BOX", 32)


def test_maps_are_those_of_the_whole_box(star, tmp_path):
    runs = {}
    for words in ((), ("--extent", "box")):
        out = tmp_path / f"run{len(words)}"
        outcome = instamap("reconstruct", star, "-o", out, *QUICK, *words)
        assert outcome.code == 0, outcome
        runs[words] = (outcome.out + outcome.err, mrc.read(out / "half1.mrc")[0])
    told, found = runs[()]
    line = re.search(r"extent +voxels (\d+) to (\d+) of 64 hold the molecule", told)
    assert line, told
    assert int(line[2]) - int(line[1]) < 52
    silent, expected = runs["--extent", "box"]
    assert "hold the molecule" not in silent
    assert found.shape == (64, 64, 64)
    assert similarity(found, expected) > 0.99
    rows = [(tmp_path / f"run{n}" / "fsc.csv").read_text().splitlines() for n in (0, 2)]
    assert len(rows[0]) == len(rows[1]) == 34
    headers = [(tmp_path / f"run{n}" / "half1.mrc").read_bytes()[:76] for n in (0, 2)]
    assert headers[0] == headers[1]
    truth, _ = mrc.read(star.with_name("truth.mrc"))
    here = similarity(found, truth)
    for axis in range(3):
        for shift in (-0.5, 0.5):
            assert similarity(found, shifted(truth, axis, shift)) < here


def similarity(a: torch.Tensor, b: torch.Tensor) -> float:
    """The correlation coefficient of two maps."""
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def shifted(volume: torch.Tensor, axis: int, by: float) -> torch.Tensor:
    """A map moved by so many voxels along an axis."""
    frequency = torch.fft.fftfreq(len(volume))
    shape = [1, 1, 1]
    shape[axis] = len(volume)
    turn = torch.exp(-2j * torch.pi * by * frequency).view(shape)
    return torch.fft.ifftn(torch.fft.fftn(volume) * turn).real


def test_the_cube_is_recorded_and_a_mask_beyond_it_refused(star, tmp_path):
    gathered = instamap("accumulate", star, "-o", tmp_path / "stats", "--contrast", "none")
    assert gathered.code == 0, gathered
    manifest = tomllib.loads((tmp_path / "stats" / "accumulate.toml").read_text())
    low, high = manifest["cube"]
    assert 0 < low < high < 64
    mrc.write(tmp_path / "box.mrc", torch.ones(64, 64, 64), 3.0)
    fitted = instamap(
        "fit", tmp_path / "stats", "-o", tmp_path / "out", "--mask", tmp_path / "box.mrc"
    )
    assert fitted.code == 2
    assert f"were gathered for voxels {low} to {high - 1} of 64" in fitted.err
    assert "--extent box" in fitted.err


def test_statistics_of_other_cubes_are_not_merged(star, tmp_path):
    for number, words in ((1, ()), (2, ("--extent", "box"))):
        shard = ("--shard", f"{number}/2", "--contrast", "none")
        done = instamap("accumulate", star, "-o", tmp_path / f"s{number}", *shard, *words)
        assert done.code == 0, done
    merged = instamap("merge", tmp_path / "s1", tmp_path / "s2", "-o", tmp_path / "sum")
    assert merged.code == 2
    assert "cannot be merged: extent is molecule and box" in merged.err


def test_small_boxes_are_gathered_whole(star, monkeypatch):
    monkeypatch.setattr(extent, "MIN_BOX", 65)
    from instamap.data.particles import Particles

    assert extent.find(Particles.open(star), torch.arange(300)) == Cube.whole(64)


def test_a_mask_decides_and_the_middle_is_always_held(star):
    from instamap.data.particles import Particles

    window = torch.zeros(64, 64, 64)
    window[36:50, 36:50, 36:50] = 1
    cube = extent.find(Particles.open(star), torch.arange(300), window)
    assert cube.low <= 32
    assert cube.holds(Cube(64, 35, 51))
    assert cube.edge < 24
