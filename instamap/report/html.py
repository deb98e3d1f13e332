"""The page that tells of a finished run: one file that needs nothing else, not even a network."""

import base64
import gzip
import html
import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from instamap.files import replacing
from instamap.plugin.registry import OWN, Registry
from instamap.report.contents import BuiltIn
from instamap.report.sanitise import sanitised
from instamap.report.section import Section
from instamap.version import __version__

HOOK = "instamap_report_sections"
# Nothing may be fetched: what the page needs is in it.
POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)


def write(path: str | Path, result: Any, registry: Registry) -> None:
    """Writes the report on a result. Raises OutputError."""
    text = page(result, registry)
    with replacing(path) as sibling:
        sibling.write_text(text, encoding="utf-8")


def page(result: Any, registry: Registry) -> str:
    """The report on a result as HTML."""
    sections = collect(result, registry)
    names = [_identifier(number, one.title) for number, one in enumerate(sections)]
    links = []
    bodies = []
    for name, one in zip(names, sections, strict=True):
        title = html.escape(one.title)
        links.append(f'<li><a href="#{name}">{title}</a></li>')
        heading = f'<h2 id="{name}-title">{title}</h2>'
        bodies.append(
            f'<section id="{name}" aria-labelledby="{name}-title">{heading}\n{one.html}\n</section>'
        )
    verdict = html.escape(result.verdict)
    library = "" if not any('id="surface"' in one.html for one in sections) else _library()
    return PAGE.format(
        policy=html.escape(POLICY),
        style=_text("page.css"),
        verdict=verdict[:1].upper() + verdict[1:],
        links="\n".join(links),
        sections="\n".join(bodies),
        library=library,
        script=_text("page.js"),
        version=html.escape(__version__),
    )


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
            added = _sections_of(provider, result, registry)
        except (Exception, SystemExit) as error:  # a third party's hook may fail in any way
            registry.drop(provider, error)
        else:
            sections += [Section(one.title, sanitised(one.html)) for one in added]
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


def _identifier(number: int, title: str) -> str:
    """A name for links, of its own whatever the titles are."""
    words = re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")
    return f"s{number}-{words}"


def _text(name: str) -> str:
    return resources.files("instamap.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _library() -> str:
    """3Dmol.js, compressed, with its licence."""
    folder = resources.files("instamap.report").joinpath("vendor")
    code = folder.joinpath("3Dmol-min.js").read_bytes()
    licence = folder.joinpath("3Dmol-LICENSE.txt").read_text(encoding="utf-8")
    packed = base64.b64encode(gzip.compress(code, 9, mtime=0)).decode()
    words = licence.replace("--", "- -")
    return (
        f"<!-- 3Dmol.js, compressed:\n{words}\n-->\n"
        f'<script type="text/plain" id="library">{packed}</script>'
    )


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="generator" content="instamap {version}">
<title>instamap: {verdict}</title>
<link rel="icon" href="data:,">
<style>
{style}
</style>
</head>
<body>
<a class="skip" href="#main">Skip to the results</a>
<header>
<div class="bar"><span class="name">instamap</span>
<button type="button" id="theme" aria-pressed="false">Dark</button></div>
<h1>{verdict}</h1>
<nav aria-label="Sections"><ul>
{links}
</ul></nav>
</header>
<main id="main">
{sections}
</main>
<footer><p>Made by instamap {version}. The page holds all that it shows.</p></footer>
{library}
<script>
{script}
</script>
</body>
</html>
"""
