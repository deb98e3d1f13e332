"""Figures: drawn without a display, shown by notebooks, and whole or absent as PNG files."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from instamap.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def blank(width: float, height: float, **properties: Any) -> "Figure":
    """An empty figure of so many inches; `properties` are matplotlib's."""
    # matplotlib is slow to import, and fits that draw nothing need not wait
    from instamap.report.notebook_figure import NotebookFigure

    return NotebookFigure(figsize=(width, height), **properties)


def save(figure: "Figure", path: str | Path, dpi: float) -> None:
    """Write a figure as a PNG of `dpi` pixels per inch. Raises OutputError."""
    with replacing(path) as sibling:
        figure.savefig(sibling, format="png", dpi=dpi)


def framed(width: float, height: float) -> "Figure":
    """An empty figure of so many inches, in which nothing overlaps."""
    return blank(width, height, layout="constrained")
