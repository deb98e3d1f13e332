"""Rigid domains at low resolution: what a bending moves as one body, then followed from one
conformation to the next along the motion.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.fourier.rescale import rescale
from instamap.geometry import grids, rotations
from instamap.geometry.sampling import sample_volume
from instamap.model import Model
from instamap.motion.domains import Domains, Placement, nearest_rotation, soft_masks
from instamap.motion.transport import invert
from instamap.statistics.solve import conjugate_gradients
from instamap.statistics.statistics import Statistics

OVERSAMPLING = 2  # of densities, between whose voxels values are interpolated linearly
MATERIAL = 0.25  # of the highest density: where the bending is asked what it moves
CLUSTER_ROUNDS = 30
MIN_POINTS = 8  # of material in a domain
BORDER = 0.5  # of a pixel: σ of the border between domains
REACH = 2.5  # pixels that a moving domain extends beyond its material
EDGE = 1.0  # pixels over which it ends there
JOINT_STEPS = 5  # of conjugate gradients for all densities at once
PASSES = 1  # over all conformations once each has been reached
GROWTH = 1.6  # of the number of conformations reached, between two fits of the densities
FIT_STEPS = 6  # of Gauss-Newton for one conformation
TRIALS = 4  # of the size of a step
TURN_STEP = 0.03  # radians: of differences
SHIFT_STEP = 0.05  # pixels: of differences
LARGEST_TURN = 0.35  # radians in one step
LARGEST_SHIFT = 1.2  # pixels in one step
FIRST_DAMPING = 1e-3
LEAST_DAMPING = 1e-4
MORE_DAMPING = 10.0
SETTLED = 0.3  # nats: a step that gains less is the last
MASK_EXTEND = 1  # voxels
MASK_EDGE = 1


@dataclass(frozen=True)
class CoarseDomains:
    """Domains at low resolution and their densities "M N N N"."""

    domains: Domains
    densities: Tensor

    def maps(self, z: Tensor) -> Tensor:
        """Maps "n N N N" at coordinates z "n L"."""
        return torch.stack([self.domains.map(self.densities, one) for one in z])


@dataclass(frozen=True)
class _Search:
    """What stays the same while domains are followed: the statistics of K conformations, the voxels
    x "P 3" (Å), and the windows "M N N N" in which densities may be.
    """

    statistics: Sequence[Statistics]
    x: Tensor
    windows: Tensor

    @property
    def box(self) -> int:
        return self.statistics[0].edge

    @property
    def pixel_size(self) -> float:
        return self.statistics[0].pixel_size

    def moved(self, fine: Tensor, turn: Tensor, shift: Tensor) -> Tensor:
        """A density that is given on a finer lattice, after its material went from y to turn y +
        shift.
        """
        there = (self.x - shift) @ turn
        values = sample_volume(fine, there, self.pixel_size / OVERSAMPLING)
        return values.view(self.box, self.box, self.box)

    def finer(self, densities: Tensor) -> Tensor:
        return rescale(densities, OVERSAMPLING * self.box)


def find(
    model: Model,
    z: Tensor,
    maps: Tensor,
    statistics: Sequence[Statistics],
    count: int,
) -> CoarseDomains | None:
    """`count` domains of a bent density, of which the first is still; None where the bending moves
    no such number of them.

    z "K L": the conformations, with maps "K N N N" of their own and statistics. What material the
    bending moves as one body starts a domain, in the conformation in which the common density is
    least displaced. From there each conformation is reached from its neighbour: the turns and
    shifts of the domains by Gauss-Newton on the normal equations, their densities by conjugate
    gradients for all conformations reached so far.
    """
    scene = model.scene
    box = scene.box
    x = grids.voxel_centres(box, scene.pixel_size).reshape(-1, 3).float()
    points, density = _material(model, x)
    if len(points) < count * MIN_POINTS:
        return None
    places = _places(model, points, z)
    labels = _clusters(points, places, density, count)
    if min(torch.bincount(labels, minlength=count)) < MIN_POINTS:
        return None
    placement = _placement(points, places, density, labels)
    first = int((places - points).norm(dim=2).mean(1).argmin())
    densities, windows = _split(maps[first], scene.mask, x, points, labels, scene.pixel_size)
    if scene.focus is not None:  # what is outside of it is of the still domain
        windows[1:] *= scene.focus
        densities = densities * windows
    search = _Search(statistics, x, windows)
    order = (z - z[first]).norm(dim=1).argsort().tolist()
    densities, placement = _follow(search, densities, placement, z, order)
    for _ in range(PASSES):
        densities = _fit_densities(search, densities, placement, order)
        placement = _fit_all(search, densities, placement, order)
    densities = _fit_densities(search, densities, placement, order)
    masks = soft_masks(densities * windows, scene.pixel_size, MASK_EXTEND, MASK_EDGE)
    if scene.focus is not None:
        masks[1:] *= scene.focus
    domains = Domains(masks, z, placement, scene.pixel_size, scene.focus)
    return CoarseDomains(domains, densities * windows)


def _material(model: Model, x: Tensor) -> tuple[Tensor, Tensor]:
    """Points "P 3" of the common density that are dense, and their density "P"."""
    with torch.no_grad():
        values = model.raster().reshape(-1)
    dense = values > MATERIAL * values.max()
    return x[dense], values[dense]


@torch.no_grad()
def _places(model: Model, points: Tensor, z: Tensor) -> Tensor:
    """Where the material at "P 3" of the common density is in the conformations z, "K P 3"."""
    scene = model.scene
    places = []
    for one in z:

        def pull_back(y: Tensor, one: Tensor = one) -> Tensor:
            return model.bind(one[None])(y[None])[0]

        edge = scene.box * scene.pixel_size
        place, _ = invert(pull_back, points, points.clone(), edge, 0.5 * scene.pixel_size)
        places.append(place)
    return torch.stack(places)


def _clusters(points: Tensor, places: Tensor, density: Tensor, count: int) -> Tensor:
    """The number "P" of the rigid body that moves each point most nearly as the bending does.

    By Lloyd's rounds from a start by how far points go. Bodies are counted from the stillest one.
    """
    excursion = (places - places.mean(0)).norm(dim=2).square().mean(0).sqrt()
    rank = excursion.argsort().argsort()
    labels = rank * count // len(rank)
    for _ in range(CLUSTER_ROUNDS):
        before = labels
        errors = []
        for body in range(count):
            weight = (labels == body) * density + 1e-6 * density
            turn, shift = _rigid(points, places, weight)
            moved = points @ turn.mT + shift[:, None]
            errors.append((moved - places).square().sum((0, 2)))
        labels = torch.stack(errors).argmin(0)
        if torch.equal(before, labels):
            break
    means = [excursion[labels == body].mean().nan_to_num(torch.inf) for body in range(count)]
    rank = torch.stack(means).argsort().argsort()
    return rank[labels]


def _rigid(points: Tensor, places: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The turns "K 3 3" and shifts "K 3" that bring points "P 3" nearest to places "K P 3"
    (Kabsch 1976).
    """
    share = weight / weight.sum()
    centre = share @ points
    centres = torch.einsum("p,kpi->ki", share, places)
    covariance = torch.einsum("p,pi,kpj->kij", share, points - centre, places - centres[:, None])
    turn = nearest_rotation(covariance.mT)
    return turn, centres - turn @ centre


