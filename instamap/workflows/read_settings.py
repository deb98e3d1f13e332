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
from instamap.workflows.settings import CHOICE_KINDS, Settings, plain_settings


@dataclass(frozen=True)
class Given:
    """What a person typed.

    plain: values of settings, None where nothing was typed. names: of parts by kind. options: of
    each part, "key=value". stages: each "key=value key=value".
    """

    plain: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str | None] = field(default_factory=dict)
    options: Mapping[str, Sequence[str]] = field(default_factory=dict)
    stages: Sequence[str] = ()

    def check_names(self) -> None:
        """Raises PartError for a name that no part has; torch is not needed for that."""
        for kind, name in self.names.items():
            if name is not None and name != AUTO:
                default().get(kind, name)


def read_settings(record: Mapping[str, Any], given: Given) -> Settings:
    """Settings as an earlier run's, if any, over which what was typed wins; resolved.

    Raises InstamapError.
    """
    given.check_names()
    from instamap.model import usual_forward  # here, since it needs torch

    known = [spec.field for spec in plain_settings()]
    typed = {name: value for name, value in given.plain.items() if value is not None}
    plain = {**{name: record[name] for name in known if name in record}, **typed}
    if "particles" not in plain and "statistics" not in plain:
        raise DataError(
            "no particles: give a STAR file, or --config with the run.toml of an earlier run"
        )
    parts: dict[str, Any] = {}
    for kind in PART_KINDS:  # the deformation comes before the forward operator that goes with it
        usual = DEFAULTS[kind]
        if kind == "forward":
            usual = usual_forward(parts["deformation"].name)
        parts[kind] = _choice(kind, usual, record, given)
    settings = Settings(**plain, **parts, stages=_stages(record, given))
    return _resolved(settings, record, given)


def _resolved(settings: Settings, record: Mapping[str, Any], given: Given) -> Settings:
    """The settings with workflow and objective, as named or as goes with the parts."""
    for kind in ("workflow", "objective"):
        name = given.names.get(kind) or record.get(kind, {}).get("name", AUTO)
        if name != AUTO:
            chosen: dict[str, Any] = {kind: _choice(kind, name, record, given)}
            settings = replace(settings, **chosen)
    options = {kind: given.options.get(kind) or () for kind in CHOICE_KINDS}
    return resolve(settings, options["workflow"], options["objective"])


def _choice(kind: str, usual: str, record: Mapping[str, Any], given: Given) -> Choice:
    """The part that was typed, else the earlier run's, else the usual one.

    The earlier run's options are the defaults of the same part.
    """
    table = dict(record.get(kind, {}))
    earlier = table.pop("name", None)
    name = given.names.get(kind) or earlier or usual
    items = list(given.options.get(kind) or ())
    if name != earlier or not table:
        return choose(kind, name, items)
    options_class = load_class(kind, name).Options
    typed = to_dict(parse(options_class, items))
    keys = {item.partition("=")[0] for item in items}
    return choose(kind, name, {**table, **{key: typed[key] for key in keys}})


def _stages(record: Mapping[str, Any], given: Given) -> tuple[Stage, ...] | None:
    """The stages that were typed, else the earlier run's; None where there are none."""
    if given.stages:
        return tuple(parse(Stage, text.split()) for text in given.stages)
    tables = record.get("stage", [])
    return tuple(from_dict(Stage, table) for table in tables) or None
