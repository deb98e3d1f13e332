"""Sections of a report come from the program and from plugins alike; a sick plugin harms nobody."""

from types import ModuleType

import pytest
from support.finished import finished

from instamap.plugin.hooks import hookimpl
from instamap.plugin.registry import Registry
from instamap.report.html import collect
from instamap.report.section import Section, paragraphs, table


def plugin(sections) -> ModuleType:
    """A plugin whose hook calls `sections` with the result."""

    @hookimpl
    def instamap_report_sections(result):
        return sections(result)

    module = ModuleType("some_plugin")
    module.instamap_report_sections = instamap_report_sections
    return module


def titles(registry: Registry) -> list[str]:
    """Titles of what plugins add to a report, after the sections of the program."""
    every = [section.title for section in collect(finished(), registry)]
    own = [section.title for section in collect(finished(), Registry({}, []))]
    assert every[: len(own)] == own
    return every[len(own) :]


def test_text_is_escaped():
    lines = ["half maps agree to 4.1 Å", "from <particles> & poses"]
    assert paragraphs(lines) == (
        "<p>half maps agree to 4.1 Å</p>\n<p>from &lt;particles&gt; &amp; poses</p>"
    )
    shown = table(["<a>"], [["&", "<b>"]], "1 < 2")
    assert "&lt;a&gt;" in shown and "&lt;b&gt;" in shown and "1 &lt; 2" in shown


def test_a_plugin_adds_its_own_after_the_built_in_ones():
    local = plugin(lambda result: [Section("Lines", paragraphs(result.summary()[:1]))])
    registry = Registry({"local-resolution": local}, [])
    for _ in range(2):  # the second time is like the first
        assert titles(registry) == ["Lines"]
    assert not registry.broken


def test_a_plugin_without_sections_adds_none():
    plugins = {"silent": ModuleType("silent"), "nothing to say": plugin(lambda result: None)}
    registry = Registry(plugins, [])
    assert titles(registry) == []
    assert not registry.broken


@pytest.mark.parametrize(
    "sections, reason",
    [
        (lambda result: [result.no_such_number], "no_such_number"),
        (lambda result: ["<p>text</p>"], "not a Section"),
    ],
)
def test_a_plugin_whose_hook_fails_is_dropped(sections, reason):
    healthy = plugin(lambda result: [Section("Healthy", "")])
    registry = Registry({"sick": plugin(sections), "healthy": healthy}, [])
    assert titles(registry) == ["Healthy"]
    [broken] = registry.broken
    assert broken.provider == "sick" and reason in broken.reason
    assert "sick" not in registry.providers()
