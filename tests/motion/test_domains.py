"""Rigid domains: where they are, and the maps that they add up to, against closed forms."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instamap.fourier.central_slices import central_slices
from instamap.geometry import grids, rotations
from instamap.maps import mask
from instamap.motion import domain_maps, domains
from instamap.motion.domain_maps import DomainImages
from instamap.motion.domains import Domains, Placement
from instamap.statistics.fourier_plane import FourierPlane
from instamap.statistics.particle_statistics import ParticleStatistics

BOX = 32
PIXEL = 2.0
STILL = torch.tensor([-8.0, -6.0, -4.0])  # Å
ARM = torch.tensor([8.0, -4.0, 6.0])
HINGE = torch.tensor([2.0, -3.0, 0.0])
WIDTH = 4.0


def blob(centre: torch.Tensor, box: int = BOX) -> torch.Tensor:
    x = grids.voxel_centres(box, PIXEL)
    return torch.exp(-(x - centre).square().sum(-1) / (2 * WIDTH**2))


def about_hinge(angles: torch.Tensor, axis: torch.Tensor) -> Placement:
    """The second domain turns about an axis through the hinge."""
    turn = rotations.from_rotvec(angles[:, None] * axis)
    shift = HINGE - turn @ HINGE
    still = torch.eye(3).expand_as(turn)
    turns = torch.stack([still, turn], 1)
    return Placement(turns, torch.stack([torch.zeros_like(shift), shift], 1))


AXIS = torch.nn.functional.normalize(torch.tensor([1.0, 2.0, -1.0]), dim=0)


def hinge(count: int = 9, most: float = 60.0) -> Domains:
    angles = torch.linspace(-math.radians(most), math.radians(most), count)
    masks = torch.stack(
        [mask.sphere(BOX, PIXEL, 14.0, 4.0) * 0 + (blob(one) > 0.02) for one in (STILL, ARM)]
    )
    nodes = torch.linspace(-1, 1, count)[:, None]
    return Domains(masks.float(), nodes, about_hinge(angles, AXIS), PIXEL)


@pytest.mark.parametrize("seed", range(3))
def test_a_density_is_moved_exactly(seed):
    generator = torch.Generator().manual_seed(seed)
    turn = rotations.random(1, generator=generator)[0].float()
    shift = 6 * torch.rand(3, generator=generator) - 3
    moved = domains.moved_exactly(blob(ARM), turn, shift / PIXEL)
    assert torch.allclose(moved, blob(turn @ ARM + shift), atol=3e-4)


def test_domains_add_up():
    densities = torch.stack([blob(STILL), blob(ARM)])
    placement = about_hinge(torch.tensor([0.8]), AXIS)
    there = placement.turn[0, 1] @ ARM + placement.shift[0, 1]
    total = domains.add_up(densities, placement, PIXEL)
    assert torch.allclose(total, blob(STILL) + blob(there), atol=3e-4)


def test_a_still_domain_is_exactly_still():
    densities = torch.stack([blob(STILL), torch.zeros(BOX, BOX, BOX)])
    one = hinge()
    assert torch.equal(one.map(densities, torch.tensor([0.7])), blob(STILL))


@given(z=st.floats(-0.95, 0.95))
def test_between_conformations_domains_follow_the_hinge(z):
    one = hinge()
    placement = one.placement_at(torch.tensor([[z]]))
    want = about_hinge(torch.tensor([z * math.radians(60.0)]), AXIS)
    place = placement.turn[0, 1] @ ARM + placement.shift[0, 1]
    wanted = want.turn[0, 1] @ ARM + want.shift[0, 1]
    assert (place - wanted).norm() < 0.8  # Å; steps of 15 degrees move it by 4.5
    product = placement.turn[0, 1] @ placement.turn[0, 1].mT
    assert torch.allclose(product, torch.eye(3), atol=1e-5)
    pivot = domains.pivots(placement[[0]])[1].float()
    assert pivot.isfinite().all()


def test_the_pivot_is_on_the_axis():
    pivot = domains.pivots(hinge().placement)[1].float()
    from_hinge = pivot - HINGE
    assert (from_hinge - (from_hinge @ AXIS) * AXIS).norm() < 0.05


def test_material_is_followed_back():
    one = hinge()
    z = torch.tensor([0.5])
    placement = about_hinge(torch.tensor([math.radians(30.0)]), AXIS)
    there = placement.turn[0, 1] @ ARM + placement.shift[0, 1]
    back = one.pull_back(torch.stack([there, STILL]), z)
    assert torch.allclose(back, torch.stack([ARM, STILL]), atol=0.5)


def test_facts_name_the_axis_and_the_angle():
    still, arm = domains.domain_facts(hinge())
    assert still["largest_turn_degrees"] == 0 and "axis" not in still
    assert arm["largest_turn_degrees"] == pytest.approx(120.0, abs=1.0)
    assert abs(torch.tensor(arm["axis"]) @ AXIS) > 0.999


def test_the_mask_of_all_conformations_reaches_the_ends():
    one = hinge()
    window = domain_maps.reached(one)
    x = grids.voxel_centres(BOX, PIXEL)
    for k in (0, len(one.nodes) - 1):
        there = one.placement.turn[k, 1] @ ARM + one.placement.shift[k, 1]
        nearest = (x - there).norm(dim=-1).flatten().argmin()
        assert window.flatten()[nearest] > 0.9


def some_images(seed: int, count: int = 40) -> ParticleStatistics:
    generator = torch.Generator().manual_seed(seed)
    plane = FourierPlane(BOX).points
    shape = (count, len(plane))
    frames = rotations.random(count, generator=generator)[:, :2].float().contiguous()
    data = torch.randn(*shape, dtype=torch.complex64, generator=generator)
    power = torch.rand(shape, generator=generator)
    return ParticleStatistics(BOX, PIXEL, data, power, frames, plane, torch.arange(count))


@pytest.fixture
def seen(monkeypatch):
    """Makes `DomainImages` of images that are there already, at placements."""

    def make(images: ParticleStatistics, placement: Placement) -> DomainImages:
        def read(particles, rows, variance, particle, *, device):
            chosen = {"data": images.data[rows], "power": images.power[rows]}
            return replace(images, **chosen, frames=images.frames[rows], particle=particle)

        monkeypatch.setattr(ParticleStatistics, "read", staticmethod(read))
        rows = torch.arange(len(images.data))
        particles = SimpleNamespace(box=BOX, pixel_size=PIXEL)
        return DomainImages(particles, rows, torch.ones(1), placement)

    return make


def random_placement(count: int, seed: int) -> Placement:
    generator = torch.Generator().manual_seed(seed)
    turn = rotations.random(count, generator=generator).float()
    shift = 4 * torch.randn(count, 3, generator=generator)
    still = torch.eye(3).expand_as(turn)
    return Placement(
        torch.stack([still, turn], 1), torch.stack([torch.zeros_like(shift), shift], 1)
    )


def wave_of(images: ParticleStatistics, shift: torch.Tensor) -> torch.Tensor:
    """What a shift (Å) of a map does to the images' components, written out."""
    k = torch.einsum("pa,nai->npi", images.plane, images.frames)
    phase = -2 * math.pi * torch.einsum("npi,ni->np", k, shift) / (BOX * PIXEL)
    return torch.polar(torch.ones_like(phase), phase)


