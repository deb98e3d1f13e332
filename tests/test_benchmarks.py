"""What benchmarks compute themselves: where an endless fit would have stopped, a mask's share, density outside a mask, step times."""

import json

import pytest
import torch

from instamap.fit.objective import EngineOptions
from instamap.maps import mrc

WHY = "benchmarks are imported from the project's root: python -m pytest"
curves = pytest.importorskip("benchmarks.curves", reason=WHY)
masks = pytest.importorskip("benchmarks.masks", reason=WHY)
report = pytest.importorskip("benchmarks.report", reason=WHY)


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
