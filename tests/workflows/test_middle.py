"""A cube in the middle of the box stands for it: densities are where they were, to the formula, and
maps and curves come back in the box of the images.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instamap.geometry import grids, rotations
from instamap.geometry.cube import Cube
from instamap.maps import mask
from instamap.model import compose, default_parts
from instamap.scene import Scene, Views
from instamap.statistics import initial_map
from instamap.statistics.accumulator import Accumulator
from instamap.workflows import middle

PIXEL = 2.0  # Å
WIDTH = 4.0  # Å: standard deviation of the blob, whose components end before Nyquist
CENTRE = torch.tensor([6.0, -9.0, 3.5])  # Å: x, y, z
IMAGES = 400
GRIDDING = 1e-3  # of the blob's height: measured 1e-4; half a voxel would be 0.15


def gaussian(x: torch.Tensor) -> torch.Tensor:
    """The blob's density at points "*n 3" in Å."""
    square = (x - CENTRE.to(x)).square().sum(-1)
    return torch.exp(-square / (2 * WIDTH**2))


def images(box: int, views: Views) -> torch.Tensor:
    """Its projections "n D D": it lands at (A x)[:2] - origin."""
    where = (views.rotation @ CENTRE.double())[:, :2] - views.origin
    u = grids.pixel_centres(box, PIXEL, dtype=torch.float64)
    square = (u - where[:, None, None]).square().sum(-1)
    return math.sqrt(2 * math.pi) * WIDTH * torch.exp(-square / (2 * WIDTH**2))


@pytest.mark.parametrize("box", [36, 37])
def test_a_map_of_the_cube_is_the_blob_where_it_is_in_the_images(box):
    generator = torch.Generator().manual_seed(0)
    rotation = rotations.random(IMAGES, generator=generator)
    origin = 3 * torch.randn(IMAGES, 2, generator=generator, dtype=torch.float64)
    views = Views.of(rotation, origin)
    held = Cube(box, 6, 30)  # not in the middle
    accumulator = Accumulator(box, PIXEL, cube=held)
    accumulator.add(images(box, views), views, noise_variance=torch.ones(box // 2 + 1))
    cube = held.centred()
    scene = middle.scene_of(Scene(box, PIXEL), cube)
    assert scene.box == cube.edge < box
    statistics = middle.statistics_of(accumulator.finish(), cube)
    everywhere = torch.ones(scene.box, scene.box, scene.box)
    solved = initial_map.solve(statistics, everywhere, steps=30)
    found = middle.whole_maps({"map": solved}, scene)["map"]
    expected = gaussian(grids.voxel_centres(box, PIXEL))
    assert found.shape == (box, box, box)
    torch.testing.assert_close(found, expected, rtol=0, atol=GRIDDING)


@pytest.mark.parametrize("box", [24, 25])
def test_a_model_of_the_cube_has_its_window_where_the_mask_is(box):
    x = grids.voxel_centres(box, PIXEL)
    window = ((x - CENTRE).norm(dim=-1) < 7).float()
    whole = Scene(box, PIXEL, mask=window, noise_variance=torch.ones(1, box // 2 + 1))
    cube = Cube.around(window > 0).centred()
    scene = middle.scene_of(whole, cube)
    assert scene.box < box
    assert scene.noise_variance is not None
    assert scene.noise_variance.shape == (1, scene.box // 2 + 1)
    model = compose(default_parts(), scene, seed=0)
    points = torch.rand(200, 3, generator=torch.Generator().manual_seed(1)) * 30 - 15
    expected = compose(default_parts(), whole, seed=0).window(points)
    torch.testing.assert_close(model.window(points), expected)
    assert middle.cube_of(scene) == cube
    back = middle.whole_maps({"mask": scene.mask}, scene)["mask"]
    assert torch.equal(back, window)


def test_the_sphere_is_that_of_the_images():
    whole = Scene(40, PIXEL)
    cube = Cube(40, 10, 30)
    scene = middle.scene_of(whole, cube)
    assert scene.radius == whole.radius
    expected = cube.of(mask.sphere(40, PIXEL, whole.radius, 0.0))
    assert torch.equal(mask.sphere(20, PIXEL, scene.radius, 0.0), expected)


def test_masks_of_bodies_and_the_focus_are_cut_too():
    some = torch.rand(2, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    scene = middle.scene_of(Scene(12, PIXEL, bodies=some, focus=some[0]), Cube(12, 3, 9))
    assert scene.bodies is not None and scene.focus is not None
    assert torch.equal(scene.bodies, some[:, 3:9, 3:9, 3:9])
    assert torch.equal(scene.focus, some[0, 3:9, 3:9, 3:9])


def test_all_of_the_box_stays_as_it_is():
    scene = Scene(12, PIXEL, noise_variance=torch.rand(1, 7))
    assert middle.scene_of(scene, Cube.whole(12)) is scene
    volume = torch.rand(12, 12, 12)
    assert middle.whole_maps({"map": volume}, scene)["map"] is volume
    curve = torch.rand(7)
    assert middle.whole_curves({"masked": curve}, scene)["masked"] is curve


@given(small=st.integers(6, 40), more=st.integers(1, 40))
def test_a_curve_is_the_same_function_of_frequency_in_the_larger_box(small, more):
    scene = Scene(small, PIXEL, image_box=small + more)
    last = small // 2
    curve = 1 - torch.arange(last + 1, dtype=torch.float64) / small
    whole = middle.whole_curves({"masked": curve}, scene)["masked"]
    frequency = torch.arange((small + more) // 2 + 1, dtype=torch.float64) / (small + more)
    expected = 1 - frequency.clamp(max=last / small)
    torch.testing.assert_close(whole, expected)
