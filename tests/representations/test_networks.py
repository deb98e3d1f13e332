"""Encodings of coordinate networks against their formulas, and what the networks can express."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special, stats

from instamap.plugin.choice import choose
from instamap.plugin.registry import default
from instamap.scene import Scene

NAMES = ["frequency", "one-blob", "spherical-harmonics", "triangle-wave"]
SCENE = Scene(box=16, pixel_size=2.0)


def _part(name, *items):
    return (
        default()
        .get("representation", name)
        .load()(choose("representation", name, list(items)).options, SCENE)
        .double()
    )


def _points(n, seed=0):
    return (
        2 * torch.rand(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1
    )


def test_frequencies_are_sines_and_cosines():
    t = _points(5)
    found = (
        _part("frequency", "frequencies=3").encode(t).reshape(5, 2, 3, 3).numpy()
    )  # sin or cos, octave, axis
    phase = np.pi * np.array([1.0, 2.0, 4.0])[None, :, None] * t.numpy()[:, None]
    np.testing.assert_allclose(found[:, 0], np.sin(phase), atol=1e-12)
    np.testing.assert_allclose(found[:, 1], np.cos(phase), atol=1e-12)


def test_the_finest_octave_is_nyquist():
    """Wavelength: box / 2^j, two pixels for j = 3 in a box of 16."""
    assert _part("frequency").encode(_points(1)).shape == (1, 2 * 4 * 3)
    assert _part("triangle-wave").encode(_points(1)).shape == (
        1,
        5 * 3,
    )  # which begins with twice the box
    assert _part("one-blob").encode(_points(1)).shape == (1, 16 * 3)
    assert _part("spherical-harmonics").encode(_points(1)).shape == (1, 64)


def test_triangle_waves_have_their_corners_where_they_should():
    t = torch.tensor([-1.0, -0.5, 0.0, 0.5, 0.75], dtype=torch.float64)[:, None].expand(-1, 3)
    found = _part("triangle-wave", "frequencies=2").encode(t).reshape(5, 2, 3)
    assert torch.allclose(
        found[:, 0, 1], torch.tensor([1.0, 0.5, 0.0, -0.5, -0.75], dtype=torch.float64)
    )
    assert torch.allclose(
        found[:, 1, 2], torch.tensor([1.0, 0.0, -1.0, 0.0, 0.5], dtype=torch.float64)
    )


def test_a_gaussian_blob_is_a_normal_distribution_in_bins():
    t = _points(4)
    found = _part("one-blob", "bins=10", "kernel=gaussian").encode(t).reshape(4, 3, 10).numpy()
    edges = np.linspace(0, 1, 11)
    expected = np.diff(
        stats.norm.cdf(edges, loc=(t.numpy()[..., None] + 1) / 2, scale=0.1), axis=-1
    )
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_usual_blob_is_a_quartic_kernel_in_bins():
    """Its density, with a bin's width as radius, by quadrature over each bin; tiny-cuda-nn's
    polynomial is the integral.
    """
    t = _points(4)
    found = _part("one-blob", "bins=10").encode(t).reshape(4, 3, 10).numpy()

    def kernel(x, u):
        return 10 * 15 / 16 * max(0.0, 1 - (10 * (x - u)) ** 2) ** 2

    for where, bins in zip((t.numpy().ravel() + 1) / 2, found.reshape(-1, 10), strict=True):
        edges = (where - 0.1, where + 0.1)  # where it is not smooth
        expected = [
            integrate.quad(kernel, i / 10, (i + 1) / 10, args=(where,), points=edges)[0]
            for i in range(10)
        ]
        np.testing.assert_allclose(bins, expected, atol=1e-9)
        assert (bins > 0).sum() <= 3


@pytest.mark.parametrize("kernel", ["quartic", "gaussian"])
def test_a_blob_within_the_box_is_one(kernel):
    """And what is beyond its ends is lost: it does not come back at the other."""
    part = _part("one-blob", "bins=32", f"kernel={kernel}")
    middle = part.encode(torch.zeros(1, 3, dtype=torch.float64)).reshape(3, 32).sum(1)
    assert torch.allclose(middle, torch.ones(3, dtype=torch.float64))
    end = part.encode(torch.ones(1, 3, dtype=torch.float64)).reshape(3, 32)
    assert (
        torch.allclose(end.sum(1), torch.full((3,), 0.5, dtype=torch.float64))
        and float(end[:, :16].max()) < 1e-12
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("box", [12, 48, 161])
def test_inputs_of_the_first_layer_are_of_order_one(name, box):
    """Root mean square over the ball, at other points than those by which the part scales them, and
    what it makes of them at birth.
    """
    scene = Scene(box=box, pixel_size=2.0)
    torch.manual_seed(0)
    part = (
        default()
        .get("representation", name)
        .load()(choose("representation", name, []).options, scene)
    )
    t = _points(20000, 7).float()
    inputs = part.unit * part.encode(t[t.norm(dim=1) <= 1])
    assert float(inputs.square().mean().sqrt()) == pytest.approx(1.0, rel=0.02)
    before = part.network[0](inputs).detach()
    assert (
        1.0 < float(before.square().mean().sqrt()) < 2.0
    )  # He's weights make it √2, whatever the network
    torch.manual_seed(0)
    twin = (
        default()
        .get("representation", name)
        .load()(choose("representation", name, []).options, scene)
    )
    assert torch.equal(twin.unit, part.unit), "the scale is the same in every process"


def test_harmonics_are_those_of_scipy_and_orthonormal():
    nodes, weights = np.polynomial.legendre.leggauss(10)
    phi = np.arange(20) * 2 * np.pi / 20
    z, f = (a.ravel() for a in np.meshgrid(nodes, phi, indexing="ij"))
    weight = np.repeat(weights, 20) * 2 * np.pi / 20
    s = np.sqrt(1 - z**2)
    found = (
        _part("spherical-harmonics", "degree=6")
        .encode(torch.tensor(np.stack([s * np.cos(f), s * np.sin(f), z], -1)))
        .numpy()
    )
    np.testing.assert_allclose(found.T @ (found * weight[:, None]), np.eye(36), atol=1e-10)
    zonal = found[:, :6]  # m = 0
    expected = np.stack(
        [np.sqrt((2 * n + 1) / (4 * np.pi)) * special.eval_legendre(n, z) for n in range(6)], -1
    )
    np.testing.assert_allclose(zonal, expected, atol=1e-12)
    np.testing.assert_allclose(
        found[:, 6], math.sqrt(3 / (4 * math.pi)) * s * np.cos(f), atol=1e-12
    )  # l = 1, m = 1: x


@given(seed=st.integers(0, 50))
def test_harmonics_are_polynomials_beyond_the_sphere(seed):
    t = _points(3, seed)
    found = _part("spherical-harmonics", "degree=3").encode(t)
    x, y, z = t.unbind(-1)
    expected = {
        2: 0.25 * math.sqrt(5 / math.pi) * (3 * z**2 - 1),
        4: math.sqrt(3 / (4 * math.pi)) * y,
        7: 0.25 * math.sqrt(15 / math.pi) * (x**2 - y**2),
    }
    for column, values in expected.items():
        assert torch.allclose(found[:, column], values, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_learns_a_smooth_density(name):
    """At points that it has not seen."""
    torch.manual_seed(0)
    part = _part(name).float()

    def blob(x):
        return torch.exp(-0.5 * ((x - torch.tensor([2.0, -1.0, 3.0])) / 4.0).square().sum(-1))

    x, fresh = ((_points(n, seed) * 10).float() for n, seed in ((4000, 1), (2000, 2)))
    optimiser = torch.optim.Adam(
        part.parameters(), lr=0.03
    )  # below that of fits, whose running average it does not have
    for _ in range(150):
        optimiser.zero_grad()
        (part(x) - blob(x)).square().mean().backward()
        optimiser.step()
    error = (part(fresh).detach() - blob(fresh)).square().mean().sqrt() / blob(fresh).std()
    assert error < 0.15  # of the density's own spread
