"""Motion from end to end: found where there is one, not where there is none, and what the commands
then make of it.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from support.command import instamap
from support.swinging import SwingingLobe, write

from instamap.maps import mrc
from instamap.motion.motion_model import MotionModel

COUNT = 1200
DEGREES = 60.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def moving(tmp_path_factory) -> tuple[Path, torch.Tensor]:
    """A set whose lobe swings, and its particles' angles."""
    folder = tmp_path_factory.mktemp("moving")
    return folder, write(folder, COUNT, DEGREES, snr=0.5)


@pytest.fixture(scope="module")
def bent(moving, tmp_path_factory) -> tuple[Path, str]:
    """A run, and what it said."""
    out = tmp_path_factory.mktemp("runs") / "bent"
    outcome = instamap(
        "reconstruct",
        moving[0] / "particles.star",
        "-o",
        out,
        "--deform",
        "bending-field",
        "-O",
        "steps=80",
    )
    assert outcome.code == 0, outcome
    return out, outcome.out


def truth(angle: float) -> torch.Tensor:
    return SwingingLobe(torch.zeros(1)).density(angle).float()


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def test_particles_are_ordered(moving, bent):
    z = np.load(bent[0] / "latents.npy")
    assert z.shape == (COUNT, 1)
    assert abs(spearmanr(z[:, 0], moving[1]).statistic) > 0.95


def test_states_are_where_the_lobe_is(moving, bent):
    """The map at the coordinate of particles at each end is nearer to the truth there than to that
    at the other end or in the middle.
    """
    motion = MotionModel.open(bent[0])
    angle = moving[1]
    for sign in (-1, 1):
        here = motion.latents[sign * angle > math.radians(45)].median(0).values
        seen = motion.conformation(here)
        near = [correlation(seen, truth(math.radians(d))) for d in (-52, 0, 52)]
        assert near.index(max(near)) == (0 if sign < 0 else 2) and max(near) > 0.85, near


def test_the_record_says_what_was_found(bent):
    said = json.loads((bent[0] / "motion.json").read_text())
    assert said["coordinates"] == 1 and said["motion_found"] and said["agreement"] > 0.9
    for fit in said["fits"].values():
        gains = fit["gain_over_rigid_by_description"]
        assert fit["gain_over_rigid"] == gains[said["description"]] > 1
        assert gains["bending"] > 1
        assert fit["gain_by_subspace_dimensions"][1] > 0.5
    assert "coordinates of held-out particles correlate" in bent[1] and "no motion" not in bent[1]
    fits = {json.loads(line)["fit"] for line in (bent[0] / "log.jsonl").read_text().splitlines()}
    always = {f"half{i} {kind}" for i in (1, 2) for kind in ("rigid", "conformation", "bend")}
    domains = {f"half{i} domain {m}" for i in (1, 2) for m in (1, 2)}
    assert fits == always | (domains if said["description"] == "domains" else set())


def test_particles_are_placed_as_they_were(moving, bent, tmp_path):
    """`infer`, which has the models alone, against the run's own coordinates: halves differ by what
    they could not know.
    """
    outcome = instamap("infer", bent[0], moving[0] / "particles.star", "-o", tmp_path / "placed")
    assert outcome.code == 0, outcome
    placed = np.load(tmp_path / "placed" / "latents.npy")
    own = np.load(bent[0] / "latents.npy")
    assert np.corrcoef(placed[:, 0], own[:, 0])[0, 1] > 0.97


def test_the_audit_believes_it(bent, tmp_path):
    outcome = instamap("audit", bent[0], "-o", tmp_path / "audit")
    assert outcome.code == 0, outcome
    assert "nothing moves" not in outcome.out


def test_subspace_gives_maps_of_states(moving, tmp_path):
    outcome = instamap(
        "reconstruct",
        moving[0] / "particles.star",
        "-o",
        tmp_path / "run",
        "--deform",
        "subspace",
        "-O",
        "steps=40",
    )
    assert outcome.code == 0 and "conformations give" in outcome.out, outcome
    motion = MotionModel.open(tmp_path / "run")
    angle = moving[1]
    assert abs(spearmanr(motion.latents[:, 0], angle).statistic) > 0.9
    ends = [
        motion.conformation(motion.latents[sign * angle > math.radians(45)].median(0).values)
        for sign in (-1, 1)
    ]
    for own, other, sign in ((ends[0], ends[1], -1), (ends[1], ends[0], 1)):
        there = truth(sign * math.radians(52))
        assert correlation(own, there) > correlation(other, there) + 0.02
    evaluations = [
        json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    ]
    assert max(one["step"] for one in evaluations) <= 40


def test_auto_takes_one_coordinate_and_says_why(bent):
    """Of a motion with one degree of freedom."""
    said = json.loads((bent[0] / "motion.json").read_text())
    assert said["coordinates"] == 1 and not said["closed"]
    assert "latent = 1" in (bent[0] / "run.toml").read_text()


@pytest.mark.parametrize("latent", ["1", "auto"])
def test_no_motion_is_invented(tmp_path, latent):
    write(tmp_path, 1000, 0.0, snr=0.3)
    words = ("--deform", "bending-field", "-D", f"latent={latent}", "-O", "steps=40")
    outcome = instamap("reconstruct", tmp_path / "particles.star", "-o", tmp_path / "run", *words)
    assert outcome.code == 0 and "no motion found" in outcome.out, outcome
    motion = MotionModel.open(tmp_path / "run")
    assert not motion.latents.any()
    x = torch.randn(200, 3) * 30
    for half in motion.halves:  # nor where coordinates are not zero
        assert torch.equal(half.pull_back(x, torch.ones(motion.latents.shape[1])), x)
    assert correlation(mrc.read(tmp_path / "run" / "map.mrc")[0], truth(0.0)) > 0.9


def test_few_particles_still_have_the_coordinates_that_were_asked_for(tmp_path, latent=5):
    write(tmp_path, 300, DEGREES, snr=0.5)
    words = ("--deform", "bending-field", "-D", f"latent={latent}", "-O", "steps=20")
    outcome = instamap("reconstruct", tmp_path / "particles.star", "-o", tmp_path / "run", *words)
    assert outcome.code == 0, outcome
    latents = np.load(tmp_path / "run" / "latents.npy")
    assert latents.shape == (300, latent) and np.isfinite(latents).all()
