"""What comes and goes from end to end: a lobe that each particle has or has not, and what commands
make of it.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.command import instamap
from support.swinging import BOX, PIXEL, SMALL
from torch import Tensor

import instamap as front_door
from instamap.motion.motion_model import MotionModel
from instamap.simulate import particle_set
from instamap.simulate.beads import Beads, molecule
from instamap.simulate.exposure import Exposure
from instamap.simulate.write_set import VariedSpecimen

COUNT = 900
SHARE = 0.4

pytestmark = pytest.mark.slow


class LobeOrNot(VariedSpecimen):
    """A specimen that has its small lobe, three times as heavy,
    where `present` "n" says.
    """

    box = BOX
    pixel_size = PIXEL

    def __init__(self, present: Tensor):
        self.present = present

    def beads(self, present: bool) -> Beads:
        place, mass = molecule()
        mass[SMALL] *= 3 * float(present)
        return Beads(place * BOX * PIXEL, mass, BOX, PIXEL)

    def project_rows(self, rows: Tensor, rotation: Tensor, origin: Tensor) -> Tensor:
        present = self.present[rows]
        with_lobe = self.beads(True).project(rotation, origin)
        without = self.beads(False).project(rotation, origin)
        return torch.where(present[:, None, None], with_lobe, without)

    def density(self) -> Tensor:
        return self.beads(True).density()


@pytest.fixture(scope="module")
def particles(tmp_path_factory) -> tuple[Path, Tensor]:
    """A set, and which particles have the lobe."""
    folder = tmp_path_factory.mktemp("lobes")
    present = torch.rand(COUNT, generator=torch.Generator().manual_seed(5)) < SHARE
    plan = particle_set.Plan(COUNT)
    particle_set.simulate(folder, LobeOrNot(present), plan, Exposure(0.5), seed=2)
    return folder / "particles.star", present


@pytest.fixture(scope="module")
def run(particles, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "composed"
    words = ("--deform", "subspace", "-O", "steps=60", "-W", "nodes=4")
    outcome = instamap("reconstruct", particles[0], "-o", out, *words)
    assert outcome.code == 0, outcome
    return out


def test_who_has_the_lobe_is_known(particles, run):
    present = particles[1].numpy()
    occupancy = np.load(run / "latents.npy")
    assert occupancy.shape == (COUNT, 1), "no coordinate of a motion, and one occupancy"
    assert occupancy.min() >= 0 and occupancy.max() <= 1
    assert ((occupancy[:, 0] > 0.5) == present).mean() > 0.97
    record = json.loads((run / "motion.json").read_text(encoding="utf-8"))
    assert record["description"] == "composition" and record["coordinates"] == 0
    (region,) = record["regions"]
    assert region["share"] == pytest.approx(present.mean(), abs=0.03)
    verdict = front_door.load(run).verdict
    assert verdict.startswith("particles differ: 1 region comes and goes, present in")
    assert "composition gives held-out particles" in verdict


def test_the_maps_with_and_without_differ_by_the_lobe(run):
    motion = MotionModel.open(run)
    with_lobe, without = (motion.conformation(torch.tensor([value])) for value in (1.0, 0.0))
    specimen = LobeOrNot(torch.ones(1))
    lobe = (specimen.beads(True).density() - specimen.beads(False).density()).float()
    both = torch.stack([(with_lobe - without).flatten(), lobe.flatten()])
    assert float(torch.corrcoef(both)[0, 1]) > 0.9


def test_new_particles_are_placed_and_nothing_is_audited(particles, run, tmp_path):
    placed = instamap("infer", run, particles[0], "-o", tmp_path / "placed")
    assert placed.code == 0, placed
    states = instamap("states", run, "-o", tmp_path / "states", "--kmeans", "2")
    assert states.code == 0, states
    refusal = instamap("audit", run, "-o", tmp_path / "audit").refusal
    assert "regions come and go and nothing moves" in refusal
