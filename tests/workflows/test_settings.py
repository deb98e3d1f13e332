"""Settings: one schema, from which records, range checks, flags and signatures come."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from support.command import instamap

from instamap.errors import OptionError, PartError
from instamap.fitting.stage import Stage
from instamap.plugin.choice import PART_KINDS, Choice, choose
from instamap.plugin.options import OptionSpec
from instamap.toml_text import write_toml
from instamap.workflows import settings as schema
from instamap.workflows.settings import (
    CHOICE_KINDS,
    DOCTOR,
    EVERY_COMMAND,
    PREPROCESS,
    Role,
    Settings,
    check_record,
    facts_of,
    fields_of_command,
    plain_settings,
)

STAR = Path("/data/particles.star")

# Values that are not the default ones.
GIVEN: dict[str, Any] = {
    "particles": STAR,
    "statistics": Path("/data/stats"),
    "datadir": Path("/data/images"),
    "mask": Path("/data/mask.mrc"),
    "focus": Path("/data/focus.mrc"),
    "device": "cuda:1",
    "halves": False,
    "seed": 7,
    "group_by": "rlnGroupName",
    "held_out": 0.1,
    "symmetry": "D2",
    "weights": "rlnWeight",
    "crop": 64,
    "box": 32,
    "normalise": True,
    "background": 80.0,
    "representation": choose("representation", "voxel", {"floor": "none"}),
    "deformation": choose("deformation", "rigid", {"angle": 2.0, "from": "image"}),
    "forward": choose("forward", "ray", {"samples": 8}),
    "likelihood": choose("likelihood", "coloured"),
    "objective": choose("objective", "images", {"batch": 3}),
    "workflow": choose("workflow", "motion", {"nodes": 4}),
    "stages": (Stage(steps=10, deformation=0.0), Stage()),
}
NAMES = [field.name for field in dataclasses.fields(Settings)]


def another_value(spec: OptionSpec) -> Any:
    """An allowed value that is not the default one; None where there is no other."""
    if spec.field in GIVEN:
        return GIVEN[spec.field]
    if get_origin(spec.type) is Literal:
        return next((word for word in get_args(spec.type) if word != spec.default), None)
    if isinstance(spec.default, bool):
        return not spec.default
    ends = (spec.low, spec.high, 1)
    return next(end for end in ends if end is not None and end != spec.default)


_PLAIN = {spec.field: another_value(spec) for spec in plain_settings()}
OTHER = {name: value for name, value in {**GIVEN, **_PLAIN}.items() if value is not None}


def test_every_field_has_another_value_to_be_tried():
    assert set(NAMES) == set(OTHER)


# Records


@pytest.mark.parametrize("name", OTHER)
def test_every_field_comes_back_from_the_record(name, tmp_path):
    """By way of a file, as a run does."""
    given = Settings(**{"particles": STAR, name: OTHER[name]})
    assert getattr(given, name) == OTHER[name]
    assert given != Settings(STAR) or name == "particles"
    write_toml(tmp_path / "run.toml", given.record())
    record = tomllib.loads((tmp_path / "run.toml").read_text())
    check_record(record, "run.toml")
    assert Settings.from_record(record) == given


def test_all_fields_at_once_come_back():
    given = Settings(**OTHER)
    assert Settings.from_record(given.record()) == given


def test_unset_values_are_left_out_of_the_record():
    record = Settings(STAR).record()
    plain = {spec.field: spec.default for spec in plain_settings()}
    usual = {name for name, value in plain.items() if value is not None}
    assert set(record) == {"instamap", "particles", *usual, *PART_KINDS}
    assert not {"mask", "statistics", "box"} & set(record)
    assert "particles" not in Settings(statistics=Path("stats")).record()


def test_paths_are_recorded_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = Settings(Path("a.star"), mask=Path("b.mrc")).record()
    assert (record["particles"], record["mask"]) == (f"{tmp_path}/a.star", f"{tmp_path}/b.mrc")


@pytest.mark.parametrize("name", OTHER)
def test_the_record_of_statistics_has_what_decides_them(name):
    """Another value shows there if and only if the images' statistics depend on it."""
    given = Settings(**{"particles": STAR, name: OTHER[name]}).data_record()
    plain = Settings(Path("/other.star")).data_record()
    differs = given.get(name) != plain.get(name)
    assert differs == (facts_of(name).role != "fit")


