"""What benchmarks compute themselves: where an endless fit would have stopped, a mask's share, density outside a mask, step times,
contrast and offset of another program's volumes, coordinates of true states."""

import json

import pytest
import torch

from instamap.fit.objective import EngineOptions
from instamap.maps import mrc

WHY = "benchmarks are imported from the project's root: python -m pytest"
cryodrgn = pytest.importorskip("benchmarks.cryodrgn", reason=WHY)
curves = pytest.importorskip("benchmarks.curves", reason=WHY)
masks = pytest.importorskip("benchmarks.masks", reason=WHY)
motion = pytest.importorskip("benchmarks.motion", reason=WHY)
programs = pytest.importorskip("benchmarks.programs", reason=WHY)
report = pytest.importorskip("benchmarks.report", reason=WHY)
sets = pytest.importorskip("benchmarks.sets", reason=WHY)


def _looks(*held_out):
    return [{"step": 5 * n, "seconds": 0.0, "held_out": value} for n, value in enumerate(held_out, 1)]


def test_a_fit_stops_where_patience_ends():
    options = EngineOptions(patience=2, tolerance=0.0)
    assert curves.stop(_looks(1, 2, 3, 3, 2, 9), options) == 5  # the fourth and fifth look gain nothing on the third
    assert curves.best(_looks(1, 2, 3, 3, 2, 9)[:5])["step"] == 15
    assert curves.stop(_looks(1, 2, 3, 4, 5), options) is None


def test_a_fit_stops_at_its_last_step():
    assert curves.stop(_looks(1, 2, 3, 4, 5), EngineOptions(steps=15)) == 3


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
def test_a_share_of_a_mask(share):
    """To the voxels of one layer: a ball of radius 6 has at most 113."""
    whole = (torch.cartesian_prod(*[torch.arange(16.0) - 8] * 3).norm(dim=1) < 6).float().reshape(16, 16, 16)
    part = masks.cut(whole, share)
    assert 0 <= float(part.sum()) - share * float(whole.sum()) < 114
    assert bool((part <= whole).all()) and not float(part[..., int(part.sum((0, 1)).nonzero().max()) + 1 :].sum())


def test_density_outside_a_mask_is_found(tmp_path):
    mask = torch.zeros(8, 8, 8)
    mask[2:6] = 1
    mrc.write(tmp_path / "half1.mrc", 3 * mask, 2.0)
    assert masks.outside(tmp_path, mask) == (1, 0.0)
    leak = mask.clone()
    leak[0, 1, 2] = -0.25
    mrc.write(tmp_path / "half2.mrc", leak, 2.0)
    assert masks.outside(tmp_path, mask) == (2, 0.25)


def test_the_time_of_a_step_leaves_out_the_first_look(tmp_path):
    looks = [("half1", 10, 5.0), ("half1", 20, 6.0), ("half2", 10, 1.0), ("half2", 20, 4.0)]
    lines = [json.dumps({"fit": name, "step": step, "seconds": seconds}) for name, step, seconds in looks]
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    assert masks.step_ms(tmp_path) == pytest.approx(200)


def test_a_table_of_markdown():
    assert report.markdown(["SET", "AUC"], [["T", 0.5], ["S", None]]) == "| set | auc |\n| --- | --- |\n| T | 0.5 |\n| S | - |"


@pytest.mark.parametrize("sign", [1, -1])
def test_contrast_and_offset_of_a_volume(sign):
    reference = torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(0))
    correlation, offset = cryodrgn.compare(sign * reference + 5, reference)
    assert correlation == pytest.approx(sign) and offset == [0, 0, 0]
    assert cryodrgn.compare(sign * reference.roll((1, -2, 0), (0, 1, 2)), reference)[1] == [1, -2, 0]


def test_a_coarse_volume_is_enlarged():
    """A wave below both Nyquist frequencies, sampled about the origin at voxel D // 2 of either lattice."""
    wave = lambda box: torch.cos(2 * torch.pi * 3 * (torch.arange(box) - box // 2) / box + 0.4).expand(box, box, box)
    assert torch.allclose(cryodrgn.enlarge(wave(8), 12), wave(12), atol=1e-5)
    assert torch.allclose(cryodrgn.enlarge(wave(8), 8), wave(8), atol=1e-5)


def test_times_of_epochs_are_read():
    line = "INFO # =====> Epoch: {} Average gen loss = 0.65, KLD = 0.07, total loss = 0.66; Finished in {}\n"
    run = programs.Run(0, 0.0, 0.0, None, None, line.format(1, "0:00:43.796433") + line.format(2, "1:01:02.5"))
    assert cryodrgn._epochs(run) == [43.796433, 3662.5]
    with pytest.raises(cryodrgn.Failed, match="no time"):
        cryodrgn._epochs(programs.Run(0, 0.0, 0.0, None, None, "Finished in 0:00:54.25"))


def test_a_state_is_at_the_median_of_its_particles():
    latents = torch.tensor([[0.0], [9.0], [1.0], [0.5], [7.0]])
    assert motion.places(latents, torch.tensor([3, 5, 3, 3, 5]), [5, 3]).tolist() == [[8.0], [0.5]]


@pytest.mark.parametrize("name", sets.RECIPES)
def test_recipes_are_words(name):
    """They are split by white space, not by a shell: quotes would reach the tool."""
    assert not set(sets.RECIPES[name]) & set("'\"") and "{data}" in sets.RECIPES[name]
