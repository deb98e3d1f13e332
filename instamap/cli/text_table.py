"""Rows of text in aligned columns."""

import shutil
import sys
import textwrap

GAP = "  "
NARROWEST = (
    20  # a last column narrower than this is harder to read than a line that the terminal breaks
)


def columns(rows: list[list[str]]) -> str:
    """Lines with each column as wide as its widest cell; on a terminal the last column is wrapped
    to fit.
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    indent = sum(widths[:-1]) + len(GAP) * (len(widths) - 1)
    room = (
        shutil.get_terminal_size().columns - indent if sys.stdout.isatty() else 0
    )  # in a file or a pipe a row is a line
    lines = []
    for row in rows:
        head = "".join(
            cell.ljust(width) + GAP for cell, width in zip(row, widths[:-1], strict=False)
        )
        last = textwrap.wrap(row[-1], room) if room >= NARROWEST else [row[-1]]
        lines.append((head + (last[0] if last else "")).rstrip())
        lines += [" " * indent + more for more in last[1:]]
    return "\n".join(lines)
