"""Figures as PNG files: drawn without a display, and whole or absent."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instamap.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def blank(width: float, height: float, **properties: Any) -> "Figure":
    """An empty figure of so many inches; `properties` are matplotlib's."""
    from matplotlib.figure import Figure  # slow to import, and fits that draw nothing need not wait

    return Figure(figsize=(width, height), **properties)


def save(figure: "Figure", path: str | Path, dpi: float) -> None:
    """Write a figure as a PNG of `dpi` pixels per inch. Raises OutputError."""
    with replacing(path) as sibling:
        figure.savefig(sibling, format="png", dpi=dpi)


def framed(width: float, height: float) -> "Figure":
    """An empty figure of so many inches, in which nothing overlaps."""
    return blank(width, height, layout="constrained")


@contextmanager
def png(path: str | Path, width: float, height: float, dpi: float) -> Iterator["Figure"]:
    """A figure of so many inches to draw in, which is then written as a PNG. Raises OutputError."""
    figure = framed(width, height)
    yield figure
    save(figure, path, dpi)