def _placement(points: Tensor, places: Tensor, density: Tensor, labels: Tensor) -> Placement:
    """Where the bending puts each body; the first one stays where it is."""
    count = int(labels.max()) + 1
    turns = [torch.eye(3).expand(len(places), 3, 3)]
    shifts = [torch.zeros(len(places), 3)]
    for body in range(1, count):
        turn, shift = _rigid(points, places, density * (labels == body))
        turns.append(turn)
        shifts.append(shift)
    return Placement(torch.stack(turns, 1).float(), torch.stack(shifts, 1).float())


def _split(
    volume: Tensor,
    window: Tensor | None,
    x: Tensor,
    points: Tensor,
    labels: Tensor,
    pixel_size: float,
) -> tuple[Tensor, Tensor]:
    """The densities "M N N N" of bodies in a map of one conformation, and where each may have
    density: the still one anywhere in the mask, others near their material.
    """
    count = int(labels.max()) + 1
    distances = []
    for body in range(count):
        distances.append(torch.cdist(x, points[labels == body]).amin(1))
    distance = torch.stack(distances)
    share = torch.softmax(-distance / (BORDER * pixel_size), 0)
    near = ((REACH + EDGE) - distance / pixel_size) / EDGE
    windows = near.clamp(0, 1).view(count, *volume.shape)
    density = share.view_as(windows) * windows * volume
    if window is not None:
        windows = torch.cat([window[None], windows[1:]])
    return density.float(), windows.float()


