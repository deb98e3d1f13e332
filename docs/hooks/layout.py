"""Markdown as it is read where the project is kept, made into what the site takes it for."""

import re

CODE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
NESTED = re.compile(r"^ {2,3}(?=[-*|] |\d+\. |\|)", re.MULTILINE)
INDENT = " " * 4


def indented(markdown: str) -> str:
    """Lists and tables below an item of a list, by four spaces: by two or three they count as not
    below it.
    """
    pieces = CODE.split(markdown)
    return "".join(
        piece if CODE.fullmatch(piece) else NESTED.sub(INDENT, piece) for piece in pieces
    )
