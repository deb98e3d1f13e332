"""The reference, made from the program itself: settings, options of parts, commands and Python.

What stands on these pages is what `instamap describe` and `--help` print, and what docstrings say.
Plugins that happen to be installed play no part.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from prose import escaped, paragraphs, signature, table

import instamap
from instamap.cli import application, describe
from instamap.cli.flags import NOT_FLAGS
from instamap.fitting.stage import Stage
from instamap.plugin import hooks
from instamap.plugin.component import KINDS, Component
from instamap.plugin.options import OptionSpec
from instamap.plugin.options import describe as specs_of
from instamap.plugin.registry import installed
from instamap.workflows.choose import RULE
from instamap.workflows.settings import SETTING, SettingFacts, Settings, plain_settings

FOLDER = "reference"

DEFAULT = re.compile(r"\s*\[default: (.*?)\]", re.DOTALL)

# The page of each kind of part: its file's name, and its title.
PART_PAGES = {
    "representation": ("representations", "Representations"),
    "deformation": ("deformations", "Deformations"),
    "forward": ("forward-operators", "Forward operators"),
    "likelihood": ("likelihoods", "Likelihoods"),
    "objective": ("objectives", "Objectives"),
    "workflow": ("workflows", "Workflows"),
    "format": ("formats", "File formats"),
}

# Headings of what is importable from `instamap`, by the module that has it.
HEADINGS = {
    "instamap.workflows.api": "Functions",
    "instamap.workflows.result": "Results",
    "instamap.workflows.settings": "Settings",
    "instamap.workflows.workflow": "Workflows",
    "instamap.data.particles": "Particles",
    "instamap.data.particle_table": "Tables of particles",
    "instamap.data.formats.base": "File formats",
    "instamap.errors": "Errors",
    "instamap.fitting.objective": "Objectives",
    "instamap.parts": "Parts and their capabilities",
    "instamap.plugin.choice": "Choosing parts",
    "instamap.plugin.component": "Announcing parts",
    "instamap.plugin.options": "Options",
    "instamap.plugin.registry": "Parts of a script",
    "instamap.progress": "Progress",
    "instamap.scene": "The scene",
}


def pages() -> dict[str, str]:
    """Every page of the reference, by its place below docs/."""
    made = {
        f"{FOLDER}/settings.md": settings_page(),
        f"{FOLDER}/stages.md": stages_page(),
        f"{FOLDER}/command-line.md": commands_page(),
        f"{FOLDER}/api.md": api_page(),
    }
    for kind in KINDS:
        made[f"{FOLDER}/{PART_PAGES[kind][0]}.md"] = part_page(kind)
    return made


def _joined(blocks: list[str]) -> str:
    return "\n\n".join(blocks) + "\n"


# Settings


def settings_page() -> str:
    """Everything that a person can decide of a run, by the order of `Settings`."""
    specs = {spec.field: spec for spec in plain_settings()}
    plain = [["Setting", "Allowed", "Default", "What it is", "Commands"]]
    chosen = [["Setting", "Its options", "Default", "What it is", "Commands"]]
    for name, field in Settings.__dataclass_fields__.items():
        facts = field.metadata[SETTING]
        if name in specs:
            plain.append(_plain_row(specs[name], facts))
        else:
            chosen.append(_chosen_row(name, field.metadata["help"], facts))
    return _joined(
        [
            "# Settings",
            "All that a run depends on. A setting is a flag of commands, an argument of the Python"
            " functions of the same names, a line of `run.toml`, and a parameter of RELION's"
            " External job.",
            "## Plain values",
            table(plain),
            "## Parts",
            "In Python a part is given as its name or as `(name, {option: value})`.",
            table(chosen),
        ]
    )


def _plain_row(spec: OptionSpec, facts: SettingFacts) -> list[str]:
    is_flag = spec.field not in NOT_FLAGS
    usual = f"--{spec.field.replace('_', '-')}"
    unit = f", in {spec.unit}" if spec.unit else ""
    return [
        _named(spec.field, facts.flag or usual if is_flag else ""),
        escaped(spec.allowed) + unit,
        escaped(facts.default_words) if is_flag else "",
        escaped(spec.help),
        _commands(facts),
    ]


def _named(name: str, flag: str) -> str:
    """A setting's name in Python and files, and below it the flag that sets it, if any does."""
    both = flag.replace("/", "`<br>`")
    return f"`{name}`<br>`{both}`" if flag else f"`{name}`"


def _chosen_row(name: str, help_text: str, facts: SettingFacts) -> list[str]:
    options = f"`{facts.options_flag}`" if facts.options_flag else ""
    default = escaped(facts.default_words)
    return [
        _named(name, facts.flag),
        options,
        default,
        escaped(help_text),
        _commands(facts),
    ]


def _commands(facts: SettingFacts) -> str:
    return ", ".join(facts.commands) or "of Python alone"


def stages_page() -> str:
    """Stages of a fit, and what can be done to images before it."""
    return _joined(
        [
            "# Stages and preprocessing",
            "## Stages",
            "What learns in one stage of a fit, and how fast: `--stage` with any number of"
            " `OPTION=VALUE`, once for each stage; in `run.toml` a table `[[stage]]` each.",
            _option_table(specs_of(Stage)),
            "## Preprocessing",
            "What is done to each image when it is read, in this order; the file's origins stay"
            " true.",
            _table_of_code(describe.preprocess_table()),
        ]
    )


# Parts


def part_page(kind: str) -> str:
    """Every part of a kind that comes with instamap, with its options."""
    title = PART_PAGES[kind][1]
    blocks = [f"# {title}", f"What `instamap describe {kind} NAME` prints, for each of them."]
    if kind == "workflow":
        blocks += [_rule_for_auto()]
    registry = installed(points=[])
    for part in registry.parts(kind):
        blocks += _about_part(part)
    return _joined(blocks)


