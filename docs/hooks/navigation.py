"""The navigation of the site: what mkdocs.yml says, and pages that it does not know yet."""

from collections.abc import Iterator
from typing import Any

DECISIONS = "decisions/"
SECTION_OF_DECISIONS = "Decisions"
SECTION_OF_OTHERS = "How-to guides"


def with_every_page(nav: list[Any], written: list[str]) -> list[Any]:
    """The navigation with each page in it: decisions under theirs, others at the end of the guides.

    nav: as in mkdocs.yml; written: places of the pages in docs/. Raises KeyError where one of these
    two sections is missing.
    """
    known = set(places(nav))
    for place in written:
        if place not in known:
            is_decision = place.startswith(DECISIONS)
            section(nav, SECTION_OF_DECISIONS if is_decision else SECTION_OF_OTHERS).append(place)
    return nav


def places(nav: list[Any]) -> Iterator[str]:
    """The pages that a navigation lists, at any depth."""
    for entry in nav:
        if isinstance(entry, str):
            yield entry
            continue
        [value] = entry.values()
        yield from places(value if isinstance(value, list) else [value])


def section(nav: list[Any], title: str) -> list[Any]:
    """The entries of the section of that title. Raises KeyError where there is none."""
    found = _section(nav, title)
    if found is None:
        raise KeyError(f"mkdocs.yml has no section '{title}' in nav; name one so")
    return found


def _section(nav: list[Any], title: str) -> list[Any] | None:
    for entry in nav:
        if isinstance(entry, str):
            continue
        [(name, value)] = entry.items()
        if not isinstance(value, list):
            continue
        found = value if name == title else _section(value, title)
        if found is not None:
            return found
    return None
