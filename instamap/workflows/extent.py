"""Where the molecule is: the cube of voxels that statistics are gathered for, seen in a quick first
pass over some images of fewer pixels.
"""

from dataclasses import dataclass

from torch import Tensor

from instamap.data import noise
from instamap.data.particles import Particles
from instamap.errors import DataError
from instamap.geometry.cube import Cube
from instamap.geometry.sampling import dilate
from instamap.maps import mask
from instamap.model import make_part
from instamap.parts import GaussianLikelihood
from instamap.plugin.choice import choose
from instamap.scene import Scene
from instamap.statistics import initial_map
from instamap.statistics.particle_statistics import fewer_pixels
from instamap.statistics.streaming import accumulate

MIN_BOX = 96  # below, the whole box costs less than looking
COARSE_BOX = 64  # voxels along an edge of the first map
MAX_IMAGES = 3000  # of the first map
SEEN = 0.2  # of the way from solvent to the densest place: as of a mask that is found
EXTEND = 1.0  # voxels of the first map
MARGIN = 0.03  # of the box, on each side of what is seen


@dataclass(frozen=True)
class FirstLook:
    """What is needed of the particles: the rows of those that are fitted, symmetry "S 3 3" (None
    for C1), weights "n" (None for 1).
    """

    particles: Particles
    rows: Tensor
    symmetry: Tensor | None
    weights: Tensor | None


def find(look: FirstLook, window: Tensor | None) -> Cube:
    """The cube that holds the molecule: around a mask `window` "D D D" where there is one; all of a
    small box, and of one in which no molecule stands out.
    """
    box = look.particles.box
    whole = Cube.whole(box)
    if box < MIN_BOX:
        return whole
    margin = round(MARGIN * box)
    if window is not None:
        inside = dilate(window)
        return _widened(Cube.around(inside), 1)
    try:
        seen = _coarse_mask(look) > 0
    except DataError:  # the map is flat
        return whole
    scale = box / len(seen)
    small = Cube.around(seen)
    middle = len(seen) // 2
    low = round(box // 2 + scale * (small.low - middle))
    high = round(box // 2 + scale * (small.high - middle))
    found = Cube(box, max(0, low), min(box, high))
    return _widened(found, margin)


def _widened(cube: Cube, margin: int) -> Cube:
    """The cube and so many voxels around it, and the middle of the box, at an edge that is
    transformed fast.
    """
    middle = cube.box // 2
    low = min(middle, max(0, cube.low - margin))
    high = max(middle + 1, min(cube.box, cube.high + margin))
    whole = Cube.whole(cube.box)
    return Cube(cube.box, low, high).transformed_fast(whole)


def _coarse_mask(look: FirstLook) -> Tensor:
    """The molecule in a first map of few voxels, as a mask. Raises DataError for a flat one."""
    edge = look.particles.box * look.particles.pixel_size
    coarse = fewer_pixels(look.particles, edge / COARSE_BOX)
    step = -(-len(look.rows) // MAX_IMAGES)
    rows = look.rows[::step]
    spectra = noise.estimate(coarse, rows)
    scene = Scene(
        box=coarse.box,
        pixel_size=coarse.pixel_size,
        count=coarse.count,
        premultiplied=coarse.premultiplied,
        noise_variance=spectra.float(),
    )
    likelihood = make_part("likelihood", choose("likelihood", "coloured"), scene)
    assert isinstance(likelihood, GaussianLikelihood)
    found = accumulate(
        coarse, {"first": rows}, likelihood, symmetry=look.symmetry, weights=look.weights
    )
    sphere = mask.sphere(scene.box, scene.pixel_size, scene.radius, 0.0)
    volume = initial_map.solve(found["first"], sphere)
    return mask.from_map(volume, scene.pixel_size, threshold=SEEN, extend=EXTEND, edge=0)
