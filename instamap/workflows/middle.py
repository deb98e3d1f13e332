"""The middle of a box: the scene and the statistics of the cube that holds the molecule, as if it
was the box, and its maps and curves back in the box of the images.

The cube has its voxel n // 2 where the box has D // 2, so that positions in Å are the same in both.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from instamap.fourier.rescale import resample_shells
from instamap.geometry.cube import Cube
from instamap.scene import Scene
from instamap.statistics.statistics import Statistics


def scene_of(scene: Scene, cube: Cube) -> Scene:
    """The scene of images that are cut down to a centred cube; the same for the whole box."""
    if cube.is_whole:
        return scene
    noise = scene.noise_variance
    if noise is not None:
        noise = resample_shells(noise, cube.box, cube.edge)
    bodies = scene.bodies
    if bodies is not None:
        bodies = torch.stack([_cut(body, cube) for body in bodies])
    return replace(
        scene,
        box=cube.edge,
        mask=None if scene.mask is None else _cut(scene.mask, cube),
        noise_variance=noise,
        bodies=bodies,
        focus=None if scene.focus is None else _cut(scene.focus, cube),
        image_box=cube.box,
    )


def statistics_of(statistics: Statistics, cube: Cube) -> Statistics:
    """The same statistics, told in the voxels of a centred cube."""
    return replace(statistics, cube=statistics.cube.within(cube))


def cube_of(scene: Scene) -> Cube:
    """The place of a scene's box in the images' box."""
    box = scene.image_box or scene.box
    low = box // 2 - scene.box // 2
    return Cube(box, low, low + scene.box)


def whole_maps(maps: Mapping[str, Tensor], scene: Scene) -> dict[str, Tensor]:
    """Maps of the scene's box in the images' box, and empty around it."""
    cube = cube_of(scene)
    return {name: cube.whole_map(volume) for name, volume in maps.items()}


def whole_curves(curves: Mapping[str, Tensor], scene: Scene) -> dict[str, Tensor]:
    """Curves over the shells of the scene's box, at those of the images' box."""
    cube = cube_of(scene)
    return {name: resample_shells(curve, cube.edge, cube.box) for name, curve in curves.items()}


def _cut(volume: Tensor, cube: Cube) -> Tensor:
    """The cube's voxels, in memory of their own, so that the rest can go."""
    return cube.of(volume).clone()
