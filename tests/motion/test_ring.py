"""Coordinates that close upon themselves are told from a line and from a plane."""

import math

import pytest
import torch

from instamap.motion import conformation_maps, ring
from instamap.motion.ring import Shape


def circle(count: int, noise: float = 0.0, share: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    angle = 2 * math.pi * share * torch.arange(count, dtype=torch.float64) / count
    z = torch.stack([angle.cos(), angle.sin()], 1)
    return z + noise * torch.randn(count, 2, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.1])
def test_a_circle_closes(noise):
    assert ring.closes(3.0 * circle(16, noise) + torch.tensor([5.0, -2.0]))


def test_an_arc_a_plane_and_a_line_do_not():
    x = torch.linspace(-1, 1, 5)
    plane = torch.cartesian_prod(x, x)
    line = torch.stack([torch.linspace(-1, 1, 16), 0.1 * torch.randn(16)], 1)
    assert not ring.closes(circle(16, share=0.7))
    assert not ring.closes(plane)
    assert not ring.closes(line)
    assert not ring.closes(circle(16)[:, :1])


def test_points_go_to_the_nearest_of_the_circle():
    z = torch.tensor([[3.0, 4.0], [0.0, -0.1]])
    assert torch.allclose(ring.on_circle(z), torch.tensor([[0.6, 0.8], [0.0, -1.0]]))


def test_middles_lie_between_neighbours():
    around = ring.with_middles(circle(8)[torch.randperm(8)], Shape(2, closed=True))
    angle = torch.atan2(around[:, 1], around[:, 0]).remainder(2 * math.pi).sort().values
    gaps = torch.cat([angle.diff(), angle[:1] + 2 * math.pi - angle[-1:]])
    assert len(around) == 16 and torch.allclose(gaps, torch.full_like(gaps, math.pi / 8))
    along = ring.with_middles(torch.tensor([[1.0], [-1.0], [0.5]]), Shape(1))
    assert torch.equal(along.sort(0).values[:, 0], torch.tensor([-1.0, -0.25, 0.5, 0.75, 1.0]))
    plane = torch.randn(9, 2)
    assert torch.equal(ring.with_middles(plane, Shape(2)), plane)


def test_a_shape_says_what_it_is():
    assert str(Shape(1)) == "1 coordinate" and str(Shape(3)) == "3 coordinates"
    assert "closes" in str(Shape(2, closed=True)) and Shape(2, closed=True).domains == 1
    assert Shape(2).domains == 2


def test_a_path_of_closed_coordinates_goes_once_around():
    latents = circle(500)
    places = conformation_maps.path(latents, 8, seed=0)
    angle = torch.atan2(places[:, 1], places[:, 0]).remainder(2 * math.pi)
    steps = angle.diff().remainder(2 * math.pi)
    assert torch.allclose(steps, torch.full_like(steps, math.pi / 4))
    assert torch.allclose(places.norm(dim=1), torch.ones(8, dtype=places.dtype))


def test_the_centre_of_a_circle_is_no_conformation():
    assert torch.equal(ring.on_circle(torch.zeros(1, 2)), torch.tensor([[1.0, 0.0]]))
