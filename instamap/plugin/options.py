"""Options of a part: a frozen dataclass, from which parsing, checks and descriptions come."""

import dataclasses
import difflib
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from instamap.errors import OptionError

EXACT_INTEGERS = 2**53  # up to here a whole number can become a float without loss
BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def option(
    default: Any,
    help: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    name: str | None = None,
) -> Any:
    """A field of an Options class: its default, what it means, its unit and its inclusive range.

    name: as people write it, where that is not the field's (such as a word that Python keeps for
    itself).
    """
    metadata = {"help": help, "unit": unit, "low": low, "high": high, "name": name}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Options:
    """The base of every part's options.

    Values are checked when made; raises OptionError: option, value, what is allowed.
    """

    def __post_init__(self) -> None:
        for spec in describe(type(self)):
            value = spec.check(getattr(self, spec.field))
            object.__setattr__(self, spec.field, value)


@dataclass(frozen=True)
class RepresentationOptions(Options):
    """What every representation offers: the lower bound (applied where parts are composed), its
    step size, regularisers of the density.

    Regularisers are weights: what they weigh, times them, is added to the loss in nats per image
    (see `fitting.regulariser`).
    """

    floor: Literal["learned", "none"] = option(
        "learned",
        "bound the density below by a learned solvent level (softplus minus an offset), or not"
        " at all",
    )
    learning_rate: float = option(1e-2, "step size of Adam for this part", low=0.0)
    sampled: float = option(
        1.0, "factor of the step size where each step sees a part of the images", low=0.0
    )
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


