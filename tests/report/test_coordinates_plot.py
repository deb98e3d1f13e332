"""The picture of coordinates is drawn for one coordinate, for two and for more."""

import pytest
import torch
from PIL import Image

from instamap.geometry import rotations
from instamap.report import coordinates_plot


@pytest.mark.parametrize("coordinates", [1, 2, 3])
def test_a_picture_of_as_many_coordinates(tmp_path, coordinates):
    generator = torch.Generator().manual_seed(coordinates)
    latents = torch.randn(300, coordinates, generator=generator)
    rotation = rotations.random(300, generator=generator)
    coordinates_plot.plot(tmp_path / "latents.png", latents, rotation, latents[:4])
    with Image.open(tmp_path / "latents.png") as image:
        assert image.size == (1596, 546)


def test_coordinates_that_do_not_differ_are_drawn_too(tmp_path):
    rotation = rotations.random(12, generator=torch.Generator().manual_seed(0))
    coordinates_plot.plot(tmp_path / "latents.png", torch.zeros(12, 1), rotation, torch.zeros(1, 1))
    assert (tmp_path / "latents.png").exists()
