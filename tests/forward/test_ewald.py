"""Slices on the Ewald sphere: closed form for Gaussians, both signs, and the flat limit; RELION's
sign is held in tests/interop.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from instamap.errors import CompositionError
from instamap.fitting.normal import NormalEquations
from instamap.forward.central_slice import Slice
from instamap.forward.ewald import SIGNS, Ewald
from instamap.fourier import aberrations, ctf
from instamap.geometry import grids, rotations
from instamap.model import check_compatible, default_parts
from instamap.parts import Deformation
from instamap.plugin.choice import choose
from instamap.scene import Optics, Scene, Views

PIXEL = 2.0
SIGMA = 2.5
BOX = 48
# slow electrons: at 500 V the sphere is 28 times as curved as at 300 kV
VOLTAGES = (0.5, 20.0, 300.0)


def optics(voltages: tuple[float, ...], **values: Tensor) -> Optics:
    count = len(voltages)

    def each(value: float) -> Tensor:
        return torch.full((count,), value, dtype=torch.float64)

    return Optics(
        voltage=torch.tensor(voltages, dtype=torch.float64),
        spherical_aberration=each(2.7),
        amplitude_contrast=each(0.1),
        defocus_u=each(3000.0),
        defocus_v=each(2500.0),
        defocus_angle=each(0.4),
        phase_shift=each(0.2),
        b_factor=each(20.0),
        scale=each(0.9),
        **values,
    )


def draw(**values: Tensor) -> tuple[Tensor, Views]:
    """Centres of Gaussians, and views of every voltage."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(4, 3, generator=generator, dtype=torch.float64) * 8
    count = len(VOLTAGES)
    rotation = rotations.random(count, generator=generator)
    origin = torch.randn(count, 2, generator=generator, dtype=torch.float64) * 2
    return centres, Views.of(rotation, origin, optics(VOLTAGES, **values))


def density_of(centres: Tensor):
    def density(x: Tensor) -> Tensor:
        square = (x[..., None, :] - centres).square().sum(-1)
        return torch.exp(-square / (2 * SIGMA**2)).sum(-1)

    return density


def predicted(part: Ewald, centres: Tensor, views: Views) -> Tensor:
    one, other = part.in_phase_and_quadrature(density_of(centres), views)
    assert views.optics is not None
    of_one = ctf.apply(one, views.optics, PIXEL)
    return of_one + ctf.apply_quadrature(other, views.optics, PIXEL)


@pytest.mark.parametrize("curvature", ["positive", "negative"])
@pytest.mark.parametrize("distorted", [False, True])
def test_gaussians_in_closed_form(curvature, distorted):
    """½(-i e^{iχ} V+ + i e^{-iχ} V-) e^{2πi k·origin}, with V of Gaussians at Aᵀ(M k, ±λ|M k|²/2),
    transformed back.
    """
    values = {}
    if distorted:
        matrix = torch.tensor([[1.03, 0.02], [-0.01, 0.98]], dtype=torch.float64)
        values["magnification"] = matrix.expand(len(VOLTAGES), 2, 2)
    centres, views = draw(**values)
    scene = Scene(BOX, PIXEL)
    part = Ewald(Ewald.Options(curvature=curvature), scene).double().eval()
    images = predicted(part, centres, views)
    k = grids.frequencies(BOX, PIXEL, dtype=torch.float64)
    true = aberrations.frequencies(views.optics, BOX, PIXEL).expand(len(views), -1, -1, -1)
    sine = ctf.ctf(views.optics, BOX, PIXEL)
    cosine = ctf.quadrature_ctf(views.optics, BOX, PIXEL)
    wave = torch.complex(cosine, sine)  # e^{iχ} and the envelope
    length = ctf.wavelength(views.optics.voltage)[:, None, None]
    depth = 0.5 * SIGNS[curvature] * length * true.square().sum(-1)

    def components(z: Tensor) -> Tensor:
        q = torch.cat([true, z[..., None]], -1) @ views.rotation[:, None]
        height = (2 * math.pi) ** 1.5 * SIGMA**3
        shape = height * torch.exp(-2 * (math.pi * SIGMA) ** 2 * q.square().sum(-1))
        return shape * torch.exp(-2j * math.pi * (q @ centres.T)).sum(-1)

    above = components(depth)
    below = components(-depth)
    whole = 0.5 * (-1j * wave * above + 1j * wave.conj() * below)
    middle = BOX // 2 * PIXEL
    turns = torch.einsum("yxi,bi->byx", k, views.origin - middle)
    spectrum = whole * torch.exp(2j * math.pi * turns) / PIXEL**2
    expected = torch.fft.irfft2(spectrum, s=(BOX, BOX))
    assert (images - expected).abs().max() < 1e-3 * expected.abs().max()
    flat = Slice(Slice.Options(), scene).double().eval()(density_of(centres), views)
    flat = ctf.apply(flat, views.optics, PIXEL)
    error = (flat - expected).abs().amax((1, 2)) / expected.abs().amax((1, 2))
    assert error[0] > 0.02 > error[2]  # or the test would tell nothing


def test_mirrored_density_is_the_other_curvature():
    """What is seen of a density from behind, mirrored."""
    centres, views = draw()
    scene = Scene(BOX, PIXEL)
    views = replace(views, rotation=torch.eye(3, dtype=torch.float64).expand(len(views), 3, 3))
    made = {}
    for curvature in SIGNS:
        part = Ewald(Ewald.Options(curvature=curvature), scene).double().eval()
        made[curvature] = part
    flipped = centres * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    one = predicted(made["positive"], centres, views)
    other = predicted(made["negative"], flipped, views)
    torch.testing.assert_close(one, other, rtol=0, atol=2e-3 * float(one.abs().max()))


def test_the_quadrature_of_the_ctf():
    """Sine and cosine of one angle."""
    given = optics((300.0,))
    sine = ctf.ctf(given, 32, PIXEL)
    cosine = ctf.quadrature_ctf(given, 32, PIXEL)
    square = grids.frequencies(32, PIXEL, dtype=torch.float64).square().sum(-1)
    envelope = 0.9 * torch.exp(-5.0 * square)
    torch.testing.assert_close(sine**2 + cosine**2, (envelope**2)[None])


def test_what_it_does_not_go_with():
    parts = default_parts()
    parts["forward"] = choose("forward", "ewald", [])
    check_compatible(parts)
    with pytest.raises(CompositionError, match="premultiplied.*choose --forward slice"):
        check_compatible(parts, premultiplied=True)
    classes = {"deformation": Deformation, "likelihood": object, "forward": Ewald}
    assert NormalEquations.reason_against(classes) is not None
