"""Settings from what an earlier run's record says and what a person typed, which wins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from instamap.errors import DataError
from instamap.fitting.stage import Stage
from instamap.plugin.choice import DEFAULTS, PART_KINDS, Choice, choose, load_class
from instamap.plugin.options import from_dict, parse, to_dict
from instamap.plugin.registry import default
from instamap.workflows.choose import AUTO, resolve
from instamap.workflows.settings import Settings, plain_settings

AUTOMATIC_KINDS = ("workflow", "objective")  # which are chosen by one rule where nobody names one


@dataclass(frozen=True)
class Typed:
    """What a person typed.

    plain: values of settings, None where nothing was typed. names: of parts by kind. options: of
    each part, "key=value". stages: each "key=value key=value".
    """

    plain: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str | None] = field(default_factory=dict)
    options: Mapping[str, Sequence[str]] = field(default_factory=dict)
    stages: Sequence[str] = ()

    def options_of(self, kind: str) -> list[str]:
        """The options of the part of a kind; empty where none were typed."""
        return list(self.options.get(kind) or ())

    def check_names(self) -> None:
        """Raises PartError for a name that no part has; torch is not needed for that."""
        registry = default()
        for kind, name in self.names.items():
            if name is not None and name != AUTO:
                registry.get(kind, name)


def read_settings(record: Mapping[str, Any], typed: Typed) -> Settings:
    """Settings as an earlier run's, if any, over which what was typed wins; resolved.

    Raises InstamapError.
    """
    typed.check_names()
    plain = _plain(record, typed)
    if "particles" not in plain and "statistics" not in plain:
        raise DataError(
            "no particles: give a STAR file, or --config with the run.toml of an earlier run"
        )
    parts = _parts(record, typed)
    stages = _stages(record, typed)
    settings = Settings(**plain, **parts, stages=stages)
    return _resolved(settings, record, typed)


def automatic_kinds(record: Mapping[str, Any], typed: Typed) -> list[str]:
    """The kinds, of workflow and objective, of which nobody has named one."""
    names = {kind: _name(kind, record, typed) for kind in AUTOMATIC_KINDS}
    return [kind for kind, name in names.items() if name in (None, AUTO)]


def _plain(record: Mapping[str, Any], typed: Typed) -> dict[str, Any]:
    """The plain settings that were typed, else the earlier run's."""
    known = [spec.field for spec in plain_settings()]
    values = {name: record[name] for name in known if name in record}
    for name, value in typed.plain.items():
        if value is not None:
            values[name] = value
    return values


def _parts(record: Mapping[str, Any], typed: Typed) -> dict[str, Any]:
    """The parts of the model, by kind."""
    from instamap.model import usual_forward  # here, since it needs torch

    parts: dict[str, Any] = {}
    for kind in PART_KINDS:  # the deformation comes before the forward operator that goes with it
        usual = DEFAULTS[kind]
        if kind == "forward":
            usual = usual_forward(parts["deformation"].name)
        name = _name(kind, record, typed) or usual
        parts[kind] = _choice(kind, name, record, typed)
    return parts


def _resolved(settings: Settings, record: Mapping[str, Any], typed: Typed) -> Settings:
    """The settings with workflow and objective, as named or as goes with the parts."""
    for kind in AUTOMATIC_KINDS:
        name = _name(kind, record, typed) or AUTO
        if name != AUTO:
            chosen: dict[str, Any] = {kind: _choice(kind, name, record, typed)}
            settings = replace(settings, **chosen)
    return resolve(settings, typed.options_of("workflow"), typed.options_of("objective"))


def _name(kind: str, record: Mapping[str, Any], typed: Typed) -> str | None:
    """The name of the part that was typed, else of the earlier run's; None where there is none."""
    earlier = record.get(kind, {})
    return typed.names.get(kind) or earlier.get("name")


def _choice(kind: str, name: str, record: Mapping[str, Any], typed: Typed) -> Choice:
    """The part of this name, with the options that were typed.

    Where it is the earlier run's too, that one's options are the defaults.
    """
    earlier = dict(record.get(kind, {}))
    earlier_name = earlier.pop("name", None)
    items = typed.options_of(kind)
    if name != earlier_name or not earlier:
        return choose(kind, name, items)
    options_class = load_class(kind, name).Options
    values = to_dict(parse(options_class, items))
    keys = {item.partition("=")[0] for item in items}
    changed = {key: values[key] for key in keys}
    return choose(kind, name, {**earlier, **changed})


def _stages(record: Mapping[str, Any], typed: Typed) -> tuple[Stage, ...] | None:
    """The stages that were typed, else the earlier run's; None where there are none."""
    if typed.stages:
        return tuple(parse(Stage, text.split()) for text in typed.stages)
    tables = record.get("stage", [])
    stages = tuple(from_dict(Stage, table) for table in tables)
    return stages or None
