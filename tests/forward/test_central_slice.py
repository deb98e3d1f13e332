"""Central slices against sums over voxels, against rays, and within the mask; the two
implementations against one another.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instamap.errors import CompositionError
from instamap.fourier import central_slices as slices
from instamap.geometry import grids, rotations
from instamap.model import compose, default_parts
from instamap.plugin.choice import choose
from instamap.plugin.registry import default
from instamap.scene import Scene, Views
from instamap.testing import scenes


def _operator(name, scene, *options):
    return (
        default().get("forward", name).load()(choose("forward", name, list(options)).options, scene)
    )


def _frames(count, seed=0):
    return rotations.random(count, generator=torch.Generator().manual_seed(seed))[:, :2]


@given(box=st.sampled_from([10, 11, 16]), seed=st.integers(0, 100))
def test_slices_are_sums_over_the_voxels(box, seed):
    g = torch.Generator().manual_seed(seed)
    volume = torch.randn(box, box, box, generator=g, dtype=torch.float64)
    frames = _frames(3, seed)
    plane = (torch.rand(20, 2, generator=g, dtype=torch.float64) - 0.5) * box / 2**0.5 * 0.99
    x = grids.voxel_centres(box, 1.0, dtype=torch.float64).reshape(-1, 3)
    turns = (plane @ frames) @ x.T / box
    expected = torch.polar(torch.ones_like(turns), -2 * torch.pi * turns) @ volume.flatten().to(
        torch.complex128
    )
    found = slices.central_slices(volume, frames, plane)
    assert (
        float((found - expected).norm() / expected.norm()) < 4e-4
    )  # of white noise, whose corners the window serves worst


def test_frequencies_beyond_the_grid_are_refused():
    with pytest.raises(
        ValueError, match=r"frequencies reach 4 cycles in 8 voxels; they must stay below 4"
    ):
        slices.central_slices(torch.zeros(8, 8, 8), _frames(1).float(), torch.tensor([[0.0, 4.0]]))


def test_the_gradient_is_that_of_the_sum():
    g = torch.Generator().manual_seed(0)
    volume = torch.randn(6, 6, 6, generator=g, dtype=torch.float64, requires_grad=True)
    plane = (torch.rand(4, 2, generator=g, dtype=torch.float64) - 0.5) * 4
    assert torch.autograd.gradcheck(
        lambda v: slices.central_slices(v, _frames(2), plane), (volume,)
    )


@pytest.mark.skipif(slices._numba() is None, reason="numba is not installed")
def test_compiled_and_plain_agree(monkeypatch):
    g = torch.Generator().manual_seed(0)
    volume = torch.randn(15, 15, 15, generator=g)
    plane = (torch.rand(50, 2, generator=g) - 0.5) * 10
    frames = _frames(4).float()
    weights = torch.randn(4, 50, generator=g)

    def run():
        v = volume.clone().requires_grad_()
        found = slices.central_slices(v, frames, plane)
        (found.real * weights + found.imag * weights.flip(1)).sum().backward()
        return found.detach(), v.grad

    compiled = run()
    monkeypatch.setattr(slices, "_numba", lambda: None)
    plain = run()
    for a, b in zip(compiled, plain, strict=True):
        assert float((a - b).norm() / b.norm()) < 2e-6


@given(box=st.sampled_from([24, 25]), seed=st.integers(0, 1000))
def test_it_agrees_with_rays(box, seed):
    """A smooth density at any pose, shifted by up to three pixels: to 3e-4 of the largest pixel. Of
    600 draws the worst erred by 2.2e-4.
    """
    scene = Scene(box=box, pixel_size=1.7, count=4)
    g = torch.Generator().manual_seed(seed)
    density = scenes.gaussians(scene, g)
    views = scenes.views(scene, 3, g, shift=3.0)
    one, two = (_operator(name, scene).double().eval()(density, views) for name in ("slice", "ray"))
    assert float((one - two).abs().max() / two.abs().max()) < 3e-4


def test_a_shift_over_the_edge_leaves_the_image():
    scene = Scene(box=24, pixel_size=1.0)

    def density(x):
        return torch.exp(-0.5 * ((x - torch.tensor([7.0, 0.0, 0.0])) / 1.2).square().sum(-1))

    views = Views.of(
        torch.eye(3, dtype=torch.float64)[None], torch.tensor([[-5.5, 0.0]], dtype=torch.float64)
    )
    image = _operator("slice", scene).double().eval()(density, views)[0]
    assert float(image[:, :8].abs().max()) < 1e-3 * float(
        image.max()
    )  # it lies at x = 12.5, and nothing of it at the other edge


def test_nothing_outside_the_mask_is_looked_at():
    mask = torch.zeros(16, 16, 16)
    mask[:, :, 8:] = 1
    whole = Scene(box=16, pixel_size=2.0)
    half = Scene(box=16, pixel_size=2.0, mask=mask)
    seen = []

    def density(x):
        seen.append(x)
        return torch.ones(x.shape[:-1], dtype=x.dtype)

    for scene in (whole, half):
        _operator("slice", scene).eval()(density, Views.of(torch.eye(3)[None]))
    assert float(seen[1][..., 0].min()) >= -2.0  # a voxel beyond the mask's first at x = 0
    assert seen[1].shape[1] == 9 * 256


def test_jitter_comes_from_the_generator_and_the_stage():
    scene = Scene(box=12, pixel_size=2.0)
    views = Views.of(torch.eye(3)[None])

    def density(x):
        return torch.exp(-0.05 * x.square().sum(-1))

    part = _operator("slice", scene).train()

    def draw(seed):
        return part(density, views, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    part.jitter = 0.0
    assert torch.equal(draw(1), draw(2))


def test_particles_that_differ_need_rays():
    scene = Scene(box=12, pixel_size=2.0, count=2, noise_variance=torch.ones(1, 7))
    parts = default_parts("rigid")
    assert parts["forward"].name == "ray" and default_parts()["forward"].name == "slice"
    with pytest.raises(CompositionError, match="choose --deform identity or --forward ray"):
        compose({**parts, "forward": choose("forward", "slice", [])}, scene)
