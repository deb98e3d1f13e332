"""Where the molecule is: the cube of voxels that statistics are gathered for, seen in a quick first
pass over some images of fewer pixels.
"""

from torch import Tensor

from instamap.data import splits
from instamap.data.particles import Particles
from instamap.errors import DataError
from instamap.geometry.cube import Cube
from instamap.geometry.sampling import dilate
from instamap.maps import mask
from instamap.statistics import initial_map
from instamap.workflows import quick_statistics

MIN_BOX = 96  # below, the whole box costs less than looking
COARSE_BOX = 64  # voxels along an edge of the first map, at least
COARSE_VOXEL = 4  # of the box's in one of the first map's, at most
MAX_IMAGES = 3000  # of the first map
LEVEL = 0.2  # of the way from solvent to the densest place: as of a mask that is found
EXTEND = 1.0  # voxels of the first map
MARGIN = 2.0  # voxels of the first map, on each side of what is seen


def find(
    particles: Particles,
    rows: Tensor,
    window: Tensor | None = None,
    *,
    symmetry: Tensor | None = None,
    weights: Tensor | None = None,
) -> Cube:
    """The cube that holds the molecule: around a mask `window` "D D D" where there is one; all of a
    small box, and of one in which no molecule stands out.

    rows: of the images to look at, of which MAX_IMAGES are taken. symmetry "S 3 3", weights "n":
    see `streaming.accumulate`.
    """
    box = particles.box
    whole = Cube.whole(box)
    if box < MIN_BOX:
        return whole
    if window is not None:
        inside = dilate(window)
        return _widened(Cube.around(inside), 1)
    try:
        visible = _coarse_mask(particles, rows, symmetry, weights) > 0
    except DataError:  # the map is flat
        return whole
    scale = box / len(visible)
    small = Cube.around(visible)
    middle = len(visible) // 2
    low = round(box // 2 + scale * (small.low - middle))
    high = round(box // 2 + scale * (small.high - middle))
    found = Cube(box, max(0, low), min(box, high))
    return _widened(found, round(MARGIN * scale))


def _widened(cube: Cube, margin: int) -> Cube:
    """The cube and so many voxels around it, and the middle of the box, at an edge that is
    transformed fast.
    """
    middle = cube.box // 2
    low = min(middle, max(0, cube.low - margin))
    high = max(middle + 1, min(cube.box, cube.high + margin))
    whole = Cube.whole(cube.box)
    return Cube(cube.box, low, high).transformed_fast(whole)


def _coarse_mask(
    particles: Particles, rows: Tensor, symmetry: Tensor | None, weights: Tensor | None
) -> Tensor:
    """The molecule in a first map of few voxels, as a mask. Raises DataError for a flat one."""
    chosen = splits.at_equal_steps(rows, MAX_IMAGES)
    coarse = max(COARSE_BOX, particles.box // COARSE_VOXEL)
    scene, found = quick_statistics.gather(
        particles, coarse, chosen, {"first": chosen}, symmetry=symmetry, weights=weights
    )
    sphere = mask.sphere(scene.box, scene.pixel_size, scene.radius, 0.0)
    volume = initial_map.solve(found["first"], sphere)
    return mask.from_map(volume, scene.pixel_size, threshold=LEVEL, extend=EXTEND, edge=0)
