"""A result that was saved is read back as it was."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.command import instamap

from instamap import checksums
from instamap.errors import DataError, InstamapError
from instamap.simulate import particle_set
from instamap.workflows import api
from instamap.workflows.load_result import load_result
from instamap.workflows.poses import PosesResult
from instamap.workflows.result import Result


@pytest.fixture(scope="module")
def star(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return particle_set.demo(folder, count=120, box=16, pixel_size=6.0, snr=1.0)


@pytest.fixture(scope="module")
def saved(star, tmp_path_factory) -> tuple[Result, Path]:
    """A result and the folder that it was saved to."""
    result = api.reconstruct(star, objective=("normal", {"steps": 10}))
    folder = tmp_path_factory.mktemp("saved") / "out"
    result.save(folder)
    return result, folder


def test_everything_comes_back(saved):
    result, folder = saved
    found = load_result(folder)
    assert found.settings == result.settings
    assert found.maps.keys() == result.maps.keys()
    for name, volume in result.maps.items():
        assert torch.equal(found.maps[name], volume)
    assert torch.equal(found.mask, result.mask)
    assert found.resolution == result.resolution
    assert found.counts == result.counts
    assert found.evaluations == result.evaluations
    assert found.without_signal == result.without_signal
    assert found.log == result.log
    assert found.mask_was_found
    assert (found.scene.box, found.scene.pixel_size) == (16, 6.0)


def test_curves_come_back_to_six_decimals(saved):
    result, folder = saved
    found = load_result(folder)
    assert found.fsc.keys() == result.fsc.keys()
    for name, curve in result.fsc.items():
        torch.testing.assert_close(found.fsc[name], curve, atol=1e-6, rtol=0, check_dtype=False)


def test_what_it_says_is_the_same(saved):
    result, folder = saved
    found = load_result(folder)
    assert found.verdict == result.verdict
    assert found.summary() == result.summary()
    assert found.facts() == result.facts()
    assert found.files() == result.files()
    assert found.record() == result.record()


def test_it_can_be_saved_again(saved, tmp_path):
    _, folder = saved
    load_result(folder).save(tmp_path / "again")
    for name in ("map.mrc", "half1.mrc", "half2.mrc", "mask.mrc", "result.json", "run.toml"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name


def test_a_run_of_the_command_line_is_read(star, tmp_path):
    words = ("--objective", "normal", "-O", "steps=20", "--no-halves")
    assert instamap("reconstruct", star, "-o", tmp_path / "out", *words).code == 0
    found = load_result(tmp_path / "out")
    assert set(found.maps) == {"map"}
    assert found.fsc == {}
    assert found.resolution is None
    assert found.verdict.startswith("a map without half maps")


def test_the_mask_that_was_given_is_found_where_it_is(saved, star, tmp_path):
    _, folder = saved
    window = tmp_path / "window.mrc"
    window.write_bytes((folder / "mask.mrc").read_bytes())
    result = api.reconstruct(star, objective=("normal", {"steps": 2}), mask=window)
    result.save(tmp_path / "out")
    found = load_result(tmp_path / "out")
    assert not found.mask_was_found
    assert torch.equal(found.mask, result.mask)
    assert "mask.mrc" not in found.files()
    window.unlink()
    assert load_result(tmp_path / "out").mask is None


@pytest.mark.slow
def test_corrected_poses_come_back(star, tmp_path):
    result = api.reconstruct(
        star,
        deformation="rigid",
        workflow=("poses", {"rounds": 1}),
        objective=("normal", {"steps": 10}),
        held_out=0.2,
    )
    result.save(tmp_path / "out")
    found = load_result(tmp_path / "out")
    assert isinstance(result, PosesResult)
    assert type(found) is type(result)
    assert found.verdict == result.verdict
    assert found.poses == result.poses
    assert found.z is None, "the STAR file has them"
    found.save(tmp_path / "again")
    load_result(tmp_path / "again").save(tmp_path / "again", force=True)
    for name in ("particles_refined.star", "poses.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    (tmp_path / "out" / "particles_refined.star").unlink()
    with pytest.raises(DataError, match="particles_refined.star' is gone"):
        found.save(tmp_path / "once-more")
    assert not (tmp_path / "once-more" / "map.mrc").exists()


@pytest.mark.slow
def test_poses_that_mini_batches_learned_are_saved_again(star, tmp_path):
    result = api.reconstruct(star, deformation="rigid", objective=("images", {"steps": 30}))
    result.save(tmp_path / "out")
    found = load_result(tmp_path / "out")
    assert found.files() == result.files()
    found.save(tmp_path / "again")
    name = "particles_refined.star"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_a_folder_of_the_first_version_is_understood(saved, tmp_path):
    """Its table [engine] is what is now [objective], and together is group_by."""
    result, folder = saved
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    text = (old / "run.toml").read_text()
    text = re.sub(r"\[objective\]", "[engine]", text)
    text = re.sub(r"(?s)\[workflow\].*?(?=\n\[|$)", "", text)
    (old / "run.toml").write_text('together = "rlnImageName"\n' + text)
    checksums.write_list(old)
    found = load_result(old)
    assert found.settings.objective == result.settings.objective
    assert found.settings.group_by == "rlnImageName"


# What is refused


def test_a_folder_without_a_result_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no result: no run.toml; give the folder of a run"):
        load_result(tmp_path)


@pytest.fixture
def damaged(saved, tmp_path) -> Path:
    """A copy of the folder, to be damaged."""
    _, folder = saved
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


@pytest.mark.parametrize("name", ["result.json", "map.mrc"])
def test_a_file_that_is_missing_is_named(damaged, name):
    (damaged / name).unlink()
    with pytest.raises(DataError, match=f"{name}.* copy the whole folder again"):
        load_result(damaged)


@pytest.mark.parametrize("text", ["{", "[]", '"text"', "{}", '{"resolution": 3}'])
def test_a_damaged_record_is_refused_in_a_line(damaged, text):
    (damaged / "result.json").write_text(text)
    with pytest.raises(DataError, match="result.json.* damaged; copy the whole folder again"):
        load_result(damaged)


@pytest.mark.parametrize("name", ["map.mrc", "half1.mrc", "mask.mrc", "result.json", "run.toml"])
def test_one_bit_that_flipped_is_noticed(damaged, name):
    text = bytearray((damaged / name).read_bytes())
    text[-2] ^= 1
    (damaged / name).write_bytes(text)
    with pytest.raises(InstamapError, match=f"{name}' (is not as the run wrote it|cannot be read)"):
        load_result(damaged)


def test_a_folder_without_its_checksums_is_refused(damaged):
    (damaged / "SHA256SUMS").write_text("half a li")
    with pytest.raises(DataError, match="SHA256SUMS' is not as the run wrote it"):
        load_result(damaged)
    (damaged / "SHA256SUMS").unlink()
    with pytest.raises(DataError, match="has no SHA256SUMS; copy the whole folder again"):
        load_result(damaged)


def test_pictures_may_go_or_change(damaged):
    (damaged / "map.png").unlink()
    (damaged / "fsc.png").write_bytes(b"another")
    load_result(damaged)


@pytest.mark.parametrize("name", ["log.jsonl", "fsc.csv", "run.toml"])
def test_damaged_text_is_refused_in_a_line(damaged, name):
    (damaged / name).write_text("{\x00nonsense\n1,2,3\n")
    with pytest.raises(InstamapError) as refused:
        load_result(damaged)
    assert name in str(refused.value)


def test_records_of_later_versions_may_say_more(damaged):
    record = json.loads((damaged / "result.json").read_text())
    (damaged / "result.json").write_text(json.dumps({**record, "novel": 1}))
    checksums.write_list(damaged)
    assert load_result(damaged).counts == record["counts"]


def test_a_result_without_a_workflow_is_a_plain_one(saved, tmp_path):
    """Records may leave the workflow out: then nothing beyond maps is read."""
    result, _ = saved
    plain = replace(result, settings=replace(result.settings, objective=None))
    plain.save(tmp_path / "out")
    assert type(load_result(tmp_path / "out")) is Result
