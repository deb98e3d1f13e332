"""What a notebook shows of a result: a line, a card, and figures."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from support import motions
from support.finished import BOX, PIXEL, finished

from instamap.data.particles import Particles
from instamap.errors import DataError
from instamap.motion.intervals import Interval
from instamap.motion.motion_model import MotionModel
from instamap.motion.populations import Populations
from instamap.motion.regions import Region
from instamap.simulate import particle_set
from instamap.workflows import api
from instamap.workflows.motion import MotionResult
from instamap.workflows.poses import PosesResult
from instamap.workflows.result import Result

MAX_CARD = 300_000
NARROW = Interval(0.25, 0.2, 0.3, (0.24, 0.26))


def moved(folder: Path, **changes) -> MotionResult:
    """A result whose motion is a blob that moves along x."""
    latents = torch.linspace(-1, 1, 50, dtype=torch.float64)[:, None]
    values = {
        "motion": motions.save(folder, folder / "particles.star", latents),
        "moving": True,
        "description": "bending",
        "closed": False,
        "gains": {"half1": 3.0, "half2": 2.5},
        "agreement": 0.9,
        "regions": [],
    }
    return of(MotionResult, **{**values, **changes})


def of(kind: type[Result], **values) -> Result:
    usual = finished()
    common = {name: getattr(usual, name) for name in Result.__dataclass_fields__}
    return kind(**{**common, **values})


def populations() -> Populations:
    region = Region("open", ((0.0, 1.0),))
    return Populations([], [], [], [(region, NARROW)], None, None, 1200)


def test_the_line_has_verdict_and_size():
    facts = f"map, half1, half2 of {BOX} px of {PIXEL:g} Å, from 100 images"
    assert repr(finished()) == f"<Result: resolution 9.00 Å; {facts}>"


@pytest.mark.parametrize("kind", [Result, MotionResult, PosesResult])
def test_every_kind_of_result_has_that_line(kind):
    """A dataclass makes another unless it is told not to, with every voxel in it."""
    assert kind.__repr__ is Result.__repr__


def test_parts_of_results_are_told_in_a_line(tmp_path):
    result = moved(tmp_path / "run")
    line = repr(result)
    assert (
        line.startswith("<MotionResult: particles move: bending gives held-out") and len(line) < 300
    )
    size = f"{motions.BOX} px of {motions.PIXEL:g} Å"
    counts = "independent fits: 2, particles: 50, coordinates of each: 1"
    assert repr(result.motion) == f"<MotionModel: {size}, {counts}>"
    words = "1200 particles: open 25.0% (20.0% to 30.0%)"
    assert repr(populations()) == f"<Populations of {words}>"


def test_particles_and_statistics_are_told_in_a_line(tmp_path):
    star = particle_set.demo(tmp_path / "data", count=40, box=BOX, pixel_size=PIXEL, snr=1.0)
    size = f"40 images of {BOX} px of {PIXEL:g} Å"
    assert repr(Particles.open(star)) == f"<Particles '{star}': {size}>"
    folder = api.accumulate(star, tmp_path / "stats")
    said = repr(folder)
    assert said == f"<StatisticsFolder '{tmp_path / 'stats'}': {size}, shards 1/1>"


def test_the_card_has_verdict_slices_and_more():
    card = finished()._repr_html_()
    assert "resolution 9.00 Å" in card and card.count("<img") == 3
    assert "<details><summary>More</summary>" in card and "at step 10 of 15" in card
    assert len(card) < MAX_CARD


def test_the_card_keeps_to_itself():
    """It fetches nothing, runs nothing, and has the notebook's colours, light or dark."""
    card = finished()._repr_html_()
    assert not re.findall(r"""(?:src|href)="(?!data:image/png)""", card)
    assert not re.search(r"<script|<style|color|background|class=\"(?!scroll)", card)


def test_the_card_escapes():
    lost = {name: dataclasses.replace(fit, signal=False) for name, fit in finished().fits.items()}
    lost = {f"<b>{name}": fit for name, fit in lost.items()}
    card = finished(fits=lost, resolution=None)._repr_html_()
    assert "&lt;b&gt;half1" in card and "<b>" not in card and "<img" not in card


def test_figures_are_drawn_from_results(tmp_path):
    result = finished()
    for draw in (result.plot_fsc, result.plot_likelihood, result.plot_slices, result.plot_views):
        assert draw().axes


def test_figures_are_drawn_from_motions(tmp_path):
    result = moved(tmp_path / "run", rotations=None)
    assert result.plot_latents().axes
    figure = result.plot_audit()
    title = figure.get_suptitle()
    assert "to be believed where 'believed' is white" in title and "x, y, z = (8, 8, 8)" in title


def test_the_audit_of_some_voxels_says_where_they_are(tmp_path, monkeypatch):
    """At half as many, of which the eighth is still the middle."""
    monkeypatch.setattr("instamap.report.audit_section.MAX_EDGE", motions.BOX // 2)
    figure = moved(tmp_path / "run").plot_audit()
    assert "x, y, z = (8, 8, 8)" in figure.get_suptitle()
    assert figure.axes[0].get_images()[0].get_array().shape == (8, 8)


def test_a_figure_that_cannot_be_drawn_says_why(tmp_path):
    with pytest.raises(DataError, match="halves=True"):
        finished(fsc={}).plot_fsc()
    with pytest.raises(DataError, match=r"report\.html"):
        finished(rotations=None).plot_views()
    with pytest.raises(DataError, match="instamap populations"):
        moved(tmp_path / "run").plot_populations()
    with pytest.raises(DataError, match="nothing moves"):
        moved(tmp_path / "still", moving=False).plot_audit()


def test_a_motion_with_maps_of_its_own_has_no_field_to_audit(tmp_path):
    latents = torch.linspace(-1, 1, 50, dtype=torch.float64)[:, None]
    maps: MotionModel = motions.save_maps(tmp_path / "run", tmp_path / "particles.star", latents)
    with pytest.raises(DataError, match="a map of its own"):
        moved(tmp_path / "other", motion=maps).plot_audit()
