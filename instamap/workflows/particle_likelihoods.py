"""What particles say of the conformations of a run that was not fitted to them, and the populations
that follow.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from instamap.data import noise
from instamap.data.particles import Particles
from instamap.errors import DataError
from instamap.geometry import grids
from instamap.motion import mixing_weights, populations
from instamap.motion.energy_profile import FitLikelihood
from instamap.motion.motion_model import HalfModel, MotionModel
from instamap.motion.populations import Populations
from instamap.motion.regions import Region
from instamap.progress import SILENT, Progress
from instamap.statistics.particle_images import BASIS_MAPS, ParticleImages
from instamap.statistics.particle_statistics import ParticleStatistics
from instamap.workflows import embed_new, preflight, prepare
from instamap.workflows.settings import Settings

ANGSTROM = "Å"
RELATIVE = "of the map's norm"
MIN_WINDOW = 0.5  # of a mask, where motion is measured
MIN_STEP = 1e-3  # between conformations, of the mean step


def estimate_populations(
    motion: MotionModel,
    particles: Particles,
    regions: Sequence[Region] = (),
    *,
    replicates: int = populations.REPLICATES,
    seed: int = 0,
    progress: Progress = SILENT,
    device: torch.device | str = "cpu",
) -> Populations:
    """The populations of the conformations of a motion. device: where images are held against
    maps.

    particles: the run's, in the box in which conformations place particles
    (`embed_new.open_particles`). Each fit's conformations are held against the particles that the
    fit did not see: maps attract the particles whose noise is in them, which would widen the
    density. Raises DataError where nothing moves.
    """
    if len(motion.halves[0].nodes) < 2:
        raise DataError(
            "the run found no motion: all particles are in one conformation, whose population is"
            " 100 %"
        )
    fits = likelihoods(motion, particles, progress, device)
    return populations.estimate(fits, regions, replicates=replicates, seed=seed, progress=progress)


@torch.no_grad()
def likelihoods(
    motion: MotionModel,
    particles: Particles,
    progress: Progress = SILENT,
    device: torch.device | str = "cpu",
) -> list[FitLikelihood]:
    """What particles say of the conformations of each fit that did not see them."""
    settings = Settings.from_record(motion.settings)
    excluded = preflight.outliers(particles, settings, progress)
    rows, held_out = prepare.draw_sets(particles, settings, excluded)
    number = embed_new.particle_numbers(motion, particles)
    log_probs = _log_prob(motion, particles, number, progress, device)
    used = torch.cat([*rows.values(), held_out])
    fits = []
    for half, log_prob, (name, own) in zip(motion.halves, log_probs, rows.items(), strict=True):
        unseen = used[~torch.isin(used, own)]
        chosen = number[unseen].unique()
        fits.append(of_fit(half, name, chosen, log_prob[chosen]))
    return fits


@torch.no_grad()
def of_fit(half: HalfModel, name: str, particle: Tensor, log_prob: Tensor) -> FitLikelihood:
    """What particles of the numbers "m" say of a fit that did not see them, by log p "m K" given
    each of its conformations.
    """
    order = half.to_shared(half.nodes)[:, 0].argsort()
    nodes = half.to_shared(half.nodes)[order]
    place, unit = _along(half, nodes, half.coarse_maps[order])
    likelihood = mixing_weights.relative_likelihood(log_prob[:, order])
    return FitLikelihood(name, nodes.double(), place, unit, particle, likelihood)


def _log_prob(
    motion: MotionModel,
    particles: Particles,
    number: Tensor,
    progress: Progress,
    device: torch.device | str,
) -> list[Tensor]:
    """log p "m K" of each particle given each conformation of each fit, beyond an empty map."""
    variance = noise.estimate(particles)
    count = int(number.max()) + 1
    found = []
    for half in motion.halves:
        found.append(torch.zeros(count, len(half.nodes), dtype=torch.float64))
    done = 0
    for rows in embed_new.chunks(number):
        own = number[rows]
        images = ParticleStatistics.read(particles, rows, variance, own, device=device)
        chosen = number[rows].unique()
        for half, log_prob in zip(motion.halves, found, strict=True):
            seen = embed_new.with_contrast(images, half)
            seen = replace(seen, nuisance=half.nuisance)
            log_prob[chosen] = of_maps(seen, half.coarse_maps)
        done += len(rows)
        progress.images_read(done, len(number))
    return found


@torch.no_grad()
def of_maps(images: ParticleImages, maps: Tensor) -> Tensor:
    """log p "m K" under each map by itself: without the basis that stands for many."""
    parts = []
    for some in maps.split(BASIS_MAPS):
        gram, h = images.normal_equations(some)
        parts.append(h - 0.5 * gram.diagonal(dim1=1, dim2=2))
    return torch.cat(parts, 1)


def _along(half: HalfModel, nodes: Tensor, maps: Tensor) -> tuple[Tensor, str]:
    """How far along the motion "K" each conformation is, at shared coordinates "K L" in order, and
    the unit.

    Steps are the root mean square way of the density from one to the next, or where each
    conformation has a map of its own, how far the maps differ.
    """
    if half.own_maps is None:
        return _sums(_ways(half, nodes, maps)), ANGSTROM
    flat = maps.flatten(1).double()
    steps = flat.diff(dim=0).norm(dim=1) / flat.norm(dim=1).mean()
    return _sums(steps), RELATIVE


def _sums(steps: Tensor) -> Tensor:
    """Sums "K" of the steps "K-1" before; all steps are alike where they are not known, and none is
    nothing.
    """
    mean = steps.mean()
    if not mean > 0:
        steps = torch.ones_like(steps)
        mean = steps.mean()
    steps = steps.clamp(min=MIN_STEP * float(mean))
    return torch.cat([steps.new_zeros(1), steps.cumsum(0)])


def _ways(half: HalfModel, nodes: Tensor, maps: Tensor) -> Tensor:
    """The root mean square way "K-1" (Å) of the density from each conformation to the next."""
    scene = half.model.scene
    box = maps.shape[-1]
    pixel_size = scene.pixel_size * scene.box / box
    centres = grids.voxel_centres(box, pixel_size).reshape(-1, 3)
    inside = half.model.window(centres) > MIN_WINDOW
    points = centres[inside]
    weight = maps.clamp(min=0).flatten(1)[:, inside].double()
    sources = [half.pull_back(points, z).double() for z in nodes]
    ways = []
    for number, (start, end) in enumerate(pairwise(sources)):
        square = (end - start).square().sum(1)
        both = weight[number] + weight[number + 1]
        ways.append((both @ square / both.sum()).sqrt())
    return torch.stack(ways)
