"""A choice: one part by name with its options, what is chosen where nothing is said, and records of
choices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from instamap.errors import PartError
from instamap.plugin.options import from_dict, parse, to_dict
from instamap.plugin.registry import Registry, default

DEFAULTS = {
    "representation": "hash-grid",
    "deformation": "identity",
    "forward": "slice",
    "likelihood": "gaussian",
}
PART_KINDS = tuple(DEFAULTS)
"""The kinds of which a model has one each, in the order in which its parts are made."""


@dataclass(frozen=True)
class Choice:
    """One part, by name, with its options."""

    name: str
    options: Any


Choices = Mapping[str, Choice]


def choose(
    kind: str,
    name: str,
    values: Sequence[str] | Mapping[str, Any] = (),
    registry: Registry | None = None,
) -> Choice:
    """A part with options from ["key=value"] or a mapping. Raises PartError or OptionError."""
    options_class = load_class(kind, name, registry).Options
    if isinstance(values, Mapping):
        return Choice(name, from_dict(options_class, dict(values)))
    return Choice(name, parse(options_class, list(values)))


def load_class(kind: str, name: str, registry: Registry | None = None) -> Any:
    """The class behind a name. Raises PartError where there is none."""
    return (registry or default()).get(kind, name).load()


def to_record(choices: Choices) -> dict[str, dict[str, Any]]:
    """The choices as run.toml keeps them: a table each, with the name and all options."""
    return {kind: {"name": one.name, **to_dict(one.options)} for kind, one in choices.items()}


def from_record(kind: str, table: Mapping[str, Any]) -> Choice:
    """The choice that a table of run.toml keeps. Raises PartError or OptionError."""
    if "name" not in table:
        raise PartError(f"table '{kind}' has no name of a part; write name = \"...\" into it")
    options = {key: value for key, value in table.items() if key != "name"}
    return choose(kind, table["name"], options)
