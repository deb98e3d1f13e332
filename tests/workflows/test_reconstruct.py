"""`instamap reconstruct` on small simulated sets: what it writes, that it can be repeated, and that
the map is the molecule.
"""

import csv
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import mrcfile
import pytest
import torch
from support.command import OBJECTIVES, QUICK, correlation, instamap, maps, plugin

from instamap.maps import fsc, mask, mrc
from instamap.plugin.hooks import hookimpl
from instamap.simulate import particle_set

BOX = 16
PIXEL = 6.0
FILES = {
    "map.mrc",
    "half1.mrc",
    "half2.mrc",
    "mask.mrc",
    "map.png",
    "fsc.csv",
    "fsc.png",
    "held_out.png",
    "run.toml",
    "log.jsonl",
    "result.json",
    "report.html",
    "SHA256SUMS",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """particles.star, its stack and truth.mrc."""
    return particle_set.demo(
        tmp_path_factory.mktemp("data"), count=200, box=BOX, pixel_size=PIXEL, snr=1.0
    ).parent


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> SimpleNamespace:
    """A run with the normal equations: its folder, its outcome, and what its hooks were told.

    settings: of run.toml; files: those that it lists.
    """
    told = SimpleNamespace(settings=None, steps=[])

    class Plugin:
        @hookimpl
        def instamap_run_started(self, settings):
            told.settings = settings

        @hookimpl
        def instamap_step_finished(self, name, step, metrics):
            told.steps.append({"fit": name, "step": step, **metrics})

    out = tmp_path_factory.mktemp("run") / "below" / "out"
    with plugin(Plugin()):
        outcome = instamap("reconstruct", data / "particles.star", "-o", out, *OBJECTIVES["normal"])
    assert outcome.code == 0, outcome
    settings = tomllib.loads((out / "run.toml").read_text())
    files = settings.pop("files")
    return SimpleNamespace(out=out, outcome=outcome, told=told, settings=settings, files=files)


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_everything_is_there_and_nothing_else(finished):
    assert {path.name for path in finished.out.iterdir()} == FILES
    assert set(finished.files) == FILES
    assert len(finished.files) == len(FILES)
    assert {path.name for path in finished.out.parent.iterdir()} == {"out"}
    for name in ("map.png", "fsc.png", "held_out.png"):
        assert (finished.out / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["map", "half1", "half2", "mask"])
def test_headers(finished, name):
    """Voxel size and origin decide where a viewer puts the map; space group 1 says that it is a
    volume.
    """
    with mrcfile.open(finished.out / f"{name}.mrc") as file:
        header = file.header
        size = file.voxel_size
        assert (
            file.data.shape == (BOX,) * 3
            and file.data.dtype == "float32"
            and file.is_volume()
            and header.ispg == 1
        )
        assert [float(size[axis]) for axis in "xyz"] == [PIXEL] * 3
        assert [float(header.origin[axis]) for axis in "xyz"] == [0.0] * 3
        assert (int(header.nxstart), int(header.nystart), int(header.nzstart)) == (0, 0, 0)


def test_map_is_the_mean_of_halves_that_differ(finished):
    found = maps(finished.out)
    torch.testing.assert_close(
        found["map"], 0.5 * (found["half1"] + found["half2"]), rtol=1e-6, atol=1e-7
    )
    assert not torch.equal(found["half1"], found["half2"])
    assert float(found["mask"].min()) >= 0 and float(found["mask"].max()) == 1


def test_fsc_is_that_of_the_half_maps(finished):
    with (finished.out / "fsc.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "shell",
        "spatial_frequency",
        "resolution",
        "masked",
        "corrected",
        "unbiased",
    ]
    found = maps(finished.out)
    expected = fsc.fsc(*(fsc.levelled(found[half], found["mask"]) for half in ("half1", "half2")))
    assert [float(row["masked"]) for row in rows] == pytest.approx(
        expected.tolist(), abs=2e-6
    )  # the table has six decimals
    curves = {
        name: torch.tensor([float(row[name]) for row in rows]) for name in ("corrected", "unbiased")
    }
    worst = max(fsc.resolution(curve, BOX, PIXEL, 0.143) for curve in curves.values())
    assert f"resolution: {worst:.2f} Å" in finished.outcome.out
    assert float(rows[1]["resolution"]) == pytest.approx(BOX * PIXEL, rel=1e-4)


def test_log_and_hooks_tell_of_every_evaluation(finished):
    entries = log(finished.out)
    assert entries == finished.told.steps and finished.told.settings == finished.settings
    assert [name for name in dict.fromkeys(e["fit"] for e in entries)] == ["half1", "half2"]
    for entry in entries:
        assert set(entry) == {"fit", "stage", "step", "loss", "held_out", "seconds"}
        assert all(
            isinstance(entry[key], float) for key in ("loss", "held_out", "seconds")
        ) and isinstance(entry["step"], int)
        assert entry["stage"] == 1
    steps = [e["step"] for e in entries if e["fit"] == "half1"]
    assert steps == sorted(set(steps)) and steps[-1] <= 30
    assert entries[-1]["loss"] < 0, "the fit is no better than an empty map"


def test_what_a_person_is_told(finished, data):
    """Standard error has what is about to happen and one line for each stage (it is no terminal),
    standard output what came out.
    """
    err = finished.outcome.err
    out = finished.outcome.out
    assert f"{data / 'particles.star'}: 200 images of 16 px at 6 Å, with contrast transfer" in err
    [sizes] = re.findall(r"half1 (\d+), half2 (\d+), held out (\d+)", err)
    assert (
        sum(map(int, sizes)) == 200
        and sizes[2] == "10"
        and "written to mask.mrc" in err
        and "objective       normal  steps=30" in err
        and "workflow        map (auto)" in err
    )
    stages = [line for line in err.splitlines() if line.startswith(("read", "half"))]
    assert [line.split()[0] for line in stages] == [
        "read",
        "half1:",
        "half2:",
    ] and "read 200 images in" in stages[0]
    assert not any(mark in err for mark in ("…", "\r", "\x1b", "━"))
    assert (
        "resolution: " in out
        and " Å (half-map FSC 0.143" in out
        and str(finished.out) in out
        and "no signal" not in out
    )
    assert all(name in out for name in FILES)


def test_a_run_is_repeated_bit_for_bit_in_another_process(finished, tmp_path):
    """By the real command, from run.toml alone; the log has times in it, and pictures are not
    promised.
    """
    command = Path(sys.executable).with_name("instamap")
    words = ["reconstruct", "--config", str(finished.out / "run.toml"), "-o", "again"]
    outcome = subprocess.run(
        [command, *words],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=tmp_path,
        timeout=120,
        env={**os.environ, "COLUMNS": "80", "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert outcome.returncode == 0, outcome.stderr
    for name in ("map.mrc", "half1.mrc", "half2.mrc", "mask.mrc", "fsc.csv", "run.toml"):
        assert (tmp_path / "again" / name).read_bytes() == (finished.out / name).read_bytes(), name


def test_options_on_the_command_line_win_over_the_config(finished, tmp_path):
    words = (
        "--config",
        finished.out / "run.toml",
        "--no-halves",
        "-O",
        "evaluate_every=2",
        "-O",
        "steps=2",
        "-R",
        "levels=3",
    )
    assert instamap("reconstruct", *words, "-o", tmp_path / "out").code == 0
    settings = tomllib.loads((tmp_path / "out" / "run.toml").read_text())
    before = finished.settings
    assert settings["halves"] is False
    assert settings["objective"] == before["objective"] | {"evaluate_every": 2, "steps": 2}
    assert settings["representation"] == before["representation"] | {"levels": 3}
    changed = {"halves", "objective", "representation", "files"}
    assert {k: v for k, v in settings.items() if k not in changed} == {
        k: v for k, v in before.items() if k not in changed
    }
    # Another part forgets the options of the earlier one.
    words = (
        "--config",
        finished.out / "run.toml",
        "--representation",
        "voxel",
        *QUICK,
        "--seed",
        "7",
    )
    assert instamap("reconstruct", *words, "-o", tmp_path / "voxel").code == 0
    settings = tomllib.loads((tmp_path / "voxel" / "run.toml").read_text())
    assert (
        settings["representation"]["name"] == "voxel"
        and "levels" not in settings["representation"]
        and settings["seed"] == 7
    )


def test_the_seed_changes_the_maps(data, tmp_path):
    for seed in (1, 2):
        assert (
            instamap(
                "reconstruct",
                data / "particles.star",
                "-o",
                tmp_path / str(seed),
                *QUICK,
                "--seed",
                seed,
            ).code
            == 0
        )
    one, two = (maps(tmp_path / str(seed)) for seed in (1, 2))
    assert not any(torch.equal(one[name], two[name]) for name in ("map", "half1", "half2"))


def test_without_halves_there_is_one_map(data, tmp_path):
    outcome = instamap(
        "reconstruct", data / "particles.star", "-o", tmp_path / "out", "--no-halves", *QUICK
    )
    assert outcome.code == 0 and "resolution" not in outcome.out
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES - {
        "half1.mrc",
        "half2.mrc",
        "fsc.csv",
        "fsc.png",
    }
    assert {entry["fit"] for entry in log(tmp_path / "out")} == {
        "map"
    } and "map 190, held out 10" in outcome.err


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_map_is_the_molecule_and_only_inside_the_mask(objective, data, tmp_path):
    """Right sign and hand: the mirrored map agrees less. The mask is the user's, with a hard edge,
    which shows the smallest leak.
    """
    mrc.write(tmp_path / "ball.mrc", mask.sphere(BOX, PIXEL, 38.0, 0.0), PIXEL)
    outcome = instamap(
        "reconstruct",
        data / "particles.star",
        "-o",
        tmp_path / "out",
        "--mask",
        tmp_path / "ball.mrc",
        *OBJECTIVES[objective],
    )
    assert outcome.code == 0 and "mask.mrc" not in outcome.out, outcome
    found = maps(tmp_path / "out")
    truth = mrc.read(data / "truth.mrc")[0]
    inside = mrc.read(tmp_path / "ball.mrc")[0] > 0
    for name, values in found.items():
        assert (values[~inside] == 0).all() and (values[inside] != 0).all(), name
    # Even boxes: mirrored about D // 2, the first plane has no partner.
    mirrored = max(
        correlation(found["map"].flip(axis).roll(1, axis), truth, inside) for axis in range(3)
    )
    right = correlation(found["map"], truth, inside)
    assert right > 0.65 and right > mirrored + 0.1, (right, mirrored)
    assert correlation(found["half1"], found["half2"], inside) > 0.5


@pytest.mark.parametrize("box", [17, 18])
def test_odd_and_even_boxes(box, tmp_path):
    star = particle_set.demo(tmp_path / "data", count=120, box=box, snr=2.0)
    assert instamap("reconstruct", star, "-o", tmp_path / "out", *OBJECTIVES["normal"]).code == 0
    found = maps(tmp_path / "out")
    truth = mrc.read(star.parent / "truth.mrc")[0]
    # Half a pixel of displacement costs a third of the correlation of such coarse maps.
    assert correlation(found["map"], truth, found["mask"] > 0) > 0.8


def test_pure_noise_has_no_signal(data, tmp_path):
    """Poses, CTFs and noise of the usual kind, and no molecule in the images."""
    (tmp_path / "particles.star").write_text((data / "particles.star").read_text())
    with mrcfile.new(tmp_path / "particles.mrcs") as file:
        file.set_data(
            torch.randn(200, BOX, BOX, generator=torch.Generator().manual_seed(5)).numpy()
        )
        file.set_image_stack()
    outcome = instamap(
        "reconstruct", tmp_path / "particles.star", "-o", tmp_path / "out", *OBJECTIVES["normal"]
    )
    assert outcome.code == 0
    # In nats of all ten held-out images: an unrelated map gains ½ z² by chance, the molecule some
    # 900.
    assert max(10 * entry["held_out"] for entry in log(tmp_path / "out")) < 6
    assert outcome.out.count("no signal found") == 2 and "resolution: none" in outcome.out