EMPTY = torch.zeros(2, BOX, BOX, BOX)


def test_the_still_domain_has_the_statistics_of_the_images(seen):
    images = some_images(0)
    got = domain_maps.gather(seen(images, random_placement(40, 1)), EMPTY, 0)
    want = images.statistics(images.unit_weights())
    assert torch.allclose(got.b, want.b, atol=1e-4 * float(want.b.abs().max()))
    assert torch.allclose(got.kernel, want.kernel, atol=1e-4 * float(want.kernel.abs().max()))
    assert got.weight == want.weight and got.count == want.count


def test_a_domain_is_seen_from_its_own_frame(seen):
    """Images of a body at T, turned by R, are those of a body at rest, turned by R T."""
    images = some_images(2)
    placement = random_placement(40, 3)
    turn = placement.turn[:, 1]
    elsewhere = replace(images, frames=(images.frames @ turn.mT).contiguous())
    moved = replace(elsewhere, data=images.data * wave_of(elsewhere, placement.shift[:, 1]))
    got = domain_maps.gather(seen(moved, placement), EMPTY, 1)
    want = images.statistics(images.unit_weights())
    assert torch.allclose(got.b, want.b, atol=1e-3 * float(want.b.abs().max()))
    assert torch.allclose(got.kernel, want.kernel, atol=1e-3 * float(want.kernel.abs().max()))


