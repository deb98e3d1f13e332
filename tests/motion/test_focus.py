"""A focus: what is outside of it is one and the same in all conformations, to the last bit."""

from dataclasses import replace

import pytest
import torch
from support.bending import BOX, PIXEL, POINTS, set_linear, shift
from support.blobs import WINDOW, blob, mean_map, pair, seeded

from instamap.errors import CompositionError
from instamap.geometry import grids
from instamap.model import compose, default_parts
from instamap.motion import linear_subspace, state_mixture
from instamap.motion.domains import Domains, Placement
from instamap.motion.motion_model import HalfModel
from instamap.plugin.choice import choose
from instamap.scene import Scene
from instamap.workflows.choose import resolve
from instamap.workflows.settings import Settings

X = grids.voxel_centres(BOX, PIXEL)
# 1 where x is above 8 Å, 0 where it is below 0
FOCUS = (X[..., 0] / 8.0).clamp(0, 1)


def bending(focus: torch.Tensor | None) -> HalfModel:
    """Random density that a coordinate shifts by 6 Å along y."""
    parts = default_parts("bending-field") | {
        "representation": choose("representation", "voxel", []),
        "deformation": choose("deformation", "bending-field", ["latent=1", f"points={POINTS}"]),
    }
    scene = Scene(BOX, PIXEL, noise_variance=torch.ones(1, BOX // 2 + 1), focus=focus)
    model = compose(parts, scene, seed=0).eval()
    set_linear(model.deformation, shift(0, 6, 0))
    with torch.no_grad():
        model.representation.values.copy_(torch.randn(BOX, BOX, BOX, generator=seeded()))
    nodes = torch.linspace(-1, 1, 5)[:, None]
    return HalfModel(model, torch.eye(1), torch.zeros(1), nodes, torch.zeros(5, 8, 8, 8))


Z = torch.tensor([0.8])
STILL = torch.zeros(1)


def test_bending_is_as_without_inside_and_nothing_outside():
    focused = bending(FOCUS)
    free = bending(None)
    moved = focused.conformation(Z)
    still = focused.conformation(STILL)
    outside = FOCUS == 0
    within = FOCUS == 1
    assert torch.equal(moved[outside], still[outside])
    assert torch.equal(moved[within], free.conformation(Z)[within])
    assert not torch.equal(moved[within], still[within])
    points = X.reshape(-1, 3)
    there = focused.pull_back(points, Z).view(X.shape)
    assert torch.equal(there[outside], X[outside])
    torch.testing.assert_close(
        there[within] - X[within], torch.tensor([0.0, 4.8, 0.0]).expand_as(X[within])
    )


def test_a_saved_focus_is_read_again(tmp_path):
    half = bending(FOCUS)
    half.save(tmp_path / "half1.safetensors")
    parts = default_parts("bending-field") | {
        "representation": choose("representation", "voxel", []),
        "deformation": choose("deformation", "bending-field", ["latent=1", f"points={POINTS}"]),
    }
    again = HalfModel.load(tmp_path / "half1.safetensors", parts)
    assert torch.equal(again.conformation(Z), half.conformation(Z))
    assert torch.equal(again.model.scene.focus, FOCUS)


def test_maps_of_their_own_are_one_map_outside():
    """Whatever the weights by which maps of conformations are mixed."""
    g = seeded(1)
    rest = torch.randn(BOX, BOX, BOX, generator=g)
    own = rest + FOCUS * torch.randn(5, BOX, BOX, BOX, generator=g)
    half = replace(bending(FOCUS), own_maps=own)
    for z in torch.linspace(-1, 1, 7):
        seen = half.conformation(z[None])
        assert torch.equal(seen[FOCUS == 0], rest[FOCUS == 0])


def test_domains_move_inside_alone():
    densities = torch.rand(2, BOX, BOX, BOX, generator=seeded(2))
    placed = torch.zeros(2, 2, 3)
    placed[1, 1] = torch.tensor([-12.0, 3.0, 0.0])
    placement = Placement(torch.eye(3).expand(2, 2, 3, 3).contiguous(), placed)
    nodes = torch.tensor([[0.0], [1.0]])
    domains = Domains(torch.ones(2, BOX, BOX, BOX), nodes, placement, PIXEL, FOCUS)
    for z in (0.0, 0.5, 1.0):
        seen = domains.map(densities, torch.tensor([z]))
        assert torch.equal(seen[FOCUS == 0], densities[0][FOCUS == 0])
    points = X.reshape(-1, 3)
    there = domains.pull_back(points, torch.tensor([1.0])).view(X.shape)
    assert torch.equal(there[FOCUS == 0], X[FOCUS == 0])


def test_the_subspace_differs_in_the_focus_alone():
    """A blob comes and goes at (3, 1, -1) voxels, and half of the box may differ."""
    g = seeded(1)
    here = torch.randint(0, 2, (300,), generator=g).float()
    fitted = pair(here, g)
    validation = pair(torch.randint(0, 2, (150,), generator=g).float(), g)
    focus = (grids.voxel_centres(16, 1.0)[..., 0] > 0).float()
    inside = WINDOW * focus
    mean = mean_map(fitted)
    found = linear_subspace.fit(fitted, validation, mean, WINDOW, 2, g, inside)
    assert len(found.maps) == 2 and found.held_out[1] > 1
    outside = focus == 0
    assert not found.maps[1][outside].any()
    mixture = state_mixture.fit_mixture(
        fitted, validation, found.maps, inside, 3, 1, g, rounds=3, held=True
    )
    for volume in mixture.maps:
        assert torch.equal(volume[outside], found.maps[0][outside])
    there = blob(3, 1, -1) > 0.5
    assert float((mixture.maps[0] - mixture.maps[-1])[there].abs().mean()) > 0.3


def test_a_nuisance_is_integrated_out():
    """log p of two maps beside an amount of a third that is normal, against a sum over amounts."""
    g = seeded(6)
    particles = pair(torch.rand(5, generator=g), g, level=0.01)
    maps = torch.stack([blob(-3, 0, 0), 0.7 * blob(-2, 1, 0)])
    other = blob(3, 1, -1)
    beside = replace(particles, nuisance=other[None])
    found = state_mixture.log_prob(beside, maps)
    amount = torch.linspace(-8, 8, 3201, dtype=torch.float64)
    wanted = []
    for volume in maps:
        gram, h = particles.normal_equations(torch.stack([volume, other]))
        c = torch.stack([torch.ones_like(amount), amount], 1)
        log_prob = h @ c.mT - 0.5 * torch.einsum("ai,mij,aj->ma", c, gram, c)
        wanted.append(torch.logsumexp(log_prob - 0.5 * amount**2, 1))
    difference = wanted[1] - wanted[0]
    torch.testing.assert_close(found[:, 1] - found[:, 0], difference, rtol=1e-5, atol=1e-4)


def test_what_differs_elsewhere_is_not_found_in_the_focus():
    """A blob comes and goes at x = 3 voxels; in projection it lies over the still one at x = -3."""
    g = seeded(1)
    here = torch.randint(0, 2, (300,), generator=g).float()
    fitted = pair(here, g)
    validation = pair(torch.randint(0, 2, (150,), generator=g).float(), g)
    inside = (grids.voxel_centres(16, 1.0)[..., 0] < -1).float()
    mean = mean_map(fitted)
    window = WINDOW * inside
    alone = linear_subspace.fit(fitted, validation, mean, WINDOW, 2, g, window)
    assert len(alone.maps) > 1, "or there is nothing to be integrated out"
    outside = linear_subspace.fit(fitted, validation, mean, WINDOW, 2, g, WINDOW * (1 - inside))
    nuisance = outside.maps[1:]
    found = linear_subspace.fit(
        replace(fitted, nuisance=nuisance),
        replace(validation, nuisance=nuisance),
        mean,
        WINDOW,
        2,
        g,
        window,
    )
    assert found.held_out[1] < 0.1 * alone.held_out[1], (found.held_out, alone.held_out)


def test_a_focus_is_for_workflows_that_look_for_differences(tmp_path):
    settings = Settings(tmp_path / "absent.star", focus=tmp_path / "focus.mrc")
    with pytest.raises(CompositionError, match="focus .* choose --deform bending-field"):
        resolve(settings)
    moving = resolve(replace(settings, deformation=choose("deformation", "subspace")))
    assert moving.workflow is not None and moving.workflow.name == "motion"
