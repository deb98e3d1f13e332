"""A section of the page that tells of a finished run, as the program and plugins alike make it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from instamap.report.markup import element, text


@dataclass(frozen=True)
class Section:
    """A part of a report under a title of its own.

    title: plain text. html: what stands below it, in which data are escaped already (`paragraphs`,
    `table`). Of a plugin's, tags that format text, tables and pictures are kept, and everything
    else is shown as the text that it is.
    """

    title: str
    html: str


def paragraphs(lines: Iterable[str]) -> str:
    """Lines of plain text as HTML, escaped: a paragraph each."""
    return "\n".join(text("p", line) for line in lines)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    """Plain text in rows and columns as HTML, escaped. The first cell of a row names it.

    head: names of the columns; none where there is nothing to say of them.
    """
    parts = [text("caption", caption)]
    if head:
        names = [text("th", name, {"scope": "col"}) for name in head]
        top = element("tr", {}, "".join(names))
        parts.append(element("thead", {}, top))
    body = "\n".join(_row(row) for row in rows)
    parts.append(element("tbody", {}, body))
    frame = {
        "class": "scroll",  # what is too wide scrolls, by the keyboard too
        "tabindex": "0",
        "role": "group",
        "aria-label": caption,
    }
    return element("div", frame, element("table", {}, "".join(parts)))


def _row(cells: Sequence[str]) -> str:
    name, *values = cells
    first = text("th", name, {"scope": "row"})
    others = [text("td", value) for value in values]
    return element("tr", {}, "".join([first, *others]))