def _follow(
    search: _Search,
    densities: Tensor,
    placement: Placement,
    z: Tensor,
    order: Sequence[int],
) -> tuple[Tensor, Placement]:
    """Densities and placement once all conformations were reached, each from its nearest neighbour
    among those before it, or from where the bending had it.
    """
    fine = search.finer(densities * search.windows)
    centres = _centres(search, fine)
    reached = [order[0]]
    next_fit = 3.0
    for k in order[1:]:
        distance = (z[reached] - z[k]).norm(dim=1)
        neighbour = reached[int(distance.argmin())]
        fits = [_fit_one(search, fine, centres, placement[[one]], k) for one in (neighbour, k)]
        best = min(fits, key=lambda fit: fit[1])
        placement = _with_one(placement, k, best[0])
        reached.append(k)
        if len(reached) >= next_fit:
            densities = _fit_densities(search, densities, placement, reached)
            fine = search.finer(densities * search.windows)
            centres = _centres(search, fine)
            next_fit = len(reached) * GROWTH
    return densities, placement


def _with_one(placement: Placement, k: int, one: Placement) -> Placement:
    turn = placement.turn.clone()
    shift = placement.shift.clone()
    turn[k] = one.turn[0]
    shift[k] = one.shift[0]
    return Placement(turn, shift)


def _fit_all(
    search: _Search,
    densities: Tensor,
    placement: Placement,
    order: Sequence[int],
) -> Placement:
    """The placement, fitted again in each conformation, from where it is."""
    fine = search.finer(densities * search.windows)
    centres = _centres(search, fine)
    for k in order:
        one, _ = _fit_one(search, fine, centres, placement[[k]], k)
        placement = _with_one(placement, k, one)
    return placement


def _fit_one(
    search: _Search,
    fine: Tensor,
    centres: Tensor,
    start: Placement,
    k: int,
) -> tuple[Placement, float]:
    """The single placement that makes conformation k likeliest, and -log p there, from `start` on.

    Gauss-Newton with damping (Levenberg, Marquardt).
    """
    statistics = search.statistics[k]
    placement = start
    parts = _parts(search, fine, placement)
    volume = parts.sum(0)
    loss = float(statistics.loss(volume))
    damping = FIRST_DAMPING
    for _ in range(FIT_STEPS):
        slopes = _slopes(search, fine, placement, centres, parts)
        residual = statistics.b - statistics.apply(volume)
        curved = torch.stack([statistics.apply(slope) for slope in slopes])
        hessian = torch.einsum("azyx,bzyx->ab", slopes, curved).double()
        right = torch.einsum("azyx,zyx->a", slopes, residual).double()
        before = loss
        for _ in range(TRIALS):
            step = torch.linalg.solve(hessian + damping * _diagonal(hessian), right)
            trial = _stepped(placement, centres, step.view(-1, 6).float(), search.pixel_size)
            trial_parts = _parts(search, fine, trial)
            trial_loss = float(statistics.loss(trial_parts.sum(0)))
            if trial_loss < loss:
                placement, parts, loss = trial, trial_parts, trial_loss
                volume = parts.sum(0)
                break
            damping *= MORE_DAMPING
        if before - loss < SETTLED:
            break
        damping = max(LEAST_DAMPING, damping / MORE_DAMPING)
    return placement, loss


