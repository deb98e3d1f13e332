"""Motion inside a focus, from end to end: of one subunit of symmetric particles, copy by copy; and
where nothing moves.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from support import fourfold, swinging
from support.command import instamap

from instamap.data.particles import Particles
from instamap.geometry import grids
from instamap.maps import mrc
from instamap.motion.motion_model import MotionModel

COUNT = 300
LINE = ("-D", "latent=1", "-D", "topology=line")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def subunits(tmp_path_factory) -> tuple[Path, torch.Tensor]:
    """A set in which each of four subunits swings on its own, with a mask around the first; and
    the angles "n 4".
    """
    folder = tmp_path_factory.mktemp("subunits")
    angle = fourfold.write(folder, COUNT, 50.0, snr=1.0)
    focus = fourfold.around((32.0, 0.0, 0.0), 34.0)
    mrc.write(folder / "focus.mrc", focus, fourfold.PIXEL)
    return folder, angle


def focused(folder: Path, out: Path, *words: str) -> MotionModel:
    star = folder / "particles.star"
    focus = folder / "focus.mrc"
    done = instamap("reconstruct", star, "-o", out, "--focus", focus, *LINE, *words)
    assert done.code == 0, done
    return MotionModel.open(out)


def check_held(motion: MotionModel, folder: Path, out: Path) -> None:
    """Outside the focus every conformation is the map that was written, to the last bit."""
    focus = mrc.read(folder / "focus.mrc")[0]
    written = mrc.read(out / "map.mrc")[0]
    for z in (-0.9, 0.2, 0.8):
        seen = motion.conformation(torch.tensor([z]))
        assert torch.equal(seen[focus == 0], written[focus == 0])
    assert not torch.equal(seen, written)


def test_each_copy_tells_of_the_subunit_that_it_has_in_the_focus(subunits, tmp_path):
    folder, angle = subunits
    out = tmp_path / "run"
    words = ("--symmetry", "C4", "--deform", "bending-field", "-O", "steps=30")
    motion = focused(folder, out, *words)
    assert json.loads((out / "motion.json").read_text())["motion_found"]
    z = motion.latents.view(COUNT, 4)
    for copy in range(4):
        each = [abs(spearmanr(z[:, copy], angle[:, one]).statistic) for one in range(4)]
        assert each[copy] > 0.85, each
        assert max(each[:copy] + each[copy + 1 :]) < 0.25, each
    check_held(motion, folder, out)
    placed = tmp_path / "placed"
    done = instamap("infer", out, folder / "particles.star", "-o", placed)
    assert done.code == 0, done
    again = np.load(placed / "latents.npy")
    assert again.shape == (4 * COUNT, 1)
    assert abs(np.corrcoef(again[:, 0], motion.latents[:, 0])[0, 1]) > 0.95
    expanded = Particles.open(placed / "particles_latents.star", datadir=folder)
    assert expanded.count == 4 * COUNT and "instamapSymmetryCopy" in expanded.table.columns


def test_maps_of_their_own_differ_in_the_focus_alone(subunits, tmp_path):
    folder, _ = subunits
    words = ("--symmetry", "C4", "--deform", "subspace", "-O", "steps=10")
    motion = focused(folder, tmp_path / "run", *words)
    check_held(motion, folder, tmp_path / "run")


def test_where_nothing_moves_nothing_is_found(tmp_path):
    """The lobe swings outside the focus, and lies over what is inside in many views."""
    swinging.write(tmp_path, 800, 60.0, snr=0.5)
    angles = torch.linspace(-1, 1, 5).double()
    seen = torch.stack([swinging.SwingingLobe(angles).density(float(one)) for one in angles])
    still = seen.std(0) < 0.01 * seen.std(0).max()
    place = torch.tensor([10.0, -5.0, -25.0])
    x = grids.voxel_centres(swinging.BOX, swinging.PIXEL)
    near = ((25 - (x - place).norm(dim=-1)) / 10).clamp(0, 1)
    mrc.write(tmp_path / "focus.mrc", (near * still).float(), swinging.PIXEL)
    motion = focused(tmp_path, tmp_path / "run", "--deform", "bending-field", "-O", "steps=30")
    assert not json.loads((tmp_path / "run" / "motion.json").read_text())["motion_found"]
    assert not motion.latents.any()
