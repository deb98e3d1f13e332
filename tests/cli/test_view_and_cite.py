"""Runs are shown in ChimeraX by a script, and cited by BibTeX."""

from support.command import instamap
from support.finished import finished

from instamap.maps import mask, mrc


def test_a_run_is_shown_at_a_level_within_its_map(tmp_path):
    finished().save(tmp_path / "out run")
    outcome = instamap("view", tmp_path / "out run", "--no-start")
    assert outcome.code == 0 and "view.cxc" in outcome.out
    lines = (tmp_path / "out run" / "view.cxc").read_text().splitlines()
    assert f'open "{tmp_path / "out run" / "map.mrc"}"' in lines
    [volume] = [line for line in lines if line.startswith("volume #1")]
    assert 0 < float(volume.split(" level ")[1].split()[0]) < 1
    assert "already" in instamap("view", tmp_path / "out run", "--no-start").refusal


def test_states_are_a_series(tmp_path):
    for number in (1, 2, 3):
        ball = mask.sphere(12, 3.0, 9.0 + number, 3.0)
        mrc.write(tmp_path / f"state_00{number}.mrc", ball, 3.0)
        mrc.write(tmp_path / f"state_00{number}_half1.mrc", ball, 3.0)
    assert instamap("view", tmp_path, "--no-start").code == 0
    script = (tmp_path / "view.cxc").read_text()
    assert "vseries true" in script and "vseries play" in script and "half1" not in script


def test_a_folder_without_maps_or_run_is_refused(tmp_path):
    assert "map.mrc" in instamap("view", tmp_path, "--no-start").refusal
    assert "run.toml" in instamap("cite", tmp_path).refusal


def test_cite_prints_entries(tmp_path):
    finished().save(tmp_path / "out")
    outcome = instamap("cite", tmp_path / "out")
    assert outcome.code == 0 and outcome.out.count("@article{") == 2


def test_an_audit_is_coloured_by_its_verdict(tmp_path):
    ball = mask.sphere(12, 3.0, 12.0, 3.0)
    mrc.write(tmp_path / "reference.mrc", ball, 3.0)
    mrc.write(tmp_path / "verdict.mrc", 3 * ball.round(), 3.0)
    assert instamap("view", tmp_path, "--no-start").code == 0
    lines = (tmp_path / "view.cxc").read_text().splitlines()
    reference, verdict = (
        lines.index(f'open "{tmp_path / name}.mrc"') for name in ("reference", "verdict")
    )
    [colours] = [line for line in lines if line.startswith("color sample #1 map #2 palette ")]
    assert reference < verdict < lines.index(colours)
    values = [pair.split(",")[0] for pair in colours.rpartition(" ")[2].split(":")]
    assert values == ["0", "1", "2", "3"]
    assert any("the map and its motion" in line for line in lines if line.startswith("key "))


def test_compressed_states_are_to_be_unpacked_first(tmp_path):
    mrc.write(tmp_path / "state_001.mrc.gz", mask.sphere(12, 3.0, 12.0, 3.0), 3.0)
    assert "gunzip" in instamap("view", tmp_path, "--no-start").refusal