def _diagonal(hessian: Tensor) -> Tensor:
    """The diagonal alone, above zero also where a slope vanishes."""
    diagonal = hessian.diagonal()
    return torch.diag(diagonal + 1e-6 * diagonal.max() + 1e-12)


def _parts(search: _Search, fine: Tensor, placement: Placement) -> Tensor:
    """Each domain's part "M N N N" of the map."""
    moved = [
        search.moved(density, turn, shift)
        for density, turn, shift in zip(fine, placement.turn[0], placement.shift[0], strict=True)
    ]
    return torch.stack(moved)


def _centres(search: _Search, fine: Tensor) -> Tensor:
    """Centres of mass "M 3" (Å) of the domains, about which they are turned."""
    box = fine.shape[-1]
    voxels = grids.voxel_centres(box, search.pixel_size / OVERSAMPLING).to(fine)
    weight = fine.clamp(min=0)
    mass = weight.flatten(1).sum(1).clamp(min=1e-12)
    return torch.einsum("mzyx,zyxc->mc", weight, voxels) / mass[:, None]


def _slopes(
    search: _Search,
    fine: Tensor,
    placement: Placement,
    centres: Tensor,
    parts: Tensor,
) -> Tensor:
    """Derivatives "6 (M-1) N N N" of the map by turns (radians) and shifts (Å) of the domains that
    move, by differences.
    """
    slopes = []
    steps = [TURN_STEP] * 3 + [SHIFT_STEP * search.pixel_size] * 3
    for m in range(1, len(fine)):
        for axis, size in enumerate(steps):
            step = torch.zeros(len(fine) - 1, 6)
            step[m - 1, axis] = size
            there = _stepped(placement, centres, step, search.pixel_size)
            part = search.moved(fine[m], there.turn[0, m], there.shift[0, m])
            slopes.append((part - parts[m]) / size)
    return torch.stack(slopes)


def _stepped(placement: Placement, centres: Tensor, step: Tensor, pixel_size: float) -> Placement:
    """A single placement after the domains that move made steps "M-1 6": turns about their centres
    (radians), shifts (Å), none longer than is safe.
    """
    turn = placement.turn[:, 1:]
    shift = placement.shift[:, 1:]
    rotation = _shortened(step[:, :3], LARGEST_TURN)
    translation = _shortened(step[:, 3:], LARGEST_SHIFT * pixel_size)
    more = rotations.from_rotvec(rotation)
    centre = torch.einsum("nmij,mj->nmi", turn, centres[1:]) + shift
    relative = torch.einsum("mij,nmj->nmi", more, shift - centre)
    moved = Placement(more @ turn, relative + centre + translation)
    return Placement(
        torch.cat([placement.turn[:, :1], moved.turn], 1),
        torch.cat([placement.shift[:, :1], moved.shift], 1),
    )


def _shortened(vector: Tensor, longest: float) -> Tensor:
    length = vector.norm(dim=-1, keepdim=True)
    return vector * (longest / length.clamp(min=longest))


def _fit_densities(
    search: _Search,
    start: Tensor,
    placement: Placement,
    chosen: Sequence[int],
) -> Tensor:
    """The densities "M N N N" that together make the chosen conformations likeliest, after some
    steps of conjugate gradients.
    """

    def gradient(densities: Tensor, with_data: bool) -> Tensor:
        leaf = densities.detach().requires_grad_(True)
        fine = search.finer(leaf * search.windows)
        fine_leaf = fine.detach().requires_grad_(True)
        for k in chosen:
            volume = _parts(search, fine_leaf, placement[[k]]).sum(0)
            statistics = search.statistics[k]
            slope = statistics.apply(volume.detach())
            if with_data:
                slope = slope - statistics.b
            volume.backward(slope)  # type: ignore[no-untyped-call]
        assert fine_leaf.grad is not None  # there is a conformation
        fine.backward(fine_leaf.grad)  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        return leaf.grad

    def apply(densities: Tensor) -> Tensor:
        return gradient(densities, with_data=False)

    residual = -gradient(start, with_data=True)
    return conjugate_gradients(apply, start, residual, JOINT_STEPS)
