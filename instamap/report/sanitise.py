"""HTML of third parties made harmless: text, tables and pictures stay; all else becomes text."""

import html
import re
from html.parser import HTMLParser

WORDS = ("a", "b", "br", "code", "em", "i", "kbd", "small", "span", "strong", "sub", "sup", "u")
BLOCKS = ("blockquote", "div", "h3", "h4", "h5", "hr", "p", "pre")
LISTS = ("dd", "dl", "dt", "li", "ol", "ul")
TABLES = ("caption", "table", "tbody", "td", "tfoot", "th", "thead", "tr")
PICTURES = ("figcaption", "figure", "img")
KEPT_TAGS = (*WORDS, *BLOCKS, *LISTS, *TABLES, *PICTURES)
VOID_TAGS = ("br", "hr", "img")  # that have no end
ATTRIBUTES = ("alt", "colspan", "rowspan", "scope", "title", "width", "height")
PICTURE = re.compile(r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/=\s]+")


def sanitised(text: str) -> str:
    """The HTML with its harmless tags, each closed; others are shown as the text that they are.

    No attribute stays that could run or fetch anything: pictures are data in the page itself.
    """
    reader = _Reader()
    reader.feed(text)
    reader.close()
    return reader.finished()


class _Reader(HTMLParser):
    """Writes down what it reads, as far as it is harmless."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._written: list[str] = []
        self._open: list[str] = []

    def finished(self) -> str:
        """What was written, with every tag closed."""
        ends = [f"</{tag}>" for tag in reversed(self._open)]
        return "".join([*self._written, *ends])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in KEPT_TAGS:
            self._write_text(self.get_starttag_text() or f"<{tag}>")
            return
        kept = "".join(_attribute(name, value or "") for name, value in attrs)
        self._written.append(f"<{tag}{kept}>")
        if tag not in VOID_TAGS:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag in KEPT_TAGS and tag not in VOID_TAGS:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID_TAGS:
            return
        if tag not in self._open:
            self._write_text(f"</{tag}>")
            return
        while self._open:
            last = self._open.pop()
            self._written.append(f"</{last}>")
            if last == tag:
                return

    def handle_data(self, data: str) -> None:
        self._write_text(data)

    def handle_comment(self, data: str) -> None:
        """Comments are not shown."""

    def handle_decl(self, decl: str) -> None:
        self._write_text(f"<!{decl}>")

    def unknown_decl(self, data: str) -> None:
        self._write_text(f"<![{data}]>")

    def handle_pi(self, data: str) -> None:
        self._write_text(f"<?{data}>")

    def _write_text(self, text: str) -> None:
        self._written.append(html.escape(text))


def _attribute(name: str, value: str) -> str:
    """An attribute as it is written, or nothing."""
    is_picture = name == "src" and PICTURE.fullmatch(value) is not None
    is_place = name == "href" and value.startswith(("https://", "http://", "#"))
    if name in ATTRIBUTES or is_picture or is_place:
        return f' {name}="{html.escape(value)}"'
    return ""