@dataclass(frozen=True)
class CoordinateOptions(Options):
    """What a deformation offers whose coordinates workflow `motion` finds: how many, and whether
    one closes upon itself.
    """

    latent: Literal["auto", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10] = option(
        "auto",
        "coordinates per particle; auto: what held-out images favour in workflow motion, and 1"
        " elsewhere",
    )
    topology: Literal["auto", "line", "circle"] = option(
        "auto",
        "whether one coordinate has two ends or closes upon itself; auto: what held-out images"
        " favour (a closed one is kept as cosine and sine, so in two columns)",
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
    """One option as shown by `instamap describe`: name, type, default, help, unit, range.

    owner: whose it is, in words; empty where the name says it all. field: its name in the class.
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
        kind, optional = _kind(self.type)
        if get_origin(kind) is Literal:
            words = "one of " + ", ".join(str(value) for value in get_args(kind))
        else:
            words = WORDS[kind]
        if self.low is not None and self.high is not None:
            words += f" from {self.low:.10g} to {self.high:.10g}"
        elif self.low is not None:
            words += f" of at least {self.low:.10g}"
        elif self.high is not None:
            words += f" of at most {self.high:.10g}"
        return words + (" or none" if optional else "")

    def _refuse(self, value: Any) -> NoReturn:
        what = f"option '{self.name}' of {self.owner}" if self.owner else self.name
        raise OptionError(f"{what} is {value!r}; it must be {self.allowed}")

    def parse(self, text: str) -> Any:
        """The value that `text` (as typed after key=) stands for. Raises OptionError."""
        kind, optional = _kind(self.type)
        if optional and text.lower() == "none":
            return None
        if get_origin(kind) is Literal:
            values = {str(value): value for value in get_args(kind)}
            return values[text] if text in values else self._refuse(text)
        if kind is bool:
            word = text.lower()
            return BOOLEANS[word] if word in BOOLEANS else self._refuse(text)
        try:
            return kind(text)
        except ValueError:
            self._refuse(text)

    def check(self, value: Any) -> Any:
        """The value, converted where nothing is lost (1 to 1.0).

        Raises OptionError if its type or range is wrong.
        """
        kind, optional = _kind(self.type)
        # TOML has no null: run.toml says "none"
        if optional and (value is None or value == "none"):
            return None
        if get_origin(kind) is Literal:
            return self._check_literal(value, get_args(kind))
        if kind is float and type(value) is int and abs(value) <= EXACT_INTEGERS:
            value = float(value)
        if kind is Path and isinstance(value, str):
            value = Path(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self._refuse(value)
        if kind in (int, float):
            self._check_range(value)
        return value

    def _check_literal(self, value: Any, allowed: tuple[Any, ...]) -> Any:
        """The value, where it is one of those allowed: 1, 1.0 and True are not the same choice."""
        same = [one for one in allowed if value == one and type(value) is type(one)]
        return value if same else self._refuse(value)

    def _check_range(self, value: float) -> None:
        below = self.low is not None and value < self.low
        above = self.high is not None and value > self.high
        if below or above or not abs(value) <= sys.float_info.max:  # also nan, and long integers
            self._refuse(value)


def _kind(annotation: Any) -> tuple[Any, bool]:
    """A type without None, and whether None is allowed beside it."""
    kinds = _members(annotation)
    others = [kind for kind in kinds if kind is not type(None)]
    return others[0], len(others) < len(kinds)


def _members(annotation: Any) -> list[Any]:
    """The types of a union, or the one type."""
    if get_origin(annotation) in (Union, types.UnionType):
        return list(get_args(annotation))
    return [annotation]


def describe(options_class: type) -> list[OptionSpec]:
    """The options of a class, in the order in which they were written.

    Raises OptionError for a field that is no option.
    """
    hints = get_type_hints(options_class)
    owner = _owner(options_class)
    fields = dataclasses.fields(options_class)
    return [_spec(owner, field, hints[field.name]) for field in fields]


def describe_field(made: "dataclasses.Field[Any]", kind: Any) -> OptionSpec:
    """One field of a class that has other fields too, as an option of its own name."""
    return _spec("", made, kind)


def _owner(options_class: type) -> str:
    """Whose options they are, in words.

    A part that adds none of its own uses one of the classes of this file as it is.
    """
    if options_class.__module__ == __name__:
        return "this part"
    return options_class.__qualname__.removesuffix(".Options")


def _spec(owner: str, made: "dataclasses.Field[Any]", annotation: Any) -> OptionSpec:
    kinds = [kind for kind in _members(annotation) if kind is not type(None)]
    single = len(kinds) == 1
    readable = single and (kinds[0] in WORDS or get_origin(kinds[0]) is Literal)
    facts = made.metadata
    if not readable or "help" not in facts:
        raise OptionError(
            f"option '{made.name}' of {owner} cannot be typed on a command line: write it as `name:"
            " bool, int, float, str, Path or Literal[...] (or None) = option(default, help)`"
        )
    return OptionSpec(
        owner=owner,
        name=facts["name"] or made.name,
        field=made.name,
        type=annotation,
        default=made.default,
        help=facts["help"],
        unit=facts["unit"],
        low=facts["low"],
        high=facts["high"],
    )


Chosen = TypeVar("Chosen", bound=Options)


def parse(options_class: type[Chosen], items: Sequence[str]) -> Chosen:
    """Options from ["key=value", ...].

    Raises OptionError for unknown or repeated keys and for values that are not allowed.
    """
    specs = {spec.name: spec for spec in describe(options_class)}
    values: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals:
            raise OptionError(f"option '{item}' has no value; write key=value")
        _check_known(options_class, specs, key)
        field = specs[key].field
        if field in values:
            raise OptionError(
                f"option '{key}' is given twice ({values[field]} and {text}); give it once"
            )
        values[field] = specs[key].parse(text)
    return options_class(**values)


def from_dict(options_class: type[Chosen], values: Mapping[str, Any]) -> Chosen:
    """Options from a mapping, as read from run.toml.

    A missing key means its default, "none" means None.
    """
    specs = {spec.name: spec for spec in describe(options_class)}
    for key in values:
        _check_known(options_class, specs, key)
    return options_class(**{specs[key].field: value for key, value in values.items()})


def to_dict(options: Options) -> dict[str, Any]:
    """The values by the names that people write, as run.toml keeps them (None as "none")."""
    specs = describe(type(options))
    values = {spec.name: getattr(options, spec.field) for spec in specs}
    return {name: "none" if value is None else value for name, value in values.items()}


def _check_known(options_class: type, specs: Mapping[str, OptionSpec], key: str) -> None:
    if key in specs:
        return
    owner = _owner(options_class)
    close = difflib.get_close_matches(key, specs, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    choice = f"choose {', '.join(specs)}{hint}" if specs else "it has none"
    raise OptionError(f"option '{key}' of {owner} is unknown; {choice}")
