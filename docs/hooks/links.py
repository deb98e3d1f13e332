"""Links between files of the project, as links between pages of the site."""

import posixpath
import re
from collections.abc import Set

from layout import CODE

DOCS = "docs"
PROJECT = "project"  # the folder on the site of pages from outside docs/
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
ADDRESS = re.compile(r"^(\w+:|#)")


def relinked(markdown: str, place: str, places: Set[str]) -> str:
    """A page whose links lead to pages of the site.

    place: of the page on the site; places: all that the site holds. A link to a file of the project
    that is not on the site becomes the words that it had; one to a page that does not exist stays,
    so that the build ends with it.
    """
    pieces = CODE.split(markdown)
    return "".join(
        piece if CODE.fullmatch(piece) else _relinked(piece, place, places) for piece in pieces
    )


def _relinked(text: str, place: str, places: Set[str]) -> str:
    def link(found: re.Match[str]) -> str:
        text, target = found.groups()
        led = _led(target, place, places)
        return f"`{text}`" if led is None and _is_path(text) else _link(text, led)

    def image(found: re.Match[str]) -> str:
        text, target = found.groups()
        return f"!{_link(text, _led(target, place, places))}"

    return LINK.sub(link, IMAGE.sub(image, text))


def _link(text: str, target: str | None) -> str:
    return text if target is None else f"[{text}]({target})"


def _is_path(text: str) -> bool:
    """Whether a link's text is the name of a file that is not marked as code."""
    return "/" in text and "`" not in text


def _led(target: str, place: str, places: Set[str]) -> str | None:
    """Where a link of the page at `place` leads on the site; None where that is not on it."""
    if ADDRESS.match(target):
        return target
    path, hash_sign, anchor = target.partition("#")
    here = posixpath.dirname(in_project(place))
    wanted = on_site(posixpath.normpath(posixpath.join(here, path)))
    if wanted not in places and wanted.startswith(f"{PROJECT}/"):
        return None
    relative = posixpath.relpath(wanted, posixpath.dirname(place) or ".")
    return f"{relative}{hash_sign}{anchor}"


def in_project(place: str) -> str:
    """The file of the project that a page on the site is made of."""
    outside = place.startswith(f"{PROJECT}/")
    return place.removeprefix(f"{PROJECT}/") if outside else f"{DOCS}/{place}"


def on_site(path: str) -> str:
    """Where a file of the project would be on the site."""
    inside = path.startswith(f"{DOCS}/")
    return path.removeprefix(f"{DOCS}/") if inside else f"{PROJECT}/{path}"
