"""Rigid corrections of poses: what the image's frame means, and that wrong poses are won back from
a table and from images.
"""

import math
from dataclasses import replace

import pytest
import torch

from instamap.deform.encoder import Encoder, _centred
from instamap.deform.rigid import Rigid
from instamap.errors import CompositionError
from instamap.geometry import grids, rotations
from instamap.model import compose, default_parts
from instamap.plugin.choice import choose
from instamap.scene import Batch, Scene, Views
from instamap.testing.scenes import Gaussians

BOX = 16
PIXEL = 4.0


def _scene(count):
    return Scene(
        box=BOX,
        pixel_size=PIXEL,
        count=count,
        noise_variance=torch.full((1, BOX // 2 + 1), 0.05**2),
    )


def _model(scene, *options):
    return compose(
        {**default_parts("rigid"), "deformation": choose("deformation", "rigid", list(options))},
        scene,
    )


def test_from_image_starts_with_no_correction_and_needs_the_images():
    model = _model(_scene(3), "from=image")
    views = Views.of(rotations.random(3, generator=torch.Generator().manual_seed(0)).float())
    assert torch.equal(model.deformation.latent(views, torch.randn(3, BOX, BOX)), torch.zeros(3, 6))
    with pytest.raises(ValueError, match="give them"):
        model.deformation.latent(views)


def test_the_encoder_sees_the_particle_in_the_middle():
    def blob(x, y):
        return torch.exp(
            -0.5
            * ((torch.arange(BOX)[None, :] - x) ** 2 + (torch.arange(BOX)[:, None] - y) ** 2)
            / 4.0
        )

    c = BOX // 2
    origin = torch.tensor(
        [[2.0, -1.0], [-3.0, 1.0]]
    )  # a particle lies at the middle less its origin
    images = torch.stack([blob(c - x, c - y) for x, y in origin.tolist()])
    seen = _centred(images, origin, torch.eye(2).expand(2, 2, 2))
    inner = slice(4, -4)  # what came in over an edge is unknown
    assert torch.allclose(
        seen[:, inner, inner], blob(c, c)[inner, inner].expand(2, -1, -1), atol=1e-6
    )


def test_a_correction_from_the_image_is_in_the_image_frame():
    model = _model(_scene(5), "from=image", "angle=1", "shift=1")
    encoder = model.deformation.encoder
    with torch.no_grad():
        encoder.decide[-1].bias.copy_(
            torch.tensor([0.0, 0.0, 30.0, 3.0, -2.0, 0.0])
        )  # 30° in the plane, then a shift in it
    rotation = rotations.random(5, generator=torch.Generator().manual_seed(1)).float()
    x = torch.randn(5, 7, 3)
    z = model.deformation.latent(Views.of(rotation), torch.randn(5, BOX, BOX))
    c = math.cos(math.pi / 6)
    s = math.sin(math.pi / 6)
    turn = torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    expected = (x @ rotation.mT) @ turn.T + torch.tensor([3.0, -2.0, 0.0])
    assert torch.allclose(model.deformation(x, z) @ rotation.mT, expected, atol=1e-4)


def _wrong(count, seed, angle=6.0, shift=4.0):
    """A batch of a bumpy density at true poses, said to be at poses that are wrong by `angle`
    degrees and `shift` Å rms; and the truth.
    """
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(7, 3, generator=torch.Generator().manual_seed(99)) * 9
    density = Gaussians(centres, torch.tensor([3.0, 1, 2, 1, 2, 1, 4]) * 400, 4.0)
    true = rotations.random(count, generator=g).float()
    origin = torch.zeros(count, 2)
    scene = _scene(count)
    ray = compose(default_parts("rigid"), scene).forward_operator.eval()
    images = ray(density, Views.of(true, origin))
    images = images + 0.05 * images.std() * torch.randn(images.shape, generator=g)
    turned = (
        rotations.from_rotvec(torch.randn(count, 3, generator=g) * math.radians(angle) / 3**0.5)
        @ true
    )
    views = Views.of(turned, origin + torch.randn(count, 2, generator=g) * shift / 2**0.5)
    return density, scene, Batch(images, views), Views.of(true, origin)


def _errors(model, views, truth, images=None):
    """Rms of the pose errors that are left: degrees and Å in the plane of the image."""
    z = model.deformation.latent(views, images)
    turn = rotations.from_rotvec(z[:, :3])
    # The density is looked up at exp(ω) Aᵀ(u + origin) + t, which is Bᵀ(u + o) for the corrected
    # pose B = A exp(ω)ᵀ.
    pose = views.rotation @ turn.mT
    cosine = ((pose.mT @ truth.rotation).diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
    shift = views.origin + (pose @ z[:, 3:, None])[:, :2, 0] - truth.origin
    return (
        torch.rad2deg(torch.arccos(cosine.clamp(-1, 1))).square().mean().sqrt(),
        shift.square().sum(1).mean().sqrt(),
    )


def _train(model, density, batch, steps, size, rate, generator):
    """The deformation alone, the density being known."""
    model.field = lambda z=None: (
        density if z is None else lambda x: density(model.deformation(x, z))
    )
    optimiser = torch.optim.Adam(model.deformation.parameters(), lr=rate)
    for _ in range(steps):
        rows = torch.randperm(len(batch), generator=generator)[:size]
        projection, _ = model.project(batch.views[rows], images=batch.images[rows])
        optimiser.zero_grad()
        (projection - batch.images[rows]).square().mean().backward()
        optimiser.step()


def test_a_table_wins_wrong_poses_back():
    density, scene, batch, truth = _wrong(24, 0)
    model = _model(scene).eval()
    before = _errors(model, batch.views, truth)
    _train(model, density, batch, 60, 24, 1.0, torch.Generator().manual_seed(0))
    after = _errors(model, batch.views, truth)
    assert before[0] > 4 and before[1] > 2.5
    assert after[0] < before[0] / 2.5 and after[1] < before[1] / 6


@pytest.mark.slow
def test_an_encoder_corrects_particles_that_it_has_never_seen():
    density, scene, batch, _ = _wrong(1500, 1)
    _, _, fresh, truth = _wrong(100, 2)
    torch.manual_seed(0)
    model = _model(scene, "from=image").eval()
    before = _errors(model, fresh.views, truth, fresh.images)
    _train(model, density, batch, 400, 32, 3e-3, torch.Generator().manual_seed(0))
    after = _errors(model, fresh.views, truth, fresh.images)
    assert after[1] < 0.6 * before[1], (before, after)


def test_the_encoder_takes_any_box():
    encoder = Encoder(2)
    for box in (12, 33, 64):
        views = Views.of(torch.eye(3).expand(2, 3, 3), torch.zeros(2, 2))
        assert encoder(torch.randn(2, box, box), views, 1.0).shape == (2, 2)
        assert torch.isfinite(encoder(torch.zeros(2, box, box), replace(views), 1.0)).all()


# Several bodies


def _bodies(**options):
    """Two balls of radius 16 Å, 40 Å apart, with edges of 8 Å; the deformation and the centres."""
    centres = torch.tensor([[-20.0, 0.0, 0.0], [20.0, 4.0, 0.0]])
    away = (grids.voxel_centres(32, 3.0)[None] - centres[:, None, None, None]).norm(dim=-1)
    scene = Scene(box=32, pixel_size=3.0, count=3, bodies=((20 - away) / 8 + 0.5).clamp(0, 1))
    return (
        Rigid(Rigid.Options(bodies="one.mrc,two.mrc", **options), scene).double(),
        centres.double(),
    )


def _ball(centre, radius, count=40):
    return centre + radius * torch.nn.functional.normalize(
        torch.randn(count, 3, generator=torch.Generator().manual_seed(3)).double()
    )


def test_bodies_are_still_at_birth():
    rigid, _ = _bodies()
    x = 60 * torch.rand(3, 500, 3, generator=torch.Generator().manual_seed(0)).double() - 30
    assert torch.equal(rigid(x, rigid.latent(Views.of(torch.eye(3).double().expand(3, 3, 3)))), x)


def test_each_body_turns_about_its_own_centre():
    rigid, centres = _bodies()
    z = torch.zeros(1, 12, dtype=torch.float64)
    z[0, 6:9], z[0, 9:] = torch.tensor([0.1, -0.2, 0.3]), torch.tensor([1.0, -2.0, 0.5])
    one = _ball(centres[0], 8.0)[None]
    two = _ball(centres[1], 8.0)[None]
    there = rigid(two, z)

    def apart(p):
        return (p[0, :, None] - p[0]).norm(dim=-1)

    assert torch.allclose(apart(there), apart(two), atol=1e-9)  # an isometry
    expected = (two - centres[1]) @ rotations.from_rotvec(z[0, 6:9]).T + centres[1] + z[0, 9:]
    assert torch.allclose(there, expected, atol=0.02)  # the centre of mass of a ball of voxels
    assert torch.allclose(rigid(one, z), one, atol=1e-12)  # the other one has not moved


def test_a_body_leaves_nothing_behind():
    rigid, centres = _bodies()
    z = torch.zeros(1, 12, dtype=torch.float64)
    z[0, 9] = -12.0  # looked up 12 Å to the left, so it moved to the right
    left = centres[1] - torch.tensor(
        [14.0, 0.0, 0.0]
    )  # inside the mask, where the body was and is no more
    there = rigid(left[None, None].double(), z)[0, 0]
    assert float((there - centres[1]).norm()) > 18  # looked up where the body never was


def test_particles_bodies_are_their_own():
    rigid, _ = _bodies()
    g = torch.Generator().manual_seed(1)
    x = 20 * torch.randn(3, 50, 3, generator=g).double()
    z = 0.2 * torch.randn(3, 12, generator=g).double()
    each = torch.cat([rigid(x[i : i + 1], z[i : i + 1]) for i in range(3)])
    assert torch.allclose(rigid(x, z), each, atol=1e-12)
    x.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: rigid(x[:, :4], z), z.clone().requires_grad_(), atol=1e-4
    )


def test_bodies_without_masks_are_refused():
    with pytest.raises(CompositionError, match="no masks"):
        Rigid(Rigid.Options(bodies="one.mrc"), _scene(2))
