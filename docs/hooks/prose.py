"""Text of the program as Markdown: docstrings, tables and signatures."""

import inspect
import re
from typing import Any

CODE = re.compile(r"(`[^`]*`)")
SPECIAL = re.compile(r"([\\*_\[\]|#])")
INDENT = "    "
MAX_COLUMNS = 88
QUALIFIED = re.compile(r"\b(?:instamap|torch|pathlib|typing|collections)(?:\.\w+)*\.(\w+)")
NAMELESS = re.compile(r"<[\w.]+ object at 0x[0-9a-f]+>")


def escaped(text: str) -> str:
    """The text such that Markdown shows every character of it; what is in backticks stays code."""
    pieces = CODE.split(text)
    return "".join(piece if CODE.fullmatch(piece) else _plain(piece) for piece in pieces)


def _plain(text: str) -> str:
    without_tags = text.replace("&", "&amp;").replace("<", "&lt;")
    return SPECIAL.sub(r"\\\1", without_tags)


def table(rows: list[list[str]]) -> str:
    """Rows below a heading, as a table; cells are Markdown."""
    heading, *others = rows
    lines = [heading, ["---"] * len(heading), *others]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def paragraphs(documented: Any) -> str:
    """The docstring of an object; its indented lines stay as they are, as a block of code."""
    text = inspect.getdoc(documented) or ""
    lines = [line if line.startswith(INDENT) else escaped(line) for line in text.splitlines()]
    return "\n".join(lines)


def signature(name: str, function: Any) -> str:
    """A call as Python writes it, one parameter a line where a line cannot hold them."""
    called = inspect.signature(function)
    shown = _short(f"{name}{called}")
    if len(shown) <= MAX_COLUMNS:
        return shown
    lines = []
    for parameter in called.parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and f"{INDENT}*," not in lines:
            lines.append(f"{INDENT}*,")
        lines.append(f"{INDENT}{_short(str(parameter))},")
    returned = called.return_annotation
    nothing = inspect.Signature.empty
    end = "" if returned is nothing else f" -> {inspect.formatannotation(returned)}"
    return "\n".join([f"{name}(", *lines, f"){_short(end)}"])


def _short(text: str) -> str:
    """Types without the modules that they come from, and objects without their addresses."""
    without_modules = QUALIFIED.sub(r"\1", text)
    return NAMELESS.sub("...", without_modules)
