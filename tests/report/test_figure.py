"""Figures become files of the size that was asked for, and nothing where drawing fails."""

import pytest
from PIL import Image

from instamap.report import figure


def test_the_size_is_inches_times_pixels_per_inch(tmp_path):
    with figure.png(tmp_path / "a.png", width=3.0, height=2.0, dpi=50) as page:
        page.subplots().plot([0, 1], [1, 0])
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (150, 100)


def test_a_drawing_that_fails_leaves_no_file(tmp_path):
    with (
        pytest.raises(ZeroDivisionError),
        figure.png(tmp_path / "a.png", width=3.0, height=2.0, dpi=50),
    ):
        1 / 0  # noqa: B018
    assert not list(tmp_path.iterdir())
