"""Figures become files of the size that was asked for, and nothing where drawing fails; a notebook
shows them.
"""

from io import BytesIO

import pytest
from PIL import Image

from instamap.report import figure
from instamap.report.notebook_figure import NOTEBOOK_DPI


def test_the_size_is_inches_times_pixels_per_inch(tmp_path):
    page = figure.framed(3.0, 2.0)
    page.subplots().plot([0, 1], [1, 0])
    figure.save(page, tmp_path / "a.png", dpi=50)
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (150, 100)


def test_a_drawing_that_fails_leaves_no_file(tmp_path):
    page = figure.framed(3.0, 2.0)
    page.suptitle(r"$\nothing$")  # a formula that matplotlib does not know
    with pytest.raises(ValueError, match="nothing"):
        figure.save(page, tmp_path / "a.png", dpi=50)
    assert not list(tmp_path.iterdir())


def test_a_notebook_shows_it_as_a_picture():
    page = figure.framed(3.0, 2.0)
    page.subplots().plot([0, 1], [1, 0])
    with Image.open(BytesIO(page._repr_png_())) as image:
        assert image.size == (3 * NOTEBOOK_DPI, 2 * NOTEBOOK_DPI)
        assert len(image.convert("L").getcolors()) > 2
