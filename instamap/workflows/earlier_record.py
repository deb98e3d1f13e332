"""Records of version 0.1 in today's words.

[engine] was both what is now [objective] and what is now [workflow].
"""

from dataclasses import dataclass, field
from typing import Any

from instamap.errors import OptionError

OBJECTIVES = ("normal", "images")
WORKFLOWS = {"states": "motion", "poses": "poses"}
OBJECTIVE_OF = {"motion": "conformations", "poses": "normal"}
RENAMED = {"look": "evaluate_every"}
OF_WORKFLOWS = ("coarse", "dimensions", "nodes", "rounds", "newton")


@dataclass
class Translation:
    """Earlier words and today's, of one command line or one file."""

    earlier: list[str] = field(default_factory=list)
    today: list[str] = field(default_factory=list)

    def add(self, earlier: str, today: str) -> None:
        """Notes that something is written in another way now."""
        self.earlier.append(earlier)
        self.today.append(today)


def translated(record: dict[str, Any], where: str) -> tuple[dict[str, Any], Translation]:
    """What a run.toml from the file `where` says in today's words, and what was translated.

    Raises OptionError for what has no meaning any more.
    """
    translation = Translation()
    new = dict(record)
    if "together" in new:
        new["group_by"] = new.pop("together")
        translation.add("together", "group_by")
    if isinstance(new.get("preprocess"), dict):
        steps = new.pop("preprocess")
        new.update(steps)
        translation.add("[preprocess]", " ".join(steps))
    if isinstance(new.get("engine"), dict):
        tables = _tables_of_engine(new.pop("engine"), where)
        new.update(tables)
        translation.add("[engine]", " ".join(f"[{kind}]" for kind in tables) or "nothing (auto)")
    return new, translation


def _tables_of_engine(engine: dict[str, Any], where: str) -> dict[str, dict[str, Any]]:
    """The tables "objective" and "workflow" for a table "engine" of version 0.1.

    Raises OptionError for options of an engine that is not named.
    """
    options = dict(engine)
    name = options.pop("name", "auto")
    if name == "auto" and options:
        raise OptionError(
            f"table [engine] in '{where}' sets {', '.join(options)} but names no engine; write"
            f' name = "..." into it ({", ".join((*OBJECTIVES, *WORKFLOWS))})'
        )
    if name == "auto":
        return {}
    kind, chosen = kind_of_old_name(name)
    tables = {kind: {"name": chosen}}
    if kind == "workflow":
        tables["objective"] = {"name": OBJECTIVE_OF[chosen]}
    for key, value in options.items():
        target, word = kind_of_option(key)
        if target in tables:
            tables[target][word] = value
    return tables


def kind_of_old_name(name: str) -> tuple[str, str]:
    """The kind and the name that an engine of version 0.1 has now. Raises OptionError."""
    if name in WORKFLOWS:
        return "workflow", WORKFLOWS[name]
    if name in OBJECTIVES or name == "auto":
        return "objective", name
    allowed = ", ".join((*OBJECTIVES, *WORKFLOWS))
    raise OptionError(
        f"engine '{name}' is unknown; engines are now objectives and workflows: choose --objective"
        f" or --workflow (version 0.1 had {allowed})"
    )


def kind_of_option(item: str) -> tuple[str, str]:
    """The kind that has an option of an engine now, and how it is written."""
    key, equals, value = item.partition("=")
    word = RENAMED.get(key, key) + equals + value
    return ("workflow" if key in OF_WORKFLOWS else "objective"), word
