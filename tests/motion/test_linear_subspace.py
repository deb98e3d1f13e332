"""Linear subspaces of maps, against motions that are known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.blobs import WINDOW, blob, mean_map, pair, seeded

from instamap.motion import linear_subspace

seeds = st.integers(0, 2**32 - 1)


def test_what_comes_and_goes_is_a_subspace_of_one_dimension():
    g = seeded(1)
    here = torch.randint(0, 2, (400,), generator=g).float()
    fitted = pair(here, g)
    validation = pair(torch.randint(0, 2, (150,), generator=g).float(), g)
    found = linear_subspace.fit(fitted, validation, mean_map(fitted), WINDOW, 3, g)
    assert len(found.maps) == 2, found.held_out
    assert found.held_out[0] == 0 and found.held_out[1] > 1
    z = linear_subspace.coordinates(fitted, found.maps)
    assert z.shape == (400, 1)
    assert abs(np.corrcoef(z[:, 0].numpy(), here.numpy())[0, 1]) > 0.9
    pattern = blob(3, 1, -1)
    assert (
        abs(torch.corrcoef(torch.stack([found.maps[1].flatten(), pattern.flatten()]))[0, 1]) > 0.9
    )
    assert 0.6 < float(z.square().mean().sqrt()) < 1.5  # near the prior, after a few rounds of EM


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_of_one_structure_there_is_no_subspace(seed):
    g = seeded(seed)
    fitted = pair(torch.ones(300), g)
    validation = pair(torch.ones(150), g)
    found = linear_subspace.fit(fitted, validation, mean_map(fitted), WINDOW, 3, g)
    assert len(found.maps) == 1 and len(found.held_out) == 2


@given(seed=seeds, q=st.integers(1, 2))
def test_the_posterior_is_the_integral_over_coordinates(seed, q):
    g = seeded(seed)
    root = torch.randn(1, 5, q + 1, generator=g, dtype=torch.float64)
    gram = root.mT @ root
    h = 2 * torch.randn(1, q + 1, generator=g, dtype=torch.float64)
    axis = torch.linspace(-12, 12, 601 if q == 2 else 4801, dtype=torch.float64)
    z = torch.cartesian_prod(*[axis] * q).view(-1, q)
    c = torch.cat([torch.ones(len(z), 1, dtype=torch.float64), z], 1)
    log = (
        c @ h[0]
        - 0.5 * torch.einsum("nj,jk,nk->n", c, gram[0], c)
        - 0.5 * z.square().sum(1)
        - 0.5 * q * math.log(2 * math.pi)
    )
    found = linear_subspace.gaussian_posterior(gram, h)
    mean = found.mean
    weight = torch.softmax(log, 0)
    torch.testing.assert_close(mean[0], weight @ z)
    torch.testing.assert_close(
        found.covariance[0],
        (weight[:, None] * z).T @ z - mean[0, :, None] * mean[0],
        rtol=1e-6,
        atol=1e-8,
    )
    assert float(found.log_prob) == pytest.approx(
        float(torch.logsumexp(log, 0)) + q * math.log(float(axis[1] - axis[0])), abs=1e-8
    )