def test_settings_of_statistics_come_back_without_those_of_the_fit():
    given = Settings(**OTHER)
    found = Settings.from_record(given.data_record())
    for name in NAMES:
        expected = given if facts_of(name).role != "fit" else Settings(STAR)
        if name != "forward":
            assert getattr(found, name) == getattr(expected, name), name


# Roles and commands


def test_every_field_says_what_it_decides():
    for name in NAMES:
        facts = facts_of(name)
        assert facts.role in get_args(Role)
        assert Settings.__dataclass_fields__[name].metadata["help"].endswith((".", "`."))
        assert set(facts.commands) <= {*EVERY_COMMAND, PREPROCESS, DOCTOR}


def test_what_only_a_fit_decides_is_no_setting_of_accumulate():
    for field in fields_of_command("accumulate"):
        assert facts_of(field.name).role != "fit" or field.name == "device"


def test_places_are_where_the_data_are():
    places = {name for name in NAMES if facts_of(name).role == "place"}
    assert places == {"particles", "datadir"}


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_every_setting_of_a_command_has_a_flag(command):
    said = instamap(command, "--help").out
    for field in fields_of_command(command):
        facts = facts_of(field.name)
        flag = facts.flag or "--" + field.name.replace("_", "-")
        own = field.name in ("particles", "statistics")  # arguments
        assert own or all(word in said for word in flag.split("/")), flag
        assert not facts.options_flag or f"{facts.options_flag} " in said


def test_a_new_setting_is_one_new_field(monkeypatch):
    """It is recorded, checked and in the signature without another line."""
    added = schema.setting(3, "Made up.", commands=EVERY_COMMAND, role="data", low=1, high=5)
    fields = [("novel", int, added)]
    larger = dataclasses.make_dataclass("Settings", fields, bases=(Settings,), frozen=True)
    monkeypatch.setattr(schema, "Settings", larger)
    record = larger(STAR, novel=4).record()
    assert record["novel"] == 4
    assert larger.from_record(record).novel == 4
    assert larger(STAR, novel=4).data_record()["novel"] == 4
    check_record(record, "run.toml")
    assert "novel" in [field.name for field in fields_of_command("fit")]
    with pytest.raises(OptionError, match="novel is 6; it must be a whole number from 1 to 5"):
        larger(STAR, novel=6)


# Values


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("held_out", 0.0, "held_out is 0.0; it must be a number from 0.001 to 0.9"),
        ("held_out", 1, "held_out is 1.0; it must be a number from 0.001 to 0.9"),
        ("held_out", "b", "held_out is 'b'; it must be a number from 0.001 to 0.9"),
        ("held_out", float("nan"), "held_out is nan; it must be a number from 0.001 to 0.9"),
        ("seed", -1, "seed is -1; it must be a whole number from 0 to 2147483647"),
        ("seed", True, "seed is True; it must be a whole number"),
        ("seed", 1.5, "seed is 1.5; it must be a whole number"),
        ("halves", "yes", "halves is 'yes'; it must be true or false"),
        ("particles", 3, "particles is 3; it must be a path"),
        ("box", "32", "box is '32'; it must be a whole number or none"),
        ("device", "tpu", "device is 'tpu'; it must be one of"),
        ("symmetry", "Q", "symmetry 'Q' is unknown"),
    ],
)
def test_values_that_are_not_allowed_are_refused_in_a_line(name, value, said):
    with pytest.raises(OptionError) as refused:
        Settings(**{"particles": STAR, name: value})
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)


def test_values_are_converted_where_nothing_is_lost():
    given = Settings("a.star", mask="b.mrc", background=80, symmetry="d2")
    assert (given.particles, given.mask) == (Path("a.star"), Path("b.mrc"))
    assert isinstance(given.background, float)
    assert given.symmetry == "D2"


