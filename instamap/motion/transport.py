"""Where material of one state is in another: the pull-back of a bending, inverted point by point."""

from collections.abc import Callable

import torch
from torch import Tensor

from instamap.geometry import grids, strain
from instamap.motion.motion_model import Half

TOLERANCE = 0.01  # Å that may be left between where a point is sent and where it should be
ROUNDS = 30  # of Newton's method at most
HALVINGS = 6  # of a step that does not help
CLOUD = (
    24  # points along an edge of the box, from the nearest of which it begins again where it failed
)
CHUNK = 1 << 17  # points at once, which bounds memory

Pull = Callable[[Tensor], Tensor]


@torch.no_grad()
def carried(half: Half, y: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Where the material at points y "P 3" (Å) of the state `start` "L" is in the state `end`: x "P
    3", and what is left "P" in Å.

    The point of the common density that is seen at y is c = y + u(y; start); x solves x + u(x; end)
    = c. The common density's own shape, in which fits may differ, cancels. What is left is |x +
    u(x; end) - c|: above `TOLERANCE` x is not to be relied on.
    """
    scene = half.model.scene
    edge = scene.box * scene.pixel_size
    found = [
        invert(
            lambda x: half.displaced(x, end),
            half.displaced(some, start),
            some,
            edge,
            0.5 * scene.pixel_size,
        )
        for some in y.split(CHUNK)
    ]
    return (
        tuple(torch.cat(parts) for parts in zip(*found, strict=True))
        if found
        else (y, y.new_zeros(0))
    )


def invert(
    pull: Pull, target: Tensor, first: Tensor, edge: float, step: float
) -> tuple[Tensor, Tensor]:
    """Points x "P 3" with pull(x) = target "P 3", from the guess `first` on, and the distance
    |pull(x) - target| "P" that is left (Å).

    pull(x) = x + u(x) with a bounded, continuous u takes on every value, so that an x exists; where
    u folds space there are several, of which one is found. Newton's method, with derivatives by
    differences over `step` and steps halved until they help; points at which it fails begin again
    at that point of a lattice over the box (of this edge) whose image is nearest.
    """
    x, left = _newton(pull, target, first, step)
    failed = (left > TOLERANCE).nonzero()[:, 0]
    if len(failed):
        cloud = grids.voxel_centres(CLOUD, edge / CLOUD).reshape(-1, 3).to(x)
        images = pull(cloud)
        near = torch.cat(
            [torch.cdist(some, images).argmin(1) for some in target[failed].split(4096)]
        )
        again, rest = _newton(pull, target[failed], cloud[near], step)
        better = rest < left[failed]
        x[failed[better]], left[failed[better]] = again[better], rest[better]
    return x, left


def _newton(pull: Pull, target: Tensor, first: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """As `invert`, from the guess alone."""
    x = first.clone()
    there = pull(x)
    left = (target - there).norm(dim=1)
    going = torch.arange(len(x), device=x.device)
    for _ in range(ROUNDS):
        going = going[left[going] > TOLERANCE]
        if not len(going):
            break
        x[going], there[going], rest = _improved(
            pull, target[going], x[going], there[going], left[going], step
        )
        helped = rest < left[going]
        left[going] = rest
        going = going[helped]  # a point that no step brings nearer stays
    return x, left


def _improved(
    pull: Pull, target: Tensor, x: Tensor, there: Tensor, left: Tensor, step: float
) -> tuple[Tensor, Tensor, Tensor]:
    """x, pull(x) and what is left after one step of Newton's, or of the part of it that helps."""
    slope = strain.jacobian(pull, x, there, step)
    ridge = 1e-6 * torch.eye(3).to(x)  # where the derivative is singular, the least step
    full = torch.linalg.solve(slope.mT @ slope + ridge, slope.mT @ (target - there)[..., None])[
        ..., 0
    ]
    x = x.clone()
    there = there.clone()
    left = left.clone()
    wanting = torch.arange(len(x), device=x.device)
    for i in range(HALVINGS):
        trial = x[wanting] + 0.5**i * full[wanting]
        image = pull(trial)
        rest = (target[wanting] - image).norm(dim=1)
        good = rest < left[wanting]
        some = wanting[good]
        x[some], there[some], left[some] = trial[good], image[good], rest[good]
        wanting = wanting[~good]
        if not len(wanting):
            break
    return x, there, left
