"""A result as a notebook shows it: the verdict, a slice of each direction, and more to unfold."""

import html

from torch import Tensor

from instamap.report.contents import slice_pictures
from instamap.report.markup import element, text, void

EDGE = 160  # pixels of a slice on the screen


def card(verdict: str, facts: str, volume: Tensor | None, more: str) -> str:
    """A result as HTML that needs nothing outside it, in the notebook's own colours.

    verdict, facts: lines of plain text. volume "D D D": the map whose slices are shown, if any.
    more: HTML that is unfolded.
    """
    heading = f"<strong>{html.escape(verdict)}</strong><br>{html.escape(facts)}"
    parts = [element("p", {}, heading)]
    if volume is not None:
        pictures = [_picture(words, address) for words, address in slice_pictures(volume)]
        parts.append(element("div", {}, "".join(pictures)))
    parts.append(element("details", {}, text("summary", "More") + more))
    return element("div", {}, "".join(parts))


def _picture(words: str, address: str) -> str:
    style = f"width: {EDGE}px; margin: 4px; display: inline-block"
    return void("img", {"src": address, "alt": words, "title": words, "style": style})
