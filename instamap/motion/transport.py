"""Where material of one conformation is in another: the pull-back of a bending, inverted point by
point.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from instamap.geometry import grids, strain
from instamap.motion.motion_model import HalfModel

TOLERANCE = 0.01  # Å that may be left between where a point is sent and where it should be
MAX_STEPS = 30  # of Newton's method
MAX_HALVINGS = 6  # of a step that does not help
# Points along an edge of the box, from the nearest of which it begins again where it failed.
LATTICE_POINTS = 24
POINTS_AT_ONCE = 1 << 17  # which bounds memory
TARGETS_AT_ONCE = 4096  # whose distances to all points of the lattice are found
RIDGE = 1e-6  # where the derivative is singular, the least step is taken

PullBack = Callable[[Tensor], Tensor]


@torch.no_grad()
def transport(
    half: HalfModel,
    y: Tensor,
    start: Tensor,
    end: Tensor,
) -> tuple[Tensor, Tensor]:
    """Where the material at points y "P 3" (Å) of the conformation `start` "L" is in the
    conformation `end`: x "P 3", and what is left "P" in Å.

    The point of the common density that is seen at y is c = y + u(y; start); x solves x + u(x; end)
    = c. The common density's own shape, in which fits may differ, cancels. What is left is |x +
    u(x; end) - c|: above `TOLERANCE` x is not to be relied on.
    """
    scene = half.model.scene
    edge = scene.box * scene.pixel_size
    step = 0.5 * scene.pixel_size

    def pull_back(x: Tensor) -> Tensor:
        return half.pull_back(x, end)

    if not len(y):
        return y, y.new_zeros(0)
    points = []
    distances = []
    for chunk in y.split(POINTS_AT_ONCE):
        target = half.pull_back(chunk, start)
        x, left = invert(pull_back, target, chunk, edge, step)
        points.append(x)
        distances.append(left)
    return torch.cat(points), torch.cat(distances)


def invert(
    pull_back: PullBack,
    target: Tensor,
    first: Tensor,
    edge: float,
    step: float,
) -> tuple[Tensor, Tensor]:
    """Points x "P 3" with pull_back(x) = target "P 3", from the guess `first` on, and the distance
    |pull_back(x) - target| "P" that is left (Å).

    pull_back(x) = x + u(x) with a bounded, continuous u takes on every value, so that an x exists;
    where u folds space there are several, of which one is found. Newton's method, with derivatives
    by differences over `step` and steps halved until they help; points at which it fails begin
    again at that point of a lattice over the box (of this edge) whose image is nearest.
    """
    x, left = _newton(pull_back, target, first, step)
    failed = (left > TOLERANCE).nonzero()[:, 0]
    if not len(failed):
        return x, left
    interval = edge / LATTICE_POINTS
    lattice = grids.voxel_centres(LATTICE_POINTS, interval)
    points = lattice.reshape(-1, 3).to(x)
    images = pull_back(points)
    targets = target[failed]
    nearest = []
    for chunk in targets.split(TARGETS_AT_ONCE):
        distance = torch.cdist(chunk, images)
        nearest.append(distance.argmin(1))
    first = points[torch.cat(nearest)]
    again, distance = _newton(pull_back, targets, first, step)
    better = distance < left[failed]
    x[failed[better]] = again[better]
    left[failed[better]] = distance[better]
    return x, left


def _newton(
    pull_back: PullBack,
    target: Tensor,
    first: Tensor,
    step: float,
) -> tuple[Tensor, Tensor]:
    """The points that Newton's method finds from the guess alone, and what is left."""
    x = first.clone()
    image = pull_back(x)
    left = (target - image).norm(dim=1)
    active = torch.arange(len(x), device=x.device)
    for _ in range(MAX_STEPS):
        active = active[left[active] > TOLERANCE]
        if not len(active):
            break
        better, better_image, distance = _improve(
            pull_back, target[active], x[active], image[active], left[active], step
        )
        x[active] = better
        image[active] = better_image
        helped = distance < left[active]
        left[active] = distance
        active = active[helped]  # a point that no step brings nearer stays
    return x, left


def _improve(
    pull_back: PullBack,
    target: Tensor,
    x: Tensor,
    image: Tensor,
    left: Tensor,
    step: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """x, its image and what is left after one step of Newton's, or of the part of it that helps."""
    slope = strain.jacobian(pull_back, x, image, step)
    ridge = RIDGE * torch.eye(3).to(x)
    residual = target - image
    right = slope.mT @ residual[..., None]
    matrix = slope.mT @ slope + ridge
    full_step, _ = torch.linalg.solve_ex(matrix, right)
    # Where rounding leaves a matrix singular all the same, the point stays.
    full_step = full_step[..., 0].nan_to_num(0.0, 0.0, 0.0)
    x = x.clone()
    image = image.clone()
    left = left.clone()
    waiting = torch.arange(len(x), device=x.device)
    for halvings in range(MAX_HALVINGS):
        share = 0.5**halvings
        trial = x[waiting] + share * full_step[waiting]
        trial_image = pull_back(trial)
        distance = (target[waiting] - trial_image).norm(dim=1)
        helps = distance < left[waiting]
        helped = waiting[helps]
        x[helped] = trial[helps]
        image[helped] = trial_image[helps]
        left[helped] = distance[helps]
        waiting = waiting[~helps]
        if not len(waiting):
            break
    return x, image, left
