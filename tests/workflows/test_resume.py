"""A run that was stopped goes on where it was, and ends as if nothing had happened."""

import tomllib
from pathlib import Path

import pytest
from support.command import OBJECTIVES, Outcome, instamap, plugin

from instamap.fitting import checkpoint
from instamap.plugin.hooks import hookimpl
from instamap.simulate import particle_set

KEPT = ".instamap-kept"
SAME_FILES = ("map.mrc", "half1.mrc", "half2.mrc", "mask.mrc", "fsc.csv", "run.toml")


@pytest.fixture(scope="module")
def star(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return particle_set.demo(folder, count=120, box=16, pixel_size=6.0, snr=1.0)


@pytest.fixture(autouse=True)
def every_evaluation(monkeypatch):
    """A checkpoint is written at every evaluation, as these fits are over in a second."""
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)


def stopped(fit: str, step: int, *words) -> Outcome:
    """A run that Ctrl-C stops at an evaluation of a fit."""

    class Plugin:
        @hookimpl
        def instamap_step_finished(self, name, step):
            if name == fit and step >= last:
                raise KeyboardInterrupt

    last = step
    with plugin(Plugin()):
        outcome = instamap("reconstruct", *words)
    assert outcome.code == 130, outcome
    return outcome


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("fit", "step"), [("half1", 16), ("half2", 8), ("half2", 16)])
def test_a_run_goes_on_bit_for_bit(star, tmp_path, objective, fit, step):
    words = (star, *OBJECTIVES[objective])
    out = tmp_path / "out"
    said = stopped(fit, step, *words, "-o", out)
    assert "--resume goes on" in said.err
    assert [path.name for path in out.iterdir()] == [KEPT]
    assert instamap("reconstruct", *words, "-o", out, "--resume").code == 0
    assert instamap("reconstruct", *words, "-o", tmp_path / "unbroken").code == 0
    for name in SAME_FILES:
        assert (out / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes(), name
    assert not (out / KEPT).exists()
    files = tomllib.loads((out / "run.toml").read_text())["files"]
    assert {path.name for path in out.iterdir()} == set(files)


def test_the_images_are_not_read_again(star, tmp_path):
    words = (star, *OBJECTIVES["normal"], "-o", tmp_path / "out")
    assert "read 120 images" in stopped("half1", 1, *words).err
    outcome = instamap("reconstruct", *words, "--resume")
    assert outcome.code == 0
    assert "read 120 images" not in outcome.err


def test_other_settings_do_not_go_on(star, tmp_path):
    words = (star, *OBJECTIVES["normal"], "-o", tmp_path / "out")
    stopped("half1", 1, *words)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out" / KEPT).iterdir()}
    line = instamap("reconstruct", *words, "--resume", "--seed", 3).refusal
    assert "had seed = 0, not 3; give the same settings, or leave out --resume" in line
    kept = {path.name: path.read_bytes() for path in (tmp_path / "out" / KEPT).iterdir()}
    assert kept == before


def test_without_resume_a_run_begins_anew(star, tmp_path):
    words = (star, *OBJECTIVES["normal"], "-o", tmp_path / "out")
    stopped("half1", 1, *words)
    outcome = instamap("reconstruct", *words, "--seed", 3)
    assert outcome.code == 0
    assert "read 120 images" in outcome.err
    assert not (tmp_path / "out" / KEPT).exists()


def test_where_nothing_was_stopped_there_is_nothing_to_go_on_from(star, tmp_path):
    line = instamap("reconstruct", star, "-o", tmp_path / "out", "--resume").refusal
    assert "has nothing to go on from: no run was stopped there; leave out --resume" in line
    assert not (tmp_path / "out").exists()
