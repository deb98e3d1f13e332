"""Words of version 0.1 mean what they meant, and one line says how they are written now."""

import tomllib
from pathlib import Path

import pytest
from support.command import Outcome, instamap

from instamap.cli import earlier
from instamap.errors import OptionError
from instamap.simulate import particle_set
from instamap.workflows.read_settings import Typed
from instamap.workflows.settings import Settings

FIRST_VERSION = """
instamap = "0.1.0"
particles = "{particles}"
together = "rlnGroupName"
seed = 3

[preprocess]
crop = 24
normalise = true

[engine]
name = "normal"
steps = 6
look = 3
"""


@pytest.fixture(scope="module")
def particles(tmp_path_factory) -> Path:
    """The STAR file of the demo's particles."""
    folder = tmp_path_factory.mktemp("particles")
    particle_set.demo(folder, seed=0)
    return folder / "particles.star"


def notes(outcome: Outcome) -> list[str]:
    """The lines about earlier words."""
    return [line for line in outcome.err.splitlines() if line.startswith("note:")]


def test_an_earlier_command_line(particles, tmp_path):
    """The very same run as in today's words."""
    words = {
        "before": ("--engine", "normal", "-E", "steps=6", "-E", "look=3"),
        "today": ("--objective", "normal", "-O", "steps=6", "-O", "evaluate_every=3"),
    }
    for name, options in words.items():
        outcome = instamap("reconstruct", particles, "-o", tmp_path / name, *options)
        assert outcome.code == 0, outcome
        expected = [f"note: {' '.join(options)} is now written {' '.join(words['today'])}"]
        assert notes(outcome) == (expected if name == "before" else [])
    for file in ("run.toml", "map.mrc"):
        before = (tmp_path / "before" / file).read_bytes()
        assert before == (tmp_path / "today" / file).read_bytes()


def typed(values: dict, **words) -> Typed:
    return earlier.translated(Typed(**words), values)


def test_engines_are_objectives_and_workflows(capsys):
    options = ["steps=10", "nodes=5", "coarse=12"]
    values = {"engine": "states", "engine_options": options, "earlier_group_by": "rlnGroupName"}
    given = typed(values)
    assert given.names == {"workflow": "motion"}
    assert given.options == {"objective": ["steps=10"], "workflow": ["nodes=5", "coarse=12"]}
    assert given.plain == {"group_by": "rlnGroupName"}
    assert capsys.readouterr().err == (
        "note: --engine states -E steps=10 -E nodes=5 -E coarse=12 --together rlnGroupName is now"
        " written --workflow motion -O steps=10 -W nodes=5 -W coarse=12 --group-by rlnGroupName\n"
    )
    given = typed({"engine": "poses", "engine_options": ["rounds=2", "newton=1"]})
    assert given.names == {"workflow": "poses"}
    assert given.options == {"workflow": ["rounds=2", "newton=1"]}
    assert typed({"engine": "auto"}).names == {"objective": "auto"}


def test_todays_words_win(capsys):
    values = {"engine": "normal", "engine_options": ["steps=1"], "earlier_group_by": "a"}
    given = typed(
        values,
        plain={"group_by": "b"},
        names={"objective": "images"},
        options={"objective": ["steps=2"]},
    )
    assert given.plain == {"group_by": "b"} and given.names == {"objective": "images"}
    assert given.options == {"objective": ["steps=1", "steps=2"]}, "the last one counts"


def test_nothing_is_said_where_nothing_is_old(capsys):
    given = Typed({"seed": 1}, {"objective": "images"})
    assert earlier.translated(given, {"engine": None, "engine_options": []}) == given
    assert earlier.translated_record({"seed": 1}, "run.toml") == {"seed": 1}
    assert not capsys.readouterr().err


def test_an_unknown_engine():
    with pytest.raises(OptionError, match="engine 'nromal' is unknown; .* --objective or"):
        typed({"engine": "nromal"})


def test_a_record_of_the_first_version(particles, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(FIRST_VERSION.format(particles=particles).replace("together", "#together"))
    outcome = instamap("reconstruct", "--config", config, "-o", tmp_path / "out")
    assert outcome.code == 0, outcome
    assert notes(outcome) == [
        f"note: '{config}' is of version 0.1: [preprocess], [engine] are read as crop normalise,"
        " [objective]"
    ]
    record = tomllib.loads((tmp_path / "out" / "run.toml").read_text())
    assert (record["crop"], record["normalise"], record["seed"]) == (24, True, 3)
    assert record["objective"]["name"] == "normal"
    assert (record["objective"]["steps"], record["objective"]["evaluate_every"]) == (6, 3)


@pytest.mark.parametrize(
    ("engine", "tables"),
    [
        ({"name": "auto"}, {}),
        (
            {"name": "states", "nodes": 8, "look": 5},
            {
                "workflow": {"name": "motion", "nodes": 8},
                "objective": {"name": "conformations", "evaluate_every": 5},
            },
        ),
        (
            {"name": "poses", "rounds": 2, "steps": 9},
            {
                "workflow": {"name": "poses", "rounds": 2},
                "objective": {"name": "normal", "steps": 9},
            },
        ),
        ({"name": "images", "turn": 2.0}, {"objective": {"name": "images", "turn": 2.0}}),
    ],
)
def test_tables_of_engines(engine, tables):
    record = earlier.translated_record({"together": "a", "engine": engine}, "run.toml")
    assert record == {"group_by": "a", **tables}
    Settings.from_record(record)  # all of it is known


@pytest.mark.parametrize("engine", [{"steps": 9}, {"name": "auto", "steps": 9}])
def test_options_of_no_engine(engine):
    """They would be lost without a word."""
    with pytest.raises(OptionError, match="'run.toml' sets steps but names no engine; write name"):
        earlier.translated_record({"engine": engine}, "run.toml")


def test_infer_has_the_earlier_column(capsys):
    assert earlier.group_by(None, "a") == "a" and earlier.group_by("b", None) == "b"
    assert capsys.readouterr().err == "note: --together a is now written --group-by a\n"
