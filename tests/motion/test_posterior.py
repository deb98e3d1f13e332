"""Coordinates of particles under given conformations."""

import pytest
import torch
from support.blobs import blob, images, seeded

from instamap.motion import posterior, state_mixture


@pytest.mark.parametrize("per", [1, 2])
def test_coordinates_of_a_moving_blob_are_found_between_states(per):
    g = seeded(2)
    z = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    at = 2 * torch.rand(60, generator=g) - 1
    maps = torch.stack([blob(3.0 * float(k), 0.0, 0.0) for k in z])
    centre = torch.stack([3 * at, torch.zeros(60), torch.zeros(60)], -1)
    seen = images(centre[:, None], torch.ones(60, 1), 5.0, g, per)
    order = torch.randperm(9, generator=g)
    found = posterior.infer(seen, maps[order], z[order])
    assert posterior.spacing(z) == pytest.approx(0.25)
    error = (found.z[:, 0] - at).abs()
    # A view along the motion shows none: of 60 particles a few are seen so.
    assert float(error.median()) < 0.1 * 0.25 and float((error < 0.25).double().mean()) > 0.9
    torch.testing.assert_close(found.share.sum(1), torch.ones(60, dtype=torch.float64))


def test_log_p_of_a_particle_is_that_of_all_states_together():
    g = seeded(4)
    seen = images(torch.zeros(5, 1, 3), torch.ones(5, 1), 0.02, g)
    maps = torch.stack([blob(k, 0.0, 0.0) for k in (-1.0, 0.0, 1.5)])
    found = posterior.infer(seen, maps, torch.tensor([[-1.0], [0], [1.5]])).log_prob
    each = torch.stack([state_mixture.log_prob(seen, m[None])[:, 0] for m in maps], 1)
    torch.testing.assert_close(found, each.exp().mean(1).log(), rtol=1e-6, atol=1e-6)


def test_one_state_is_where_all_are():
    seen = images(torch.zeros(3, 1, 3), torch.ones(3, 1), 0.02, seeded())
    found = posterior.infer(
        seen, blob(0.0, 0.0, 0.0)[None], torch.tensor([[0.4]], dtype=torch.float64)
    )
    torch.testing.assert_close(found.z, torch.full((3, 1), 0.4, dtype=torch.float64))
    assert (found.share == 1).all()


def test_occupancies_are_probabilities_beside_coordinates():
    """A blob moves beside another that is there or not; steps are along the motion alone."""
    g = seeded(6)
    at = 2 * torch.rand(80, generator=g) - 1
    here = torch.randint(0, 2, (80,), generator=g).float()
    line = torch.linspace(-1, 1, 9, dtype=torch.float64)
    z = torch.cartesian_prod(line, torch.tensor([0.0, 1.0], dtype=torch.float64))
    maps = torch.stack([blob(3 * float(k), 0, 0) + float(o) * blob(0, 5, 1) for k, o in z])
    moving = torch.stack([3 * at, torch.zeros(80), torch.zeros(80)], -1)
    other = torch.tensor([0.0, 5, 1]).expand(80, -1)
    heights = torch.stack([torch.ones(80), here], 1)
    seen = images(torch.stack([moving, other], 1), heights, 0.5, g)
    found = posterior.infer(seen, maps, z, 1).z
    error = (found[:, 0] - at).abs()
    assert float(error.median()) < 0.5 * 0.25 and bool(((found[:, 1] - here).abs() < 0.2).all())
    assert bool(((found[:, 1] >= 0) & (found[:, 1] <= 1)).all())
