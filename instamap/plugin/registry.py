"""All parts by kind and name: the built-in ones and those of installed plugins, loaded without
importing torch.
"""

import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import entry_points
from typing import Any

import pluggy

from instamap.errors import PartError
from instamap.plugin import builtin, hooks
from instamap.plugin.component import KINDS, PROCESS, Component

OWN = "instamap"  # the provider of the built-in parts


@dataclass(frozen=True)
class Broken:
    """A plugin that could not be loaded: its distribution and why."""

    provider: str
    reason: str


class Registry:
    """Parts by (kind, name), the hooks of all plugins, and the plugins that are broken."""

    def __init__(self, plugins: dict[str, object], broken: list[Broken]):
        """plugins: provider -> module with hook implementations. Raises PartError where two define
        the same part.
        """
        self.manager = pluggy.PluginManager("instamap")
        self.manager.add_hookspecs(hooks)
        self.broken = list(broken)
        self._parts: dict[tuple[str, str], Component] = {}
        self._add(OWN, self._register(OWN, builtin))
        for provider, module in plugins.items():
            if provider == OWN:  # or its failure would be taken for one of the built-in parts
                self.broken.append(
                    Broken(provider, "a plugin's distribution cannot have this name")
                )
                continue
            try:
                parts = self._register(provider, module)
            except (Exception, SystemExit) as error:  # a third party's hook may fail in any way
                self.drop(provider, error)
            else:
                self._add(provider, parts)

    @property
    def hook(self) -> Any:
        """Call a hook of every plugin: `registry.hook.instamap_run_started(settings=...)`."""
        return self.manager.hook

    def providers(self) -> list[str]:
        """Who provides hooks: "instamap" and the distributions of the plugins that work."""
        return [name for name, _ in self.manager.list_name_plugin()]

    def call(self, provider: str, hook: str, **arguments: Any) -> list[Any]:
        """Call a hook of one plugin only, so that a failure can be laid at its door. Raises what
        the plugin raises.
        """
        others = [plugin for name, plugin in self.manager.list_name_plugin() if name != provider]
        return self.manager.subset_hook_caller(hook, others)(**arguments)

    def drop(self, provider: str, error: BaseException) -> None:
        """From here on the plugin counts as broken, because of `error`; its parts and hooks are
        gone.
        """
        if self.manager.has_plugin(provider):
            self.manager.unregister(name=provider)
        self._parts = {key: part for key, part in self._parts.items() if part.provider != provider}
        self.broken.append(Broken(provider, _reason(error)))

    def _register(self, provider: str, module: object) -> list[Component]:
        """The parts that a plugin announces, once its hooks are known to exist. Raises what the
        plugin raises.
        """
        self.manager.register(module, name=provider)
        self.manager.check_pending()
        parts = [
            part for announced in self.call(provider, "instamap_components") for part in announced
        ]
        for part in parts:
            if not isinstance(part, Component):
                raise TypeError(f"instamap_components returned {part!r}, which is not a Component")
        return parts

    def _add(self, provider: str, parts: list[Component]) -> None:
        for part in parts:
            known = self._parts.get((part.kind, part.name))
            if known:
                remedy = "rename one" if known.provider == provider else _remedy(provider)
                raise PartError(
                    f"{part.kind} '{part.name}' is defined twice, by {known.provider} and by"
                    f" {provider}; {remedy}"
                )
            self._parts[part.kind, part.name] = replace(part, provider=provider)

    def register(self, *components: Component) -> None:
        """Adds parts that this process defines. One that it registered under the same name earlier
        gives way, so that a cell of a notebook can run again.

        Raises PartError, and adds none of them, where another provider has a part of that name.
        """
        for part in components:
            known = self._parts.get((part.kind, part.name))
            if known and known.provider != PROCESS:
                raise PartError(
                    f"{part.kind} '{part.name}' is there already, from {known.provider}; give yours"
                    " another name"
                )
        for part in components:
            self._parts[part.kind, part.name] = replace(part, provider=PROCESS)

    def parts(self, kind: str | None = None) -> list[Component]:
        """All parts, or those of one kind, ordered by kind (as in KINDS) and name. Raises PartError
        for an unknown kind.
        """
        if kind is not None:
            _known_kind(kind)
        chosen = [p for p in self._parts.values() if kind in (None, p.kind)]
        return sorted(chosen, key=lambda p: (KINDS.index(p.kind), p.name))

    def get(self, kind: str, name: str) -> Component:
        """The part of that kind and name. Raises PartError: what is there, what was probably meant,
        what is broken.
        """
        _known_kind(kind)
        if (kind, name) not in self._parts:
            sick = "".join(
                f"; plugin {b.provider}, which may provide it, is broken ({b.reason})"
                for b in self.broken
            )
            raise PartError(
                f"{kind} '{name}' is unknown;"
                f" {_choose(name, [p.name for p in self.parts(kind)])}{sick}"
            )
        return self._parts[kind, name]


def _known_kind(kind: str) -> None:
    if kind not in KINDS:
        raise PartError(f"kind '{kind}' is unknown; {_choose(kind, KINDS)}")


def _choose(word: str, allowed: Iterable[str]) -> str:
    names = list(allowed)
    close = difflib.get_close_matches(word.lower(), names, n=1)
    return f"choose {', '.join(names)}" + (f" (did you mean {close[0]}?)" if close else "")


def _remedy(provider: str) -> str:
    return f"uninstall one, or set INSTAMAP_DISABLE_PLUGINS={provider.split(' ')[0]}"


def _reason(error: BaseException) -> str:
    """One line, since it is shown in lists and in other errors."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _canonical(distribution: str) -> str:
    """Distribution names are equal up to case and the choice among "-", "_" and "." (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution.strip()).lower()


def installed(points: Any = None, disabled: str | None = None) -> Registry:
    """A registry of what is installed.

    points: entry points of the group "instamap" (default: those of all installed distributions).
    disabled: comma-separated distributions to leave out (default: the environment variable
    INSTAMAP_DISABLE_PLUGINS).
    """
    points = entry_points(group="instamap") if points is None else points
    names = os.environ.get("INSTAMAP_DISABLE_PLUGINS", "") if disabled is None else disabled
    off = {_canonical(name) for name in names.split(",")}
    plugins = {}
    broken = []
    for point in points:
        provider = point.dist.name if point.dist else point.name
        if _canonical(provider) in off:
            continue
        try:
            module = point.load()
        except (Exception, SystemExit) as error:  # a third party's module may fail in any way
            broken.append(Broken(provider, _reason(error)))
        else:  # a distribution may announce more than one module
            plugins[f"{provider} ({point.name})" if provider in plugins else provider] = module
    return Registry(plugins, broken)


@cache
def default() -> Registry:
    """The registry of this process, made once."""
    return installed()


def register(*components: Component) -> None:
    """Gives parts of a script or a notebook their names, in this process only.

    The target of a class defined in the script itself is f"{__name__}:Class". Raises PartError for
    a name that is taken.
    """
    default().register(*components)
