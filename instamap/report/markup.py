"""Elements of HTML and SVG, with text and attributes escaped."""

import html
from collections.abc import Mapping

Attributes = Mapping[str, str | float]


def element(tag: str, attributes: Attributes, inside: str = "") -> str:
    """An element with markup `inside`. Numbers among the attributes are written to a tenth."""
    opened = " ".join([tag, *_written(attributes)])
    return f"<{opened}>{inside}</{tag}>"


def void(tag: str, attributes: Attributes) -> str:
    """An element of HTML that has no end, such as a picture."""
    opened = " ".join([tag, *_written(attributes)])
    return f"<{opened}>"


def text(tag: str, words: str, attributes: Attributes | None = None) -> str:
    """An element with plain text in it."""
    return element(tag, attributes or {}, html.escape(words))


def _written(attributes: Attributes) -> list[str]:
    written = []
    for name, value in attributes.items():
        words = value if isinstance(value, str) else f"{value:.1f}"
        written.append(f'{name}="{html.escape(words)}"')
    return written
