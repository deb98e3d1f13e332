"""Commands that write folders list their files, replace those alone, and only if asked."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.command import instamap
from support.motions import save

COUNT = 40


@pytest.fixture(scope="module")
def motion(tmp_path_factory, write_star, write_stack, make_particle, make_optics) -> Path:
    """A folder with particles.star and a motion of them, run."""
    folder = tmp_path_factory.mktemp("motion")
    images = np.random.default_rng(0).normal(size=(COUNT, 16, 16)).astype(np.float32)
    write_stack(folder / "stack.mrcs", images)
    rows = [make_particle(rlnImageName=f"{number + 1}@stack.mrcs") for number in range(COUNT)]
    optics = make_optics(rlnImagePixelSize=4.0, rlnImageSize=16)
    star = write_star(folder / "particles.star", {"optics": [optics], "particles": rows})
    latents = torch.linspace(-1, 1, COUNT, dtype=torch.float64)[:, None]
    save(folder / "run", star, latents)
    return folder


COMMANDS = {
    "states": (["run", "--kmeans", 3, "--frames", 0], "states.json", "state_001.mrc"),
    "audit": (["run"], "audit.json", "strain.mrc"),
    "infer": (["run", "particles.star"], "inferred.json", "latents.npy"),
    "populations": (["run", "--bootstrap", 20], "populations.json", "profile.csv"),
}


@pytest.mark.parametrize("command", list(COMMANDS))
def test_a_folder_is_replaced_as_far_as_it_is_the_commands_own(
    motion, tmp_path, monkeypatch, command
):
    words, record, one = COMMANDS[command]
    monkeypatch.chdir(motion)
    out = tmp_path / "out"
    out.mkdir()
    (out / "state_of_the_art.mrc").write_text("mine")
    call = [command, *words, "-o", out]
    first = instamap(*call)
    assert first.code == 0, first
    listed = json.loads((out / record).read_text())["files"]
    written = {path.name for path in out.iterdir()} - {"state_of_the_art.mrc"}
    assert sorted(written) == sorted([*listed, record]) and one in listed
    assert "add --force to replace" in instamap(*call).refusal
    (out / one).write_bytes(b"old")
    again = instamap(*call, "--force")
    assert again.code == 0 and (out / one).read_bytes() != b"old", again
    assert {path.name for path in out.iterdir()} - written == {"state_of_the_art.mrc"}
    assert (out / "state_of_the_art.mrc").read_text() == "mine"


@pytest.mark.parametrize("command", list(COMMANDS))
def test_files_of_others_and_runs_are_refused(motion, tmp_path, monkeypatch, command):
    words, _, one = COMMANDS[command]
    monkeypatch.chdir(motion)
    (tmp_path / one).write_text("mine")
    refusal = instamap(command, *words, "-o", tmp_path, "--force").refusal
    assert f"has a file '{one}' that" in refusal
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
    before = sorted(path.name for path in (motion / "run").iterdir())
    refusal = instamap(command, *words, "-o", "run", "--force").refusal
    assert "output folder 'run' holds a run; choose another" in refusal
    assert sorted(path.name for path in (motion / "run").iterdir()) == before


def test_an_input_among_what_would_go_is_kept(motion, tmp_path, monkeypatch):
    """Coordinates are inferred for a STAR file that an earlier call wrote into the folder."""
    shutil.copytree(motion, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    assert instamap("infer", "run", "particles.star", "-o", ".").code == 0
    star = "particles_latents.star"
    refusal = instamap("infer", "run", star, "-o", ".", "--force").refusal
    assert f"'{star}' is read and belongs to what '.' holds" in refusal
    assert Path(star).exists()
