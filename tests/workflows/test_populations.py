"""Populations of a run: from images of known conformations; the command and what it refuses."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.command import instamap
from support.motions import PIXEL, Blobs, save, save_maps

from instamap.motion.motion_model import MotionModel
from instamap.simulate import random_poses
from instamap.simulate.exposure import Exposure
from instamap.simulate.write_set import write_set

COUNT = 120
LEFT = 36  # particles at -0.5; the others are at 0.5
SNR = 0.3


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """set/particles.star with blobs in two places, and run/: their motion."""
    folder = tmp_path_factory.mktemp("populations")
    g = torch.Generator().manual_seed(0)
    z = torch.full((COUNT,), 0.5, dtype=torch.float64)
    z[torch.randperm(COUNT, generator=g)[:LEFT]] = -0.5
    drawn = random_poses.uniform(COUNT, shift=PIXEL, defocus=(2e3, 4e3), generator=g)
    written = write_set(folder / "set", Blobs(z), drawn, Exposure(SNR), generator=g)
    motion = save(folder / "run", written.star, z[:, None])
    halves = []
    for half in motion.halves:
        with torch.no_grad():
            half.model.representation.values *= written.gain
        maps = torch.stack([half.conformation(node) for node in half.nodes])
        halves.append(replace(half, coarse_maps=maps))
    MotionModel(halves, motion.latents, motion.settings).save(folder / "run")
    return folder


def test_shares_are_those_of_the_images(world, tmp_path):
    out = tmp_path / "out"
    words = ("--split", 0, "--region", "far=0.4:", "--bootstrap", 40)
    done = instamap("populations", world / "run", "-o", out, *words)
    assert done.code == 0, done.err
    assert "below 0" in done.out and "far" in done.out
    record = json.loads((out / "populations.json").read_text())
    assert record["particles"] == COUNT and list(record["fits"]) == ["half1", "half2"]
    seen = [fit["particles"] for fit in record["fits"].values()]
    assert all(COUNT / 3 < count < 2 * COUNT / 3 for count in seen), "those of the other half"
    share = record["regions"]["below 0"]
    low, high = share["interval"]
    assert low < LEFT / COUNT < high and abs(share["share"] - LEFT / COUNT) < 0.15
    names = {"populations.csv", "profile.csv", "populations.png", "populations.json"}
    assert {path.name for path in out.iterdir()} == names
    assert (out / "populations.png").read_bytes().startswith(b"\x89PNG")
    again = instamap("populations", world / "run", "-o", tmp_path / "again", *words)
    assert again.code == 0
    assert (tmp_path / "again" / "populations.csv").read_bytes() == (
        out / "populations.csv"
    ).read_bytes(), "a seed is a seed"


def test_states_in_the_folder_get_their_shares(world, tmp_path):
    out = tmp_path / "states"
    (tmp_path / "z.csv").write_text("-0.5\n0.5\n")
    words = ("--at", tmp_path / "z.csv", "--frames", 0)
    assert instamap("states", world / "run", "-o", out, *words).code == 0
    done = instamap("populations", world / "run", "-o", out, "--bootstrap", 20)
    assert done.code == 0, done.err
    with (out / "states.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    shares = [float(row["population"]) for row in (first, second)]
    assert sum(shares) == pytest.approx(1, abs=1e-4) and abs(shares[0] - LEFT / COUNT) < 0.2


def test_conformations_with_maps_of_their_own(world, tmp_path):
    motion = save_maps(
        tmp_path / "maps", world / "set" / "particles.star", torch.zeros(COUNT, 1).double()
    )
    assert not motion.bends
    out = tmp_path / "out"
    done = instamap("populations", tmp_path / "maps", "-o", out, "--bootstrap", 20)
    assert done.code == 0, done.err
    assert json.loads((out / "populations.json").read_text())["regions"]


def test_several_coordinates(world, tmp_path):
    star = world / "set" / "particles.star"
    save(tmp_path / "two", star, torch.zeros(COUNT, 2).double())
    out = tmp_path / "out"
    done = instamap("populations", tmp_path / "two", "-o", out, "--bootstrap", 20)
    assert done.code == 0, done.err
    assert "those of regions: --region" in done.out and not (out / "profile.csv").exists()
    refusal = instamap("populations", tmp_path / "two", "-o", tmp_path / "no", "--split", 0).refusal
    assert "split is for a single coordinate, but particles have 2" in refusal


def test_mistakes_are_answered_and_leave_nothing(world, tmp_path):
    def call(*words):
        return instamap("populations", world / "run", "-o", tmp_path / "out", *words).refusal

    assert 'region is "closed"; it must be a name and bounds' in call("--region", "closed")
    assert "split is nan; it must be a number" in call("--split", "nan")
    assert "does not exist" in call("--particles", tmp_path / "gone.star")
    assert "holds a run; choose another" in call("-o", world / "run")
    assert not (tmp_path / "out").exists()


def test_a_run_without_motion_has_one_conformation(world, tmp_path):
    motion = MotionModel.open(world / "run")
    halves = []
    for half in motion.halves:
        halves.append(replace(half, nodes=half.nodes[:1], coarse_maps=half.coarse_maps[:1]))
    (tmp_path / "still").mkdir()
    MotionModel(halves, motion.latents, motion.settings).save(tmp_path / "still")
    text = (world / "run" / "run.toml").read_text()
    (tmp_path / "still" / "run.toml").write_text(text)
    refusal = instamap("populations", tmp_path / "still", "-o", tmp_path / "out").refusal
    assert "found no motion: all particles are in one conformation" in refusal
