"""The log-likelihood of an image as a quadratic of its pose: its value in closed form, its
derivatives by differences.
"""

import torch
from support.posed_blobs import BOX, density, images, normal, pose_images, poses, wrong

from instamap.poses import correction
from instamap.poses.expansion import Expansion, ReferenceMap


def test_the_value_is_the_gain_over_an_empty_map():
    """Without noise and at the true poses: ½ Σ y² / σ² of the image, by Parseval's theorem."""
    truth = poses(5)
    noise = 1e-2  # the variance that stands for none
    found = pose_images(truth, truth, 0.0).expand(
        ReferenceMap(density()), torch.zeros(5, 5).double()
    )
    seen = images(truth)
    expected = 0.5 * seen.square().sum((1, 2)) / (noise * seen.std()) ** 2
    # The corners of the Fourier square are left out, in which such blobs have next to nothing.
    assert torch.allclose(found.value, expected, rtol=2e-3)


def test_the_gradient_vanishes_at_the_truth():
    """Of noiseless images, beside what it is at poses that are 3° and 3 Å wrong."""
    truth = poses(5)
    reference = ReferenceMap(density())
    right = pose_images(truth, truth, 0.0).expand(reference, torch.zeros(5, 5).double())
    off = pose_images(truth, truth, 0.0).expand(reference, wrong(5, 3.0, 3.0))
    assert (right.gradient.abs().amax(0) < 0.01 * off.gradient.abs().amax(0)).all()


def test_the_expansion_is_the_derivative_of_the_likelihood():
    truth = poses(5)
    seen = pose_images(truth, truth, 0.5)
    reference = ReferenceMap(density())
    z = wrong(5, 3.0, 3.0)
    found = seen.expand(reference, z)
    steps = (2e-3, 2e-3, 2e-3, 0.05, 0.05)  # values are float32 sums of hundreds of nats
    for i, size in enumerate(steps):
        step = torch.zeros(5, 5, dtype=torch.float64)
        step[:, i] = size
        up = seen.expand(reference, correction.followed_by(z, step)).value
        down = seen.expand(reference, correction.followed_by(z, -step)).value
        slope = (up - down) / (2 * size)
        rounding = 0.01 * float(found.gradient[:, i].abs().max())
        assert torch.allclose(slope, found.gradient[:, i], rtol=0.02, atol=rounding), i


def test_the_curvature_is_symmetric_and_never_negative():
    truth = poses(4)
    found = pose_images(truth, truth, 0.5).expand(ReferenceMap(density()), wrong(4, 3.0, 3.0))
    size = found.curvature.abs().amax()
    assert float((found.curvature - found.curvature.mT).abs().amax()) < 1e-5 * float(size)
    assert float(torch.linalg.eigvalsh(found.curvature).amin()) > 0


def test_a_limit_leaves_fine_components_out():
    """The sum of the gains of two parts of the plane is that of the whole."""
    truth = poses(3)
    reference = ReferenceMap(density())
    zero = torch.zeros(3, 5).double()
    whole = pose_images(truth, truth, 0.5).expand(reference, zero).value
    coarse = pose_images(truth, truth, 0.5, limit=BOX / 4).expand(reference, zero).value
    assert (coarse < whole).all()
    assert (coarse > 0.3 * whole).all()


def test_rows_of_two_expansions_are_chosen_and_joined():
    one = _expansion(3, seed=0)
    two = _expansion(3, seed=1)
    here = torch.tensor([True, False, True])
    chosen = one.or_else(two, here)
    for name in ("z", "value", "gradient", "curvature"):
        expected = getattr(one, name).clone()
        expected[1] = getattr(two, name)[1]
        assert torch.equal(getattr(chosen, name), expected)
        both = torch.cat([getattr(one, name), getattr(two, name)])
        assert torch.equal(getattr(Expansion.joined([one, two]), name), both)


def _expansion(count: int, seed: int) -> Expansion:
    shapes = ((count, 5), (count,), (count, 5), (count, 5, 5))
    return Expansion(*(normal(*shape, seed=seed) for shape in shapes))
