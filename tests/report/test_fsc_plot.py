"""The picture of Fourier shell correlations is a PNG, whole or absent."""

import pytest
import torch

from instamap.errors import OutputError
from instamap.report import fsc_plot

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_png_and_nothing_else(tmp_path):
    curves = {"half maps": torch.linspace(1, -0.1, 17), "nothing": torch.zeros(17)}
    fsc_plot.plot(tmp_path / "fsc.png", curves, 32, 1.5)
    assert [path.name for path in tmp_path.iterdir()] == ["fsc.png"]
    assert (tmp_path / "fsc.png").read_bytes().startswith(PNG)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OutputError, match="no-such-folder"):
        fsc_plot.plot(tmp_path / "no-such-folder" / "fsc.png", {"a": torch.zeros(17)}, 32, 1.5)
    assert not list(tmp_path.iterdir())
