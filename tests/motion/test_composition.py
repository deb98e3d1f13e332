"""Regions that come and go, in images of Gaussian blobs whose transforms are known."""

import pytest
import torch
from support.blobs import BOX, PIXEL, WINDOW, blob, images, mean_map, seeded

from instamap.motion import composed_domains, composition, linear_subspace, posterior
from instamap.motion.composition import RegionSearch
from instamap.motion.coordinates import MotionSubspace
from instamap.motion.domains import Domains, Placement, soft_masks
from instamap.motion.find_domains import CoarseDomains
from instamap.motion.find_motion import CoarseMotion
from instamap.motion.ring import Shape
from instamap.statistics.particle_statistics import ParticleStatistics

CENTRES = torch.tensor([[-3.0, 0, 0], [3, 1, -1], [0, -4, 2]])
LEVEL = 0.05


def seen(present: torch.Tensor, generator: torch.Generator, level: float = LEVEL):
    """A blob that is always there, beside two that are as `present` "m 2" says."""
    heights = torch.cat([torch.ones(len(present), 1), present.float()], 1)
    centres = CENTRES.expand(len(present), -1, -1)
    return images(centres, heights, level, generator)


def a_motion(fitted: ParticleStatistics, held_out: ParticleStatistics, dimensions: int):
    mean = mean_map(fitted)
    g = seeded(9)
    found = linear_subspace.fit(fitted, held_out, mean, WINDOW, dimensions, g)
    subspace = MotionSubspace(mean, WINDOW, found.maps, found.held_out)
    count = held_out.count
    return CoarseMotion(fitted, held_out, fitted, held_out, held_out, subspace, count, count)


@pytest.fixture(scope="module")
def two_regions():
    g = seeded(5)
    present = (torch.rand(600, 2, generator=g) < torch.tensor([0.5, 0.4])).double()
    held_out = (torch.rand(200, 2, generator=g) < torch.tensor([0.5, 0.4])).double()
    return a_motion(seen(present, g), seen(held_out, g), 3), present, held_out


@pytest.fixture(scope="module")
def found(two_regions):
    return composition.search(two_regions[0], seeded(1))


def test_parts_that_come_and_go_are_found(two_regions, found):
    motion, present, held_out = two_regions
    assert found.count == 2
    measured = composition.measure(motion, found)
    both = torch.corrcoef(torch.cat([measured.present, present], 1).T)[:2, 2:]
    order = both.argmax(1)
    assert sorted(order.tolist()) == [0, 1] and float(both.amax(1).min()) > 0.9
    of_held_out = torch.cat([measured.held_out_present, held_out], 1).T
    assert float(torch.corrcoef(of_held_out)[:2, 2:].amax(1).min()) > 0.9
    torch.testing.assert_close(
        torch.tensor(measured.share), present.mean(0)[order].float(), atol=0.03, rtol=0
    )
    for region, number in zip(measured.regions, order, strict=True):
        want = blob(*CENTRES[1 + number].tolist())
        assert float(torch.corrcoef(torch.stack([region.flatten(), want.flatten()]))[0, 1]) > 0.9
        assert 0.7 < float(region.max()) < 1.3


def test_a_blob_that_moves_is_no_part_that_comes_and_goes():
    """It is at one of two places: two states, but nothing is lost."""
    g = seeded(6)

    def at_one_of_two(count: int) -> ParticleStatistics:
        side = 2.0 * torch.randint(0, 2, (count,), generator=g) - 1
        moved = torch.stack([2.5 * side, torch.full_like(side, 3.0), torch.zeros(count)], 1)
        still = torch.tensor([0.0, -3, 0]).expand(count, -1)
        return images(torch.stack([still, moved], 1), torch.ones(count, 2), LEVEL, g)

    motion = a_motion(at_one_of_two(500), at_one_of_two(200), 2)
    assert composition.search(motion, seeded(1)).count == 0


def test_contrast_is_no_part_that_comes_and_goes():
    g = seeded(7)

    def of_two_contrasts(count: int) -> ParticleStatistics:
        contrast = 0.5 + torch.randint(0, 2, (count,), generator=g)
        heights = contrast[:, None].expand(-1, 3)
        return images(CENTRES.expand(count, -1, -1), heights, LEVEL, g)

    motion = a_motion(of_two_contrasts(500), of_two_contrasts(200), 2)
    assert composition.search(motion, seeded(1)).count == 0


def test_halves_name_their_parts_alike(two_regions, found):
    """The second half has found them in another order, and one that the first has not."""
    motion, _, _ = two_regions
    turned = RegionSearch(found.model.select([1, 0]), 2)
    agreed = composition.agree(
        {"half1": found, "half2": turned}, {"half1": motion, "half2": motion}
    )
    torch.testing.assert_close(agreed["half2"].model.factors, found.model.factors)
    one = RegionSearch(found.model.select([1, 0]), 1)
    agreed = composition.agree({"half1": found, "half2": one}, {"half1": motion, "half2": motion})
    assert [half.count for half in agreed.values()] == [1, 1]
    torch.testing.assert_close(agreed["half1"].model.factors[0], found.model.factors[1])


