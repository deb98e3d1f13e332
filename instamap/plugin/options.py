"""Options of a part: a frozen dataclass from which come parsing, validation, `instamap describe`
and run.toml.
"""

import dataclasses
import difflib
import math
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from instamap.errors import OptionError


def option(
    default,
    help: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    name: str | None = None,
):
    """A field of an Options class: its default, what it means, its unit and its inclusive range.

    name: as people write it, where that is not the field's (such as a word that Python keeps for
    itself).
    """
    return dataclasses.field(
        default=default,
        metadata={"help": help, "unit": unit, "low": low, "high": high, "name": name},
    )


@dataclass(frozen=True)
class Options:
    """Base of every part's options. Values are checked when made; raises OptionError: option,
    value, what is allowed.
    """

    def __post_init__(self):
        for spec in describe(type(self)):
            object.__setattr__(self, spec.field, spec.check(getattr(self, spec.field)))


@dataclass(frozen=True)
class RepresentationOptions(Options):
    """What every representation offers: the lower bound (applied where parts are composed), its
    step size, regularisers of the density.

    Regularisers are weights: what they weigh, times them, is added to the loss in nats per image
    (see `fitting.priors`).
    """

    floor: Literal["learned", "none"] = option(
        "learned",
        "bound the density below by a learned solvent level (softplus minus an offset), or not"
        " at all",
    )
    learning_rate: float = option(1e-2, "step size of Adam for this part", low=0.0)
    total_variation: float = option(
        0.0, "weight of the density's mean change over a voxel, in units of its scale", low=0.0
    )
    positivity: float = option(
        0.0, "weight of the density's mean amount below zero, in units of its scale", low=0.0
    )


@dataclass(frozen=True)
class DeformationOptions(Options):
    """What every deformation offers: its step size and regularisers of the displacement u (weights,
    as the representation's).
    """

    learning_rate: float = option(1e-2, "step size of Adam for this part", low=0.0)
    magnitude: float = option(0.0, "weight of the mean |u|²", unit="1/Å²", low=0.0)
    total_variation: float = option(0.0, "weight of the mean norm of u's gradient", low=0.0)
    strain: float = option(
        0.0, "weight of the mean squared strain, which is zero for rigid motions", low=0.0
    )


WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
}


