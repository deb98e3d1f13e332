"""Sections of the page that tells of a finished run: the built-in ones and those of plugins."""

import html
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from instamap.plugin.hooks import hookimpl
from instamap.plugin.registry import OWN, Registry

HOOK = "instamap_report_sections"


@dataclass(frozen=True)
class Section:
    """A part of a report under a title of its own.

    title: plain text. html: what stands below it, in which data are escaped already (`paragraphs`).
    """

    title: str
    html: str


class Summarised(Protocol):
    """The result of a finished run, as far as the built-in sections read it."""

    def summary(self) -> list[str]:
        """What came out, in lines of plain text."""


def paragraphs(lines: Iterable[str]) -> str:
    """Lines of plain text as HTML, escaped: a paragraph each."""
    return "\n".join(f"<p>{html.escape(line)}</p>" for line in lines)


class BuiltIn:
    """The sections that every report has."""

    @hookimpl
    def instamap_report_sections(self, result: Summarised) -> list[Section]:
        """What the run found, as the command line says it."""
        return [Section("Result", paragraphs(result.summary()))]


def collect(result: Any, registry: Registry) -> list[Section]:
    """The sections of a report on `result`: the built-in ones first, then those of each plugin.

    A plugin whose hook fails, or returns anything but sections, counts as broken from here on.
    """
    own = f"{OWN} report"
    if not registry.manager.has_plugin(own):
        registry.manager.register(BuiltIn(), name=own)
    sections = _sections_of(own, result, registry)
    for provider in registry.providers():
        if provider == own:
            continue
        try:
            sections += _sections_of(provider, result, registry)
        except (Exception, SystemExit) as error:  # a third party's hook may fail in any way
            registry.drop(provider, error)
    return sections


def _sections_of(provider: str, result: Any, registry: Registry) -> list[Section]:
    """The sections of one provider. Raises what its hook raises, TypeError for another thing."""
    sections = []
    for returned in registry.call(provider, HOOK, result=result):
        for section in returned:
            if not isinstance(section, Section):
                raise TypeError(f"{HOOK} returned {section!r}, which is not a Section")
            sections.append(section)
    return sections
