"""Options: what is typed, what run.toml holds and what a programmer writes come to the same checked
values, or to a helpful refusal.
"""

import dataclasses
import math
import tomllib
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instamap.errors import OptionError
from instamap.plugin.options import Options, describe, from_dict, option, parse, to_dict


class Part:
    """A part with an option of every type."""

    @dataclass(frozen=True)
    class Options(Options):
        levels: int = option(6, "lattices", low=1, high=32)
        finest: int | None = option(None, "cells", low=1)
        rate: float = option(1e-2, "step size", unit="Å", low=0.0)
        sigma: float | None = option(None, "width", high=10.0)
        shape: Literal["linear", "smooth"] = option("linear", "curve")
        order: Literal[1, 2] = option(1, "order")
        mode: Literal["a", "b"] | None = option(None, "mode")
        quiet: bool = option(False, "say less")
        label: str = option("x", "text")


Made = Part.Options
finite = st.floats(allow_nan=False, allow_infinity=False)
values = st.fixed_dictionaries(
    {},
    optional={
        "levels": st.integers(1, 32),
        "finest": st.none() | st.integers(1),
        "rate": finite.filter(lambda v: v >= 0),
        "sigma": st.none() | finite.filter(lambda v: v <= 10),
        "shape": st.sampled_from(["linear", "smooth"]),
        "order": st.sampled_from([1, 2]),
        "mode": st.sampled_from([None, "a", "b"]),
        "quiet": st.booleans(),
        "label": st.text(),
    },
)


@given(values)
def test_typed_and_written_values_are_the_same(chosen):
    made = Made(**chosen)
    assert parse(Made, [f"{key}={value}" for key, value in chosen.items()]) == made
    assert from_dict(Made, chosen) == made
    assert from_dict(Made, to_dict(made)) == made
    assert None not in to_dict(made).values(), "TOML has no null"
    assert all(getattr(made, key) == value for key, value in chosen.items())


def test_nothing_given_means_the_defaults():
    assert parse(Made, []) == from_dict(Made, {}) == Made()


def test_values_from_toml():
    made = from_dict(Made, tomllib.loads('finest = "none"\nrate = 1\nquiet = true\nsigma = 2'))
    assert (made.finest, made.rate, made.quiet, made.sigma) == (None, 1.0, True, 2.0)
    assert isinstance(made.rate, float) and isinstance(made.sigma, float)


@pytest.mark.parametrize("text", ["none", "None", "NONE"])
def test_none_can_be_typed_where_it_is_allowed(text):
    assert parse(Made, [f"finest={text}", f"mode={text}"]) == Made()
    assert parse(Made, [f"label={text}"]).label == text, "not allowed there, so it is text"
    with pytest.raises(OptionError, match="'levels'"):
        parse(Made, [f"levels={text}"])


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("YES", True), ("1", True), ("False", False), ("no", False), ("0", False)],
)
def test_truth_in_words(text, value):
    assert parse(Made, [f"quiet={text}"]).quiet is value


def test_text_may_hold_an_equals_sign():
    assert parse(Made, ["label=a=b"]).label == "a=b"


REFUSED = {
    "levels=0": "option 'levels' of Part is 0; it must be a whole number from 1 to 32",
    "levels=33": "'levels' of Part is 33; it must be a whole number from 1 to 32",
    "levels=2.5": "'levels' of Part is '2.5'; it must be a whole number",
    "levels=": "'levels' of Part is ''",
    "finest=0": "'finest' of Part is 0; it must be a whole number of at least 1 or none",
    "rate=-1": "'rate' of Part is -1.0; it must be a number of at least 0",
    "rate=nan": "'rate' of Part is nan",
    "rate=inf": "'rate' of Part is inf",
    "rate=fast": "'rate' of Part is 'fast'",
    "sigma=11": "'sigma' of Part is 11.0; it must be a number of at most 10 or none",
    "shape=cubic": "'shape' of Part is 'cubic'; it must be one of linear, smooth",
    "order=3": "'order' of Part is '3'; it must be one of 1, 2",
    "mode=c": "'mode' of Part is 'c'; it must be one of a, b or none",
    "quiet=maybe": "'quiet' of Part is 'maybe'; it must be true or false",
    "levels": "option 'levels' has no value; write key=value",
    "=3": "option '' of Part is unknown",
    "level=3": (
        "option 'level' of Part is unknown; choose levels, finest, .* \\(did you mean levels\\?\\)"
    ),
    "learning-rate=3": "option 'learning-rate' of Part is unknown",
}


@pytest.mark.parametrize("item", REFUSED)
def test_what_is_typed_wrongly_is_refused_with_its_value_and_what_is_allowed(item):
    with pytest.raises(OptionError, match=REFUSED[item]):
        parse(Made, [item])


WRONG = [
    ("levels", True),
    ("levels", 2.0),
    ("levels", "2"),
    ("levels", None),
    ("levels", 10**400),
    ("levels", [1]),
    ("rate", "1"),
    ("rate", True),
    ("rate", math.nan),
    ("rate", 10**400),
    ("order", True),
    ("order", 1.0),
    ("shape", 1),
    ("shape", ["linear"]),
    ("quiet", 1),
    ("quiet", "true"),
    ("label", 1),
    ("label", None),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_values_of_the_wrong_type_are_refused(key, value):
    for make in (lambda: Made(**{key: value}), lambda: from_dict(Made, {key: value})):
        with pytest.raises(OptionError, match=f"option '{key}' of Part is"):
            make()


def test_a_key_given_twice_is_refused_even_with_the_same_value():
    with pytest.raises(OptionError, match="'levels' is given twice \\(3 and 3\\)"):
        parse(Made, ["levels=3", "rate=1", "levels=3"])


def test_unknown_keys_of_a_mapping_are_refused():
    with pytest.raises(OptionError, match="option 'lable' of Part is unknown.*did you mean label"):
        from_dict(Made, {"lable": "a"})


def test_a_part_without_options_says_so():
    with pytest.raises(OptionError, match="option 'levels' of this part is unknown; it has none"):
        parse(Options, ["levels=3"])


def test_options_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Made().levels = 3


def test_a_default_out_of_range_is_found_when_it_is_used():
    @dataclass(frozen=True)
    class Bad(Options):
        count: int = option(0, "how many", low=1)

    with pytest.raises(OptionError, match="'count' of .*Bad is 0"):
        Bad()


def test_description():
    specs = {s.name: s for s in describe(Made)}
    assert list(specs) == [f.name for f in dataclasses.fields(Made)], (
        "in the order in which they were written"
    )
    rate = specs["rate"]
    assert (rate.owner, rate.default, rate.help, rate.unit, rate.allowed) == (
        "Part",
        1e-2,
        "step size",
        "Å",
        "a number of at least 0",
    )
    assert [specs[name].allowed for name in ("levels", "mode", "quiet", "label")] == [
        "a whole number from 1 to 32",
        "one of a, b or none",
        "true or false",
        "text",
    ]


@dataclass(frozen=True)
class Bare(Options):
    count: int = 3


@dataclass(frozen=True)
class Strange(Options):
    sizes: tuple[int, ...] = option((1,), "sizes")


@dataclass(frozen=True)
class Either(Options):
    size: int | str = option(1, "size")


@pytest.mark.parametrize(("made", "name"), [(Bare, "count"), (Strange, "sizes"), (Either, "size")])
def test_fields_that_cannot_be_typed_are_a_plugin_author_s_mistake(made, name):
    with pytest.raises(
        OptionError, match=f"option '{name}' of {made.__name__} cannot be typed on a command line"
    ):
        describe(made)
