"""Figures that a notebook shows as they are returned."""

from io import BytesIO

from matplotlib.figure import Figure

NOTEBOOK_DPI = 100  # pixels per inch on the screen


class NotebookFigure(Figure):
    """A figure of matplotlib that needs no pyplot, and no display, to be seen in a notebook."""

    def _repr_png_(self) -> bytes:
        """The picture that a notebook shows."""
        picture = BytesIO()
        self.savefig(picture, format="png", dpi=NOTEBOOK_DPI)
        return picture.getvalue()