def _rule_for_auto() -> str:
    rows = [["Workflow", "Taken where"]]
    rows += [[f"`{name}`", escaped(where)] for name, where in RULE]
    return f"What is not chosen is decided by one rule:\n\n{table(rows)}"


def _about_part(part: Component) -> list[str]:
    made = part.load()
    specs = specs_of(made.Options)
    use = describe.usage(part.kind, part.name, bool(specs))
    chosen = f"`{use}`" if use.startswith("-") else use
    blocks = [
        f"## {part.name}",
        f"*{escaped(part.summary)}*",
        paragraphs(made),
        f"Use: {chosen}. Class: `{part.target}`.",
    ]
    if part.cite:
        blocks.append(f"Cite: {escaped(part.cite)}")
    if specs:
        blocks.append(_option_table(specs))
    return blocks


def _option_table(specs: list[OptionSpec]) -> str:
    return _table_of_code(describe.option_table(specs))


def _table_of_code(rows: list[list[str]]) -> str:
    """A table whose heading is in capitals and whose first column is what one types."""
    heading = [cell.capitalize() for cell in rows[0]]
    others = [[f"`{row[0]}`", *map(escaped, row[1:])] for row in rows[1:]]
    return table([heading, *others])


# The command line


def commands_page() -> str:
    """Every command with its arguments and options."""
    group = application(installed(points=[]))
    blocks = [
        "# The command line",
        "What `instamap COMMAND --help` prints. A mistake ends in one line that names it and what"
        " to do, with exit status 2.",
    ]
    rows = [["Command", "What it does"]]
    for name, command in group.commands.items():
        rows.append([f"[`{name}`](#{name})", escaped(command.get_short_help_str(200))])
    blocks.append(table(rows))
    for name, command in group.commands.items():
        blocks += _about_command(name, command)
    return _joined(blocks)


def _about_command(name: str, command: Any) -> list[str]:
    context = command.make_context(name, [], resilient_parsing=True)
    usage = command.collect_usage_pieces(context)
    blocks = [
        f"## {name}",
        f"```text\ninstamap {name} {' '.join(usage)}\n```",
        _help_of(command),
    ]
    for heading, records in _panels(command, context).items():
        rows = [["Typed", "What it is", "Default"]]
        rows += [_typed(*record) for record in records]
        blocks += [f"**{escaped(heading)}**", table(rows)]
    return blocks


def _typed(words: str, help_text: str) -> list[str]:
    """A row for an argument or an option, its default in a column of its own."""
    default = DEFAULT.search(help_text)
    without = DEFAULT.sub("", help_text)
    return [f"`{words}`", escaped(without), escaped(default[1]) if default else ""]


def _help_of(command: Any) -> str:
    lines = inspect.cleandoc(command.help or "").splitlines()
    return "\n".join(escaped(line) for line in lines)


def _panels(command: Any, context: Any) -> dict[str, list[tuple[str, str]]]:
    """Arguments and options under the headings that `--help` has, without `--help` itself."""
    found: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is None:
            continue
        usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
        heading = parameter.rich_help_panel or usual
        found.setdefault(heading, []).append(record)
    return found


# Python


def api_page() -> str:
    """What is importable from `instamap`, by the module that has it."""
    blocks = [
        "# The Python API",
        "All of this is importable from `instamap` itself, which imports torch only when something"
        " needs it. [How to use it](../python.md) has examples that run.",
    ]
    for home, names in _by_home().items():
        blocks.append(f"## {HEADINGS.get(home, home)}")
        for name in names:
            blocks += _about_name(name)
    blocks += [
        "## Hooks of plugins",
        "A plugin marks a function of one of these names by `@instamap.hookimpl`.",
        paragraphs(hooks),
    ]
    for name, hook in _functions(hooks):
        blocks += [f"### {name}", _python(signature(name, hook)), paragraphs(hook)]
    return _joined(blocks)


def _by_home() -> dict[str, list[str]]:
    """Public names by the module of instamap in which they are defined."""
    found: dict[str, list[str]] = {}
    for name in instamap.__all__:
        value = getattr(instamap, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            found.setdefault(value.__module__, []).append(name)
    return found


def _functions(module: ModuleType) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name, value in vars(module).items():
        if inspect.isfunction(value) and value.__module__ == module.__name__:
            yield name, value


def _about_name(name: str) -> list[str]:
    value = getattr(instamap, name)
    blocks = [f"### {name}", _python(_call(name, value)), paragraphs(value)]
    if inspect.isclass(value):
        blocks += [_about_member(*member) for member in _members(value)]
    return blocks


def _call(name: str, value: Any) -> str:
    """How it is called; an error is raised by instamap and not made by a caller."""
    if inspect.isclass(value) and issubclass(value, Exception):
        [parent] = value.__bases__
        return f"class {name}({parent.__name__})"
    return signature(name, value)


def _members(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that a class itself documents."""
    for name, value in vars(cls).items():
        bare = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        callable_or_property = inspect.isfunction(bare) or isinstance(bare, property)
        if not name.startswith("_") and callable_or_property and inspect.getdoc(bare):
            yield name, bare


def _about_member(name: str, member: Any) -> str:
    """A list item: the call, and what it does."""
    call = name if isinstance(member, property) else signature(name, member)
    on_one_line = " ".join(call.split())
    what = paragraphs(member).replace("\n", "\n    ")
    return f"-   `{on_one_line}`\n\n    {what}"


def _python(text: str) -> str:
    return f"```python\n{text}\n```"


if __name__ == "__main__":
    for place, page in pages().items():
        sys.stdout.write(f"<!-- {place} -->\n\n{page}\n")
