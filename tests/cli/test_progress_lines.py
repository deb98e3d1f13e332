"""A run tells programs how it goes in JSON lines, or tells nothing."""

import json

import pytest
from support.command import QUICK, instamap

from instamap.cli.progress_lines import ProgressLines
from instamap.progress import Evaluation
from instamap.simulate import particle_set


@pytest.fixture(scope="module")
def star(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    particle_set.demo(folder, seed=0)
    return folder / "particles.star"


def test_each_line_is_an_event(star, tmp_path):
    outcome = instamap("reconstruct", star, "-o", tmp_path / "out", "--json", *QUICK)
    assert outcome.code == 0 and "resolution" in outcome.out
    events = [json.loads(line) for line in outcome.err.splitlines()]
    assert {one["event"] for one in events} == {"message", "progress", "evaluation"}
    *_, last = [one for one in events if one["event"] == "evaluation"]
    assert last["step"] == last["steps"] == 20 and last["gain"] > 0 and last["seconds_left"] == 0
    read = [one for one in events if one.get("what") == "images"]
    assert read[-1]["done"] == read[-1]["total"] == 600


def test_quiet_says_what_was_found_alone(star, tmp_path):
    outcome = instamap("reconstruct", star, "-o", tmp_path / "out", "--quiet", *QUICK)
    assert outcome.code == 0 and outcome.err == "" and "resolution" in outcome.out


def test_both_are_refused(star, tmp_path):
    words = ("reconstruct", star, "-o", tmp_path / "out", "--quiet", "--json")
    assert "--quiet and --json" in instamap(*words).refusal


def test_rate_and_time_left(capsys):
    lines = ProgressLines(["begins"])
    lines.evaluated("half1", Evaluation(10, -1.0, 2.0, True, 5.0), 30)
    lines.evaluated("half1", Evaluation(20, -1.0, 2.5, True, 10.0), 30)
    first, second, third = map(json.loads, capsys.readouterr().err.splitlines())
    assert first == {"event": "message", "text": "begins"}
    assert (second["rate"], second["seconds_left"], second["gain"]) == (2.0, 10.0, 0.0)
    assert (third["seconds_left"], third["gain"]) == (5.0, 0.5)