def test_parts_are_given_by_name_with_options_or_as_choices():
    by_name = Settings(STAR, representation="voxel")
    with_options = Settings(STAR, representation=("voxel", {"floor": "none"}))
    chosen = choose("representation", "voxel", ["floor=none"])
    assert by_name.representation == choose("representation", "voxel")
    assert with_options == Settings(STAR, representation=chosen)
    assert isinstance(by_name.representation, Choice)


@pytest.mark.parametrize("kind", ["objective", "workflow"])
def test_auto_is_the_same_as_nothing(kind):
    assert Settings(STAR, **{kind: "auto"}) == Settings(STAR)
    assert getattr(Settings(STAR), kind) is None


@pytest.mark.parametrize("kind", CHOICE_KINDS)
def test_unknown_names_and_options_are_refused(kind):
    with pytest.raises(PartError, match=f"{kind} 'nonsense' is unknown; choose "):
        Settings(STAR, **{kind: "nonsense"})
    name = {"objective": "normal", "workflow": "map"}.get(kind) or Settings(STAR).parts[kind].name
    with pytest.raises(OptionError, match="option 'novel' of .* is unknown"):
        Settings(STAR, **{kind: (name, {"novel": 1})})


def test_the_forward_operator_goes_with_the_deformation():
    assert Settings(STAR).forward.name == "slice"
    assert Settings(STAR, deformation="bending-field").forward.name == "ray"
    assert Settings(STAR, deformation="bending-field", forward="slice").forward.name == "slice"


def test_what_is_special_is_told():
    assert Settings(STAR).special() == {}
    assert Settings(STAR, symmetry="c3", seed=4, box=32).special() == {"symmetry": "C3", "box": 32}


def test_input_files_are_all_that_is_read():
    given = Settings(STAR, mask=Path("mask.mrc"), datadir=Path("images"))
    assert set(given.input_files()) == {STAR, Path("mask.mrc"), Path("images")}


def test_the_point_group_is_that_of_the_symmetry():
    assert Settings(STAR).point_group is None
    group = Settings(STAR, symmetry="C4").point_group
    assert group is not None
    assert group.shape == (4, 3, 3)
    assert torch.allclose(torch.linalg.det(group.double()), torch.ones(4).double())


# run.toml


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"colour": 1}, "'colour' in 'a.toml' is unknown; choose particles, "),
        ({"seed": "one"}, "'seed' in 'a.toml' is 'one'; it must be a whole number"),
        ({"seed": True}, "'seed' in 'a.toml' is True; it must be a whole number"),
        ({"seed": [1]}, r"'seed' in 'a.toml' is \[1\]; it must be a whole number"),
        ({"particles": {"x": 1}}, "'particles' in 'a.toml' is .*; it must be a path"),
        ({"halves": 1}, "'halves' in 'a.toml' is 1; it must be true or false"),
        ({"held_out": 1.5}, "'held_out' in 'a.toml' is 1.5; it must be a number from 0.001 to"),
        ({"objective": "normal"}, "'objective' in 'a.toml' is 'normal'; it must be a table"),
        ({"workflow": {}}, "table 'workflow' in 'a.toml' has no name of a part"),
        ({"likelihood": {"name": 3}}, "table 'likelihood' in 'a.toml' has no name of a part"),
        ({"stage": {"steps": 3}}, r"'stage' in 'a.toml' is .*; it must be tables, each headed"),
        ({"stage": [3]}, r"'stage' in 'a.toml' is \[3\]; it must be tables"),
    ],
)
def test_types_of_a_run_toml_are_checked(record, said):
    with pytest.raises(OptionError, match=said):
        check_record(record, "a.toml")


def test_a_record_of_a_run_is_accepted():
    """Also with what a run adds: its version and its files."""
    check_record({**Settings(**OTHER).record(), "files": ["map.mrc"]}, "run.toml")


def test_plain_settings_are_in_order_and_have_units():
    specs = plain_settings()
    assert [spec.field for spec in specs] == [name for name in NAMES if facts_of(name).kind is None]
    units = {spec.field: spec.unit for spec in specs if spec.unit}
    assert units.items() >= {"crop": "pixels", "box": "pixels", "background": "Å"}.items()