@dataclass(frozen=True)
class OptionSpec:
    """One option as shown by `instamap describe`: name, type, default, help, unit, range. field:
    its name in the dataclass.
    """

    owner: str
    name: str
    field: str
    type: Any
    default: Any
    help: str
    unit: str = ""
    low: float | None = None
    high: float | None = None

    @property
    def allowed(self) -> str:
        """What may be written, in words."""
        kinds, optional = _members(self.type)
        if get_origin(kinds[0]) is Literal:
            words = "one of " + ", ".join(str(v) for v in get_args(kinds[0]))
        else:
            words = WORDS[kinds[0]]
        if self.low is not None and self.high is not None:
            words += f" from {self.low:g} to {self.high:g}"
        elif self.low is not None:
            words += f" of at least {self.low:g}"
        elif self.high is not None:
            words += f" of at most {self.high:g}"
        return words + (" or none" if optional else "")

    def _refuse(self, value: Any) -> NoReturn:
        what = f"option '{self.name}' of {self.owner}" if self.owner else self.name
        raise OptionError(f"{what} is {value!r}; it must be {self.allowed}")

    def parse(self, text: str):
        """The value that `text` (as typed after key=) stands for. Raises OptionError."""
        kinds, optional = _members(self.type)
        if optional and text.lower() == "none":
            return None
        kind = kinds[0]
        if get_origin(kind) is Literal:
            value = next((v for v in get_args(kind) if str(v) == text), None)
            return self._refuse(text) if value is None else value
        if kind is bool:
            words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
            return words[text.lower()] if text.lower() in words else self._refuse(text)
        try:
            return kind(text)
        except ValueError:
            self._refuse(text)

    def check(self, value):
        """The value, converted where nothing is lost (1 to 1.0). Raises OptionError if its type or
        range is wrong.
        """
        kinds, optional = _members(self.type)
        if optional and (
            value is None or value == "none"
        ):  # TOML has no null: run.toml says "none"
            return None
        kind = kinds[0]
        if get_origin(kind) is Literal:  # 1, 1.0 and True are equal, and yet not the same choice
            return (
                value
                if any(value == v and type(value) is type(v) for v in get_args(kind))
                else self._refuse(value)
            )
        if (
            kind is float and type(value) is int and abs(value) <= 2**53
        ):  # beyond, digits would be lost
            value = float(value)
        if kind is Path and isinstance(value, str):
            value = Path(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self._refuse(value)
        if kind is float and not math.isfinite(value):
            self._refuse(value)
        below = self.low is not None and value < self.low
        above = self.high is not None and value > self.high
        return self._refuse(value) if below or above else value


def _members(kind) -> tuple[list, bool]:
    """A type and whether None is allowed beside it."""
    if get_origin(kind) in (Union, types.UnionType):
        kinds = [k for k in get_args(kind) if k is not type(None)]
        return kinds, len(kinds) < len(get_args(kind))
    return [kind], False


def describe(options_class: type) -> list[OptionSpec]:
    """The options of a class, in the order in which they were written. Raises OptionError for a
    field that is no option.
    """
    hints = get_type_hints(options_class)
    return [
        _spec(_owner(options_class), f, hints[f.name]) for f in dataclasses.fields(options_class)
    ]


def describe_field(made: dataclasses.Field, kind: Any) -> OptionSpec:
    """One field of a class that has other fields too, as an option of its own name."""
    return _spec("", made, kind)


def _owner(options_class: type) -> str:
    """Whose options they are; a part that adds none of its own uses one of the classes of this file
    as it is.
    """
    return (
        "this part"
        if options_class.__module__ == __name__
        else options_class.__qualname__.removesuffix(".Options")
    )


def _spec(owner: str, made: dataclasses.Field, kind) -> OptionSpec:
    kinds, _ = _members(kind)
    readable = len(kinds) == 1 and (kinds[0] in WORDS or get_origin(kinds[0]) is Literal)
    if not readable or "help" not in made.metadata:
        raise OptionError(
            f"option '{made.name}' of {owner} cannot be typed on a command line: write it as `name:"
            " bool, int, float, str, Path or Literal[...] (or None) = option(default, help)`"
        )
    facts = made.metadata
    return OptionSpec(
        owner=owner,
        name=facts["name"] or made.name,
        field=made.name,
        type=kind,
        default=made.default,
        help=facts["help"],
        unit=facts["unit"],
        low=facts["low"],
        high=facts["high"],
    )


def parse(options_class: type, items: list[str]):
    """Options from ["key=value", ...]. Raises OptionError for unknown or repeated keys and for
    values that are not allowed.
    """
    specs = {s.name: s for s in describe(options_class)}
    values = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals:
            raise OptionError(f"option '{item}' has no value; write key=value")
        _known(options_class, specs, key)
        if specs[key].field in values:
            raise OptionError(
                f"option '{key}' is given twice ({values[specs[key].field]} and {text}); give it"
                " once"
            )
        values[specs[key].field] = specs[key].parse(text)
    return options_class(**values)


def from_dict(options_class: type, values: dict):
    """Options from a mapping, as read from run.toml (where a missing key means its default and
    "none" means None).
    """
    specs = {s.name: s for s in describe(options_class)}
    for key in values:
        _known(options_class, specs, key)
    return options_class(**{specs[key].field: value for key, value in values.items()})


def to_dict(options: Options) -> dict:
    """The values by the names that people write, as run.toml keeps them (None as "none")."""
    values = {spec.name: getattr(options, spec.field) for spec in describe(type(options))}
    return {name: "none" if value is None else value for name, value in values.items()}


def _known(options_class: type, specs: dict, key: str) -> None:
    if key not in specs:
        close = difflib.get_close_matches(key, specs, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        choice = f"choose {', '.join(specs)}{hint}" if specs else "it has none"
        raise OptionError(f"option '{key}' of {_owner(options_class)} is unknown; {choice}")