def test_filled_up_particles_have_all_parts():
    """Without noise they say of any map what those say that have all regions from the beginning."""
    present = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    some = seen(present, seeded(8), float("inf"))
    regions = torch.stack([blob(*centre) for centre in CENTRES[1:].tolist()])
    filled = composition.fill_up(some, regions, present)
    whole = seen(torch.ones_like(present), seeded(8), float("inf"))
    maps = torch.stack([blob(1.0, 0.0, -2.0), blob(0.0, 3.0, 0.0)])
    _, got = filled.normal_equations(maps)
    _, want = whole.normal_equations(maps)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


def test_domains_that_come_and_go_are_told_of_each_particle(two_regions, found):
    motion, _, held_out = two_regions
    measured = composition.measure(motion, found)
    domains = composed_domains.alone(measured, PIXEL)
    described = composed_domains.describe(motion, domains, Shape(1), 0.0)
    assert described.z.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    whole = measured.rest + measured.regions.sum(0)
    torch.testing.assert_close(described.maps[3], whole)
    torch.testing.assert_close(described.maps[0], measured.rest)
    told = posterior.infer(motion.held_out, described.maps, described.z, 2).z
    assert bool(((told >= 0) & (told <= 1)).all())
    both = torch.corrcoef(torch.cat([told, held_out], 1).T)[:2, 2:]
    assert float(both.amax(1).min()) > 0.9
    half = domains.maps(torch.tensor([[0.5, 0.0]]))[0]
    torch.testing.assert_close(half, measured.rest + 0.5 * measured.regions[0])
    assert described.maps.shape == (4, BOX, BOX, BOX)


PLACES = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
STEP = 2.0  # voxels that the second blob moves along y from one conformation to the next


def swinging():
    """The first blob is still and the second one moves along y: as domains."""
    blobs = torch.stack([blob(*CENTRES[0].tolist()), blob(*CENTRES[1].tolist())])
    shift = torch.zeros(3, 2, 3)
    shift[:, 1, 1] = STEP * PIXEL * PLACES[:, 0].float()
    placement = Placement(torch.eye(3).expand(3, 2, 3, 3).contiguous(), shift)
    masks = soft_masks(blobs, PIXEL, 1, 1)
    return CoarseDomains(Domains(masks, PLACES, placement, PIXEL), blobs)


def test_a_region_is_a_domain_that_moves_or_one_of_its_own_as_validation_particles_say():
    """The blob that moves comes and goes, or the third one does, which is still."""
    g = seeded(12)
    moving = swinging()
    chosen = torch.randint(0, 3, (90,), generator=g)
    here = (torch.rand(90, generator=g) < 0.5).float()
    centres = CENTRES.expand(90, -1, -1).clone()
    centres[:, 1, 1] += STEP * PLACES[chosen, 0].float()
    always = torch.ones(90)
    still = blob(*CENTRES[2].tolist())
    densities = torch.stack([moving.densities[0] + still, moving.densities[1]])
    nothing = torch.zeros(90, 1, dtype=torch.float64)
    subspace = MotionSubspace(still, WINDOW, still[None], [0.0])
    for owned, region in ((True, moving.densities[1]), (False, still)):
        heights = torch.stack([always, here, always] if owned else [always, always, here], 1)
        particles = images(centres, heights, 0.3, g)
        motion = CoarseMotion(*[particles] * 5, subspace, 90, 90)
        known = composition.Composition(still, region[None], nothing, nothing, [0.5])
        composed = composed_domains.beside(motion, known, CoarseDomains(moving.domains, densities))
        wanted = [-1, 0] if owned else [-1, -1, 0]
        assert composed.domains.occupancy.tolist() == wanted
        assert composed.domains.masks.shape == composed.densities.shape
        total = composed.densities.sum(0)
        torch.testing.assert_close(total, densities.sum(0))


def test_a_domain_that_holds_half_of_a_region_is_not_the_region():
    g = seeded(13)
    here = (torch.rand(90, generator=g) < 0.5).float()
    always = torch.ones(90)
    first, second, third = (blob(*centre) for centre in CENTRES.tolist())
    densities = torch.stack([first + second + 0.5 * third, 0.5 * third])
    still = Placement(torch.eye(3).expand(3, 2, 3, 3).contiguous(), torch.zeros(3, 2, 3))
    domains = Domains(soft_masks(densities, PIXEL, 1, 1), PLACES, still, PIXEL)
    heights = torch.stack([always, always, here], 1)
    particles = images(CENTRES.expand(90, -1, -1), heights, 0.3, g)
    subspace = MotionSubspace(first, WINDOW, first[None], [0.0])
    motion = CoarseMotion(*[particles] * 5, subspace, 90, 90)
    nothing = torch.zeros(90, 1, dtype=torch.float64)
    known = composition.Composition(first + second, third[None], nothing, nothing, [0.5])
    composed = composed_domains.beside(motion, known, CoarseDomains(domains, densities))
    assert composed.domains.occupancy.tolist() == [-1, -1, 0]
    torch.testing.assert_close(composed.densities[2], third)