def test_what_others_add_is_taken_off(seen):
    """Images of the moving domain alone leave nothing for the still one; and of both, what the
    still one adds.
    """
    images = some_images(4)
    placement = random_placement(40, 5)
    densities = torch.stack([blob(STILL), blob(ARM)])
    frames = (images.frames @ placement.turn[:, 1]).contiguous()
    moving = central_slices(densities[1], frames, images.plane)
    moving = moving * wave_of(images, placement.shift[:, 1])
    still = central_slices(densities[0], images.frames, images.plane)
    both = replace(images, data=images.power * (moving + still))
    got = domain_maps.gather(seen(both, placement), densities, 0)
    want = got.apply(densities[0])
    assert torch.allclose(got.b, want, atol=2e-3 * float(want.abs().max()))


def test_masks_are_cut_at_the_level_of_the_densest_domain():
    """A faint domain, of which its own level would keep what the other's does not."""
    densities = torch.stack([0.3 * blob(STILL), blob(ARM)])
    own = domains.soft_masks(densities, PIXEL, 0, 0)
    one_level = domains.soft_masks(densities, PIXEL, 0, 0, one_level=True)
    assert torch.equal(one_level[1], own[1])
    assert 0 < float(one_level[0].sum()) < float(own[0].sum())
    level = mask.from_map(densities[0], PIXEL, threshold=0.15 / 0.3, extend=0, edge=0)
    assert torch.equal(one_level[0], level)
    fainter = torch.stack([0.01 * blob(STILL), blob(ARM)])
    assert domains.soft_masks(fainter, PIXEL, 0, 0, one_level=True)[0].any()


def test_domains_that_come_and_go():
    """The second one is there as the coordinate after the motion says, and moves as ever."""
    densities = torch.stack([blob(STILL), blob(ARM)])
    usual = hinge()
    one = replace(usual, occupancy=torch.tensor([-1, 0]))
    whole = usual.map(densities, torch.tensor([0.4]))
    torch.testing.assert_close(one.map(densities, torch.tensor([0.4, 1.0])), whole)
    torch.testing.assert_close(one.map(densities, torch.tensor([0.4, 0.0])), blob(STILL))
    half = one.map(densities, torch.tensor([0.4, 0.5]))
    torch.testing.assert_close(half, 0.5 * (whole + blob(STILL)))
    beyond = one.present_at(torch.tensor([[0.4, 1.2], [0.4, -0.1]]))
    assert beyond.tolist() == [[1, 1], [1, 0]]
    facts = domains.domain_facts(one)
    assert "region" not in facts[0] and facts[1]["region"] == 1


def test_images_count_for_a_domain_as_they_show_it(seen):
    images = some_images(6)
    present = torch.stack(
        [torch.ones(40), torch.rand(40, generator=torch.Generator().manual_seed(7)).round()], 1
    )
    placed = seen(images, random_placement(40, 1))
    got = domain_maps.gather(replace(placed, present=present), EMPTY, 1)
    there = (present[:, 1] > 0).nonzero()[:, 0]
    some = replace(
        images,
        data=images.data[there],
        power=images.power[there],
        frames=images.frames[there],
        particle=torch.arange(len(there)),
    )
    want = domain_maps.gather(seen(some, random_placement(40, 1)[there]), EMPTY, 1)
    assert torch.allclose(got.b, want.b, atol=1e-4 * float(want.b.abs().max()))
    assert torch.allclose(got.kernel, want.kernel, atol=1e-4 * float(want.kernel.abs().max()))
    assert got.weight == want.weight == len(there)


def test_what_is_not_there_is_not_taken_off(seen):
    """Images of the still domain, beside which every second one shows another, leave its own."""
    images = some_images(8)
    placement = random_placement(40, 9)
    densities = torch.stack([blob(STILL), blob(ARM)])
    present = torch.stack([torch.ones(40), (torch.arange(40) % 2).float()], 1)
    frames = (images.frames @ placement.turn[:, 1]).contiguous()
    still = central_slices(densities[0], images.frames, images.plane)
    arm = central_slices(densities[1], frames, images.plane)
    arm = arm * wave_of(images, placement.shift[:, 1]) * present[:, 1:]
    both = replace(images, data=images.power * (still + arm))
    got = domain_maps.gather(replace(seen(both, placement), present=present), densities, 0)
    alone = replace(images, data=images.power * still)
    want = alone.statistics(alone.unit_weights())
    assert torch.allclose(got.b, want.b, atol=1e-3 * float(want.b.abs().max()))
