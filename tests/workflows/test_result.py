"""A result: what it says of itself, and the files that it writes."""

import dataclasses
import json
import math
import tomllib
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import torch

from instamap.errors import OutputError
from instamap.fitting.loop import FitResult
from instamap.maps import mask, mrc
from instamap.progress import Evaluation
from instamap.scene import Scene
from instamap.workflows.choose import resolve
from instamap.workflows.result import Artefact, Result, run_folder
from instamap.workflows.settings import Settings

BOX = 12
PIXEL = 3.0


@dataclasses.dataclass(frozen=True)
class Note(Artefact):
    """A file with a few words."""

    words: str

    def files(self) -> list[str]:
        return ["note.txt"]

    def write(self, folder: Path) -> None:
        (folder / "note.txt").write_text(self.words)


def evaluation(step: int, held_out: float) -> Evaluation:
    return Evaluation(step=step, loss=-1.5, held_out=held_out, best=True, seconds=0.25)


def made(**changes: Any) -> Result:
    """A result of two half maps that agree down to 9 Å."""
    generator = torch.Generator().manual_seed(0)
    halves = torch.rand(2, BOX, BOX, BOX, generator=generator)
    volumes = {"map": halves.mean(0), "half1": halves[0], "half2": halves[1]}
    fits = {
        name: FitResult(volumes[name], [evaluation(5, 1.0), evaluation(10, 3.25)], True)
        for name in ("half1", "half2")
    }
    curve = torch.linspace(1.0, 0.0, BOX // 2 + 1)
    window = mask.sphere(BOX, PIXEL, 12.0, 3.0)
    values: dict[str, Any] = {
        "settings": resolve(Settings(Path("/data/particles.star"))),
        "scene": Scene(BOX, PIXEL, count=100, mask=window),
        "maps": volumes,
        "fits": fits,
        "fsc": {"masked": curve, "corrected": curve},
        "resolution": 9.0,
        "counts": {"half1": 45, "half2": 45, "held_out": 10},
        "mask_was_found": True,
        "log": [{"fit": "half1", "step": 5, "held_out": 1.0}],
    }
    return Result(**{**values, **changes})


def without_signal() -> Result:
    usual = made()
    lost = {name: dataclasses.replace(fit, signal=False) for name, fit in usual.fits.items()}
    return made(fits=lost, resolution=None)


def one_map() -> Result:
    usual = made()
    fits = {"map": usual.fits["half1"]}
    return made(maps={"map": usual.maps["map"]}, fits=fits, fsc={}, resolution=None)


CASES = {"halves": made, "no signal": without_signal, "one map": one_map}


# Files


@pytest.mark.parametrize("case", CASES)
def test_all_that_is_written_is_named(case, tmp_path):
    result = CASES[case]()
    result.save(tmp_path / "out")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == set(result.files())
    assert tomllib.loads((tmp_path / "out" / "run.toml").read_text())["files"] == result.files()
    assert "map.png" not in written or case != "no signal"
    assert ("fsc.csv" in written) == (case != "one map")


def test_every_file_is_one_that_the_workflow_may_write():
    patterns = run_folder(made().settings).may_write
    for make in CASES.values():
        for name in make().files():
            assert any(Path(name).match(pattern) for pattern in patterns), name


def test_maps_have_the_pixel_size(tmp_path):
    result = made()
    result.save(tmp_path)
    for name, volume in result.maps.items():
        found, pixel_size = mrc.read(tmp_path / f"{name}.mrc")
        assert torch.equal(found, volume)
        assert pixel_size == PIXEL


def test_a_mask_that_was_given_is_not_written_again(tmp_path):
    made(mask_was_found=False).save(tmp_path)
    assert not (tmp_path / "mask.mrc").exists()


def test_artefacts_are_files_of_the_result(tmp_path):
    result = made(artefacts=(Note("a few words"),))
    assert "note.txt" in result.files()
    result.save(tmp_path)
    assert (tmp_path / "note.txt").read_text() == "a few words"


def test_a_run_is_replaced_by_force_alone(tmp_path):
    made(artefacts=(Note("first"),)).save(tmp_path)
    with pytest.raises(OutputError, match="already holds a run"):
        made().save(tmp_path)
    made().save(tmp_path, force=True)
    assert not (tmp_path / "note.txt").exists()


def test_an_artefact_that_fails_leaves_nothing(tmp_path):
    class Failing(Note):
        def write(self, folder: Path) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        made(artefacts=(Failing(""),)).save(tmp_path / "out")
    assert not list(tmp_path.iterdir())


# What it says of itself


def test_the_verdict():
    assert made().verdict == "resolution 9.00 Å"
    assert without_signal().verdict == "no signal found in half1, half2"
    assert one_map().verdict == "a map without half maps, whose resolution is not known"


def test_the_summary_of_half_maps():
    said = made().summary()
    assert said[0] == (
        "half1: held-out likelihood +3.25 nats/image beyond an empty map, at step 10 of 10"
    )
    assert said[-1] == (
        "resolution: 9.00 Å (half-map FSC 0.143, mask-corrected by phase randomisation)"
    )
    assert len(said) == 3


def test_the_summary_without_a_signal():
    said = without_signal().summary()
    lost = [line for line in said if "no signal found: the 10 held-out images" in line]
    assert len(lost) == 2
    assert said[-1] == "resolution: none, as no signal was found"


def test_a_resolution_at_nyquist_says_so():
    assert "which is Nyquist" in made(resolution=2 * PIXEL).summary()[-1]
    assert "which is Nyquist" not in made(resolution=2.1 * PIXEL).summary()[-1]


def test_direct_inversions_are_named_where_they_were_asked():
    curves = {**made().fsc, "unbiased": made().fsc["masked"]}
    assert "held against direct inversions" in made(fsc=curves).summary()[-1]


def test_the_best_evaluation_is_the_likeliest_one():
    usual = made()
    evaluations = [evaluation(5, 4.0), evaluation(10, 3.0)]
    fits = {"half1": dataclasses.replace(usual.fits["half1"], evaluations=evaluations)}
    assert "+4 nats/image beyond an empty map, at step 5 of 10" in made(fits=fits).summary()[0]


def test_facts_are_plain_values(tmp_path):
    result = made()
    facts = json.loads(json.dumps(result.facts()))
    assert facts == result.facts()
    assert facts["verdict"] == result.verdict
    assert facts["resolution"] == 9.0
    assert facts["counts"] == result.counts
    assert facts["without_signal"] == []
    assert facts["evaluations"]["half1"][1]["held_out"] == 3.25
    result.save(tmp_path)
    assert json.loads((tmp_path / "result.json").read_text()) == facts


def test_the_record_repeats_the_run():
    result = made()
    record = result.record()
    assert Settings.from_record(record) == result.settings
    assert record["files"] == result.files()


def test_the_curves_are_written_to_six_decimals(tmp_path):
    result = made()
    result.save(tmp_path)
    table = np.genfromtxt(tmp_path / "fsc.csv", delimiter=",", names=True)
    assert table["masked"] == pytest.approx(result.fsc["masked"].numpy(), abs=1e-6)
    edge = BOX * PIXEL
    assert table["resolution"][1:] == pytest.approx(edge / np.arange(1, BOX // 2 + 1), rel=1e-4)
    assert math.isinf(table["resolution"][0]) or math.isnan(table["resolution"][0])


def test_maps_have_headers_by_the_book_that_say_what_they_are(tmp_path):
    made().save(tmp_path / "out")
    labels = {}
    for file in (tmp_path / "out").glob("*.mrc"):
        assert mrcfile.validate(file)
        with mrcfile.open(file, header_only=True) as opened:
            assert float(opened.voxel_size.x) == PIXEL
            labels[file.stem] = opened.get_labels()[1]
    assert labels["map"] == "map" and labels["half1"] == "half map 1"
