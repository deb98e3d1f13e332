"""Domains of which some come and go: what is found of a composition, alone or beside a motion, as
one description of the conformations.
"""

from dataclasses import replace

import torch
from torch import Tensor

from instamap.motion import find_motion, gains, presence, ring
from instamap.motion.composition import Composition
from instamap.motion.domains import Domains, Placement, add_up, soft_masks
from instamap.motion.find_domains import MASK_EDGE, MASK_EXTEND, CoarseDomains
from instamap.motion.find_motion import CoarseMotion, Description
from instamap.motion.gains import Conformations
from instamap.motion.ring import Shape

FIRST_DOMAIN = 0  # the number of the one that does not move
ALWAYS = -1  # in place of the occupancy of a domain that does not come and go


def alone(composition: Composition, pixel_size: float) -> CoarseDomains:
    """Domains that stay where they are: what is always there, and each region."""
    count = 1 + composition.count
    densities = torch.cat([composition.rest[None], composition.regions])
    placement = _still(1, count)
    occupancy = torch.arange(count) + ALWAYS
    nodes = torch.zeros(1, 0)
    masks = soft_masks(densities, pixel_size, MASK_EXTEND, MASK_EDGE, one_level=True)
    domains = Domains(masks, nodes, placement, pixel_size, occupancy=occupancy)
    return CoarseDomains(domains, densities)


def beside(motion: CoarseMotion, composition: Composition, moving: CoarseDomains) -> CoarseDomains:
    """The domains of particles that have all regions, and each region: as a domain of its own that
    is taken off the still one, or as the one of those that move which is most like it, whichever
    makes validation particles likelier.
    """
    count = len(moving.densities)
    places = [_mean_place(moving, number) for number in range(count)]
    domains = replace(moving.domains, occupancy=torch.full((count,), ALWAYS))
    composed = CoarseDomains(domains, moving.densities)
    for number, region in enumerate(composition.regions):
        ways = [_taken_off(composed, region, number)]
        owner = _owner(places, region)
        if owner != FIRST_DOMAIN and _occupancy(composed)[owner] == ALWAYS:
            ways.append(_owned(composed, owner, number))
        composed = max(ways, key=lambda one: _log_prob(motion, one))
    size = moving.domains.pixel_size
    masks = soft_masks(composed.densities, size, MASK_EXTEND, MASK_EDGE, one_level=True)
    return replace(composed, domains=replace(composed.domains, masks=masks))


def _taken_off(domains: CoarseDomains, region: Tensor, number: int) -> CoarseDomains:
    """With a region as a domain that stays where it is, taken off the still one."""
    before = domains.domains
    rest = domains.densities.clone()
    rest[FIRST_DOMAIN] -= region
    added = _still(len(before.nodes), 1)
    placement = Placement(
        torch.cat([before.placement.turn, added.turn.to(before.placement.turn)], 1),
        torch.cat([before.placement.shift, added.shift.to(before.placement.shift)], 1),
    )
    occupancy = torch.cat([_occupancy(domains), torch.tensor([number])])
    masks = torch.cat([before.masks, (region > 0).to(before.masks)[None]])
    after = replace(before, masks=masks, placement=placement, occupancy=occupancy)
    return CoarseDomains(after, torch.cat([rest, region[None]]))


def _owned(domains: CoarseDomains, owner: int, number: int) -> CoarseDomains:
    """With the domain `owner` as the region: the whole of it comes and goes."""
    occupancy = _occupancy(domains).clone()
    occupancy[owner] = number
    return replace(domains, domains=replace(domains.domains, occupancy=occupancy))


def _occupancy(domains: CoarseDomains) -> Tensor:
    """Which region each domain "M" is, `ALWAYS` for none."""
    occupancy = domains.domains.occupancy
    assert occupancy is not None  # some come and go
    return occupancy


def _log_prob(motion: CoarseMotion, domains: CoarseDomains) -> float:
    """log p of validation particles, which may lack any region: the mean."""
    return _conformations(domains, domains.domains.nodes.double()).log_prob(motion.validation)


def _conformations(domains: CoarseDomains, nodes: Tensor) -> Conformations:
    """The conformations at `nodes` "K L" of the motion, with and without each region."""
    count = int(_occupancy(domains).max()) + 1
    z = with_patterns(nodes, count)
    return Conformations(domains.maps(z.float()), z, count)


def describe(
    motion: CoarseMotion,
    domains: CoarseDomains,
    shape: Shape,
    of_one_map: float,
) -> Description:
    """The conformations of domains of which some come and go, with and without each, and what test
    particles gain over log p of theirs under one map: `of_one_map`, or that of the best of these
    conformations alone if they are likelier.
    """
    nodes = domains.domains.nodes.double()
    if nodes.shape[1]:
        nodes = ring.with_middles(nodes, shape)
    conformations = _conformations(domains, nodes)
    alone = gains.log_prob_of_one_map(motion.validation, motion.test, [conformations.one_map])
    description = find_motion.with_gain(motion, conformations, max(of_one_map, alone))
    return replace(description, domains=domains)


def with_patterns(z: Tensor, count: int) -> Tensor:
    """Coordinates "2^R·K L+R" of conformations at z "K L" with each of the `presence.patterns` of
    `count` regions.
    """
    present = presence.patterns(count).to(z)
    motion = z.repeat(len(present), 1)
    return torch.cat([motion, present.repeat_interleave(len(z), 0)], 1)


def _still(conformations: int, domains: int) -> Placement:
    """The placement of domains that stay where they are."""
    turn = torch.eye(3).expand(conformations, domains, 3, 3)
    return Placement(turn.contiguous(), torch.zeros(conformations, domains, 3))


def _mean_place(moving: CoarseDomains, number: int) -> Tensor:
    """The mean density "N N N" of a domain over all conformations."""
    placement = moving.domains.placement
    density = moving.densities[[number]]
    total = torch.zeros_like(density[0])
    for k in range(len(moving.domains.nodes)):
        one = Placement(
            placement.turn[[k]][:, [number]],
            placement.shift[[k]][:, [number]],
        )
        total = total + add_up(density, one, moving.domains.pixel_size)
    return total / len(moving.domains.nodes)


def _owner(places: list[Tensor], region: Tensor) -> int:
    """The number of the domain whose mean density is most like a region."""
    likeness = [float((place * region).sum() / place.norm().clamp(min=1e-12)) for place in places]
    return max(range(len(likeness)), key=likeness.__getitem__)
