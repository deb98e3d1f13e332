"""What comes and goes: regions of the density that each particle has or has not, found at low
resolution in the linear subspace, whether or not others move meanwhile.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from instamap.fitting.loop import FALSE_POSITIVE_RATE
from instamap.motion import linear_subspace, presence
from instamap.motion.coordinates import MotionSubspace
from instamap.motion.domains import soft_masks
from instamap.motion.find_motion import CoarseMotion
from instamap.motion.kmeans import kmeans, nearest
from instamap.motion.presence import PresenceModel, SubspaceEquations
from instamap.statistics.particle_images import ParticleImages

MAX_FACTORS = 5  # with and without which particles are held against each other
MAX_OTHERS = 2  # of these, that are no regions: what moves has such factors too
MAX_SAMPLE = 3000  # particles, at most, in which they are looked for
START_SAMPLE = 1000  # in which their beginnings are tried
STARTS = 10  # pieces of the density, in each of which a search begins
MATERIAL = 0.2  # of the highest density: where the mean map has material
# What a region takes away where it should add, in sums of squares over the material. What moves has
# left one place for another; what comes and goes has not.
LARGEST_LOSS = 0.2
LARGEST_LIKENESS = 0.9  # of a region to the mean map: what is all of it is contrast
MIN_AGREEMENT = 0.5  # of the halves' occupancies of held-out particles: they are of one region
MIN_SHARE = 0.05  # of the particles that have a region, or have it not
REGION_EXTEND = 1  # voxels
REGION_EDGE = 1
MAP_STEPS = 6  # of conjugate gradients for the maps of regions


@dataclass(frozen=True)
class RegionSearch:
    """A model of the subspace whose first `count` factors are regions that come and go."""

    model: PresenceModel
    count: int


@dataclass(frozen=True)
class Composition:
    """Regions that come and go.

    rest "N N N": the map of what is always there; regions "R N N N": what is added where a region
    is there. present "m R", held_out_present "h R": how probably particles have each. share: of the
    particles that have it.
    """

    rest: Tensor
    regions: Tensor
    present: Tensor
    held_out_present: Tensor
    share: list[float]

    @property
    def count(self) -> int:
        """The number of regions."""
        return len(self.regions)


def search(motion: CoarseMotion, generator: torch.Generator) -> RegionSearch:
    """The regions that come and go in the subspace of a set.

    Factors are added one by one, each from the best of several pieces of the density, as long as
    validation particles gain more than chance. Those that add density and take none away are
    regions.
    """
    subspace = motion.subspace
    chosen = torch.randperm(motion.sample.count, generator=generator)
    sample = SubspaceEquations.of(motion.sample.select(chosen[:MAX_SAMPLE]), subspace.maps)
    validation = SubspaceEquations.of(motion.validation, subspace.maps)
    starts = _starts(subspace, generator)
    model = presence.without_factors(sample)
    before = validation.mean(presence.infer(model, validation).log_prob)
    chance = math.log(MAX_FACTORS / FALSE_POSITIVE_RATE)
    while model.count < MAX_FACTORS:
        more = presence.with_one_more(model, sample, starts, START_SAMPLE)
        now = validation.mean(presence.infer(more, validation).log_prob)
        if (now - before) * motion.validation_count < chance:
            break
        model = more
        before = now
        if model.count - len(_regions(subspace, model)) > MAX_OTHERS:
            break
    return _regions_first(subspace, model)


def agree(
    searches: Mapping[str, RegionSearch], motions: Mapping[str, CoarseMotion]
) -> dict[str, RegionSearch]:
    """The regions that all sets have found, in one order: those whose occupancies of held-out
    particles go together.
    """
    names = list(searches)
    first = names[0]
    found = {
        name: _present(searches[name], motions[name], motions[name].held_out) for name in names
    }
    kept = list(range(searches[first].count))
    partner: dict[str, dict[int, int]] = {}
    for name in names[1:]:
        partner[name] = _pairs(found[first], found[name])
        kept = [number for number in kept if number in partner[name]]
    agreed = {}
    for name, one in searches.items():
        chosen = kept if name == first else [partner[name][number] for number in kept]
        others = [number for number in range(one.model.count) if number not in chosen]
        agreed[name] = RegionSearch(one.model.select([*chosen, *others]), len(kept))
    return agreed


def _pairs(first: Tensor, second: Tensor) -> dict[int, int]:
    """For regions with occupancies "h R" the region of `second` "h S" that goes with each."""
    count = min(first.shape[1], second.shape[1])
    if not count:
        return {}
    both = torch.cat([first, second], 1).T
    correlation = torch.corrcoef(both)[: first.shape[1], first.shape[1] :].nan_to_num(0.0)
    best: dict[int, int] = {}
    while len(best) < count:
        highest = int(correlation.argmax())
        row, column = divmod(highest, correlation.shape[1])
        if correlation[row, column] < MIN_AGREEMENT:
            break
        best[row] = column
        correlation[row] = -1.0
        correlation[:, column] = -1.0
    return best


def measure(motion: CoarseMotion, searched: RegionSearch) -> Composition:
    """The maps of regions at low resolution, each in a window of its own, and which particles have
    them.
    """
    subspace = motion.subspace
    model = searched.model
    size = motion.sample.pixel_size
    factors = _maps(subspace, model.factors[: searched.count])
    windows = soft_masks(factors.clamp(min=0), size, REGION_EXTEND, REGION_EDGE)
    offset = _maps(subspace, model.offset[None])
    always = _maps(subspace, (model.share[:, None] * model.factors)[searched.count :].sum(0)[None])
    rest = subspace.mean + offset[0] + always[0]
    start = torch.cat([rest[None], factors * windows])
    order = torch.arange(min(MAX_SAMPLE, motion.sample.count))
    sample = motion.sample.select(order)
    chance = _chance(searched, motion, sample)
    present = presence.patterns(model.count)[:, : searched.count]
    known = torch.cat([torch.ones(len(present), 1, dtype=torch.float64), present], 1)
    mean = chance @ known
    second = torch.einsum("mc,cx,cy->mxy", chance, known, known)
    allowed = torch.cat([subspace.window[None], windows])
    maps = linear_subspace.update_maps(sample, start, mean, second, allowed, MAP_STEPS)
    there = _present(searched, motion, motion.fitted)
    held_out = _present(searched, motion, motion.held_out)
    share = [motion.fitted.mean(one) for one in there.T]
    return Composition(maps[0], maps[1:], there, held_out, share)


def fill_up(particles: ParticleImages, regions: Tensor, present: Tensor) -> ParticleImages:
    """The particles as they would be if all had all regions "R N N N", of which they have `present`
    "m R": what is missing is added to their images.
    """
    missing = (1 - present).float()
    return particles.with_added(regions, missing)


def _chance(searched: RegionSearch, motion: CoarseMotion, particles: ParticleImages) -> Tensor:
    """How probably particles "m" have each pattern of factors."""
    equations = SubspaceEquations.of(particles, motion.subspace.maps)
    return presence.infer(searched.model, equations).chance


def _present(searched: RegionSearch, motion: CoarseMotion, particles: ParticleImages) -> Tensor:
    """How probably particles have each region, "m R"."""
    patterns = presence.patterns(searched.model.count)[:, : searched.count]
    return _chance(searched, motion, particles) @ patterns


def _starts(subspace: MotionSubspace, generator: torch.Generator) -> Tensor:
    """Directions "S q" of the subspace that are nearest to compact pieces of the mean map."""
    mean = subspace.mean
    material = mean > MATERIAL * mean.max()
    voxels = material.nonzero().double()
    piece = nearest(voxels, kmeans(voxels, STARTS, generator))
    components = subspace.maps[1:][:, material].double()
    density = mean[material].double()
    pieces = torch.nn.functional.one_hot(piece).T * density
    projected = torch.linalg.lstsq(components.T, pieces.T).solution.T
    return projected[projected.norm(dim=1) > 0]


def _maps(subspace: MotionSubspace, z: Tensor) -> Tensor:
    """Maps "n N N N" of the subspace at z "n q", less the mean map."""
    return torch.einsum("nq,qzyx->nzyx", z.float(), subspace.maps[1:])


def _regions(subspace: MotionSubspace, model: PresenceModel) -> list[int]:
    """The numbers of factors that add density where there is material, and take none away."""
    mean = subspace.mean
    material = mean > MATERIAL * mean.max()
    density = mean[material]
    numbers = []
    for number, factor in enumerate(_maps(subspace, model.factors)):
        values = factor[material]
        if values @ density < 0:
            values = -values
        lost = values.clamp(max=0).square().sum()
        added = values.clamp(min=0).square().sum()
        likeness = values @ density / (values.norm() * density.norm())
        share = float(model.share[number])
        common = MIN_SHARE < share < 1 - MIN_SHARE
        if lost < LARGEST_LOSS * added and likeness < LARGEST_LIKENESS and common:
            numbers.append(number)
    return numbers


def _regions_first(subspace: MotionSubspace, model: PresenceModel) -> RegionSearch:
    """The model with its regions first, each of which adds density where it is there."""
    regions = _regions(subspace, model)
    material = subspace.mean * (subspace.mean > MATERIAL * subspace.mean.max())
    for number in regions:
        factor = _maps(subspace, model.factors[[number]])[0]
        if (factor * material).sum() < 0:
            model = model.mirrored(number)
    others = [number for number in range(model.count) if number not in regions]
    return RegionSearch(model.select([*regions, *others]), len(regions))
