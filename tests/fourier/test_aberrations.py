"""Aberrations beyond defocus and spherical aberration: Zernike terms, beam tilt, anisotropic
magnification, in closed form, against torch-ctf, and through projection and accumulation.
"""

import math

import pytest
import torch
import torch_ctf
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from instamap.forward.central_slice import Slice
from instamap.forward.ray import Ray
from instamap.fourier import aberrations, ctf
from instamap.geometry import grids, rotations
from instamap.scene import Optics, Scene, Views
from instamap.statistics.accumulator import Accumulator
from instamap.statistics.fourier_plane import FourierPlane

SEEDS = st.integers(0, 2**31 - 1)
PIXEL = 2.0
SIGMA = 4.0  # Å
# gridding errs by 2e-4 for white noise (see test_statistics)
GRIDDING = 1e-3


def optics(rows: int = 1, **values: object) -> Optics:
    """A 300 kV microscope, with more if so said."""
    plain = {
        "voltage": 300.0,
        "spherical_aberration": 2.7,
        "amplitude_contrast": 0.1,
        "defocus_u": 12000.0,
        "defocus_v": 11000.0,
        "defocus_angle": 0.3,
        "phase_shift": 0.0,
        "b_factor": 0.0,
        "scale": 1.0,
    }
    numbers = {
        name: torch.full((rows,), value, dtype=torch.float64) for name, value in plain.items()
    }
    rest = {
        name: torch.as_tensor(value, dtype=torch.float64).expand(rows, *torch.tensor(value).shape)
        for name, value in values.items()
    }
    return Optics(**numbers, **rest)


EVERYTHING = {
    "beam_tilt": [4.0, -7.0],
    "odd": [3.0, -5.0, 200.0, 300.0, -100.0, 250.0],
    "even": [0.3, 5.0, -7.0, 4.0, 900.0, 0.0, -800.0, 700.0, 0.0],
    "magnification": [[1.04, 0.03], [-0.02, 0.97]],
}


@pytest.mark.parametrize(
    ("n", "m", "radial"),
    [
        (0, 0, lambda s: torch.ones_like(s)),
        (1, -1, lambda s: s),
        (1, 1, lambda s: s),
        (2, 0, lambda s: 2 * s**2 - 1),
        (2, -2, lambda s: s**2),
        (3, 1, lambda s: 3 * s**3 - 2 * s),
        (3, -3, lambda s: s**3),
        (4, 0, lambda s: 6 * s**4 - 6 * s**2 + 1),
        (4, 2, lambda s: 4 * s**4 - 3 * s**2),
        (6, 0, lambda s: 20 * s**6 - 30 * s**4 + 12 * s**2 - 1),
    ],
)
def test_zernike_polynomials(n, m, radial):
    """As in every table of them: cosines for m ≥ 0, sines below."""
    k = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    s = k.norm(dim=-1)
    angle = torch.atan2(k[:, 1], k[:, 0])
    wave = torch.cos(m * angle) if m >= 0 else torch.sin(-m * angle)
    torch.testing.assert_close(aberrations.zernike(n, m, k), radial(s) * wave)


def test_order_of_the_terms():
    assert aberrations.odd_orders(6) == [(1, -1), (1, 1), (3, -3), (3, -1), (3, 1), (3, 3)]
    assert aberrations.even_orders(5) == [(0, 0), (2, -2), (2, 0), (2, 2), (4, -4)]
    assert aberrations.odd_orders(0) == []


def test_nothing_is_computed_where_nothing_is_said():
    plain = optics()
    k = aberrations.frequencies(plain, 16, PIXEL)
    assert aberrations.even_phase(plain, k) is None
    assert aberrations.odd_phase(plain, k) is None
    assert aberrations.modulation(plain, 16, PIXEL) is None
    assert aberrations.modulation(None, 16, PIXEL) is None
    views = Views.of(rotations.random(2))
    assert views.undistorted is None and torch.equal(views.frames, views.rotation[:, :2])


def test_beam_tilt_is_coma():
    """It is what RELION puts into the odd terms (1, ±1) and (3, ±1)."""
    tilt = torch.tensor([3.0, -1.5], dtype=torch.float64)
    tilted = optics(beam_tilt=tilt.tolist())
    lam = float(ctf.wavelength(torch.tensor(300.0, dtype=torch.float64)))
    x, y = (-(2.7 * 2e4 * math.pi * lam**2) * tilt / 3).tolist()
    terms = optics(odd=[2 * y, 2 * x, 0.0, y, x, 0.0])
    k = aberrations.frequencies(tilted, 16, PIXEL)
    one = aberrations.odd_phase(tilted, k)
    other = aberrations.odd_phase(terms, k)
    assert one.abs().max() > 0.1
    torch.testing.assert_close(one, other)


@given(b=st.floats(-30, 30), a=st.floats(-30, 30))
def test_first_odd_terms_are_a_shift(a, b):
    """e^{i(a ky + b kx)} moves an image by -(b, a)/2π Å."""
    u = grids.pixel_centres(32, PIXEL, dtype=torch.float64)
    there = torch.tensor([-b, -a], dtype=torch.float64) / (2 * math.pi)

    def blob(centre: Tensor) -> Tensor:
        return torch.exp(-(u - centre).square().sum(-1) / (2 * SIGMA**2))

    moved = ctf.modulate(blob(torch.zeros(2))[None], optics(odd=[a, b]), PIXEL)[0]
    torch.testing.assert_close(moved, blob(there), rtol=0, atol=1e-6)


def test_even_terms_are_subtracted_from_the_phase():
    """(0, 0) is a phase plate, (2, 0) an offset and a defocus, (4, 0) spherical aberration too."""
    phase = optics(even=[0.4])
    plate = Optics(**{**vars(optics()), "phase_shift": optics().phase_shift - 0.4})
    torch.testing.assert_close(ctf.ctf(phase, 32, PIXEL), ctf.ctf(plate, 32, PIXEL))
    c = 30.0
    lam = float(ctf.wavelength(torch.tensor(300.0, dtype=torch.float64)))
    focus = optics(even=[c, 0.0, c])
    closer = -2 * c / (math.pi * lam)
    base = optics()
    refocused = Optics(
        **{
            **vars(base),
            "defocus_u": base.defocus_u + closer,
            "defocus_v": base.defocus_v + closer,
        }
    )
    torch.testing.assert_close(
        ctf.ctf(focus, 32, PIXEL), ctf.ctf(refocused, 32, PIXEL), rtol=0, atol=1e-9
    )


def from_torch_ctf(**values: object) -> Tensor:
    """teamtomo's torch-ctf, in float32, of the microscope `optics`."""
    return torch_ctf.calculate_ctf_2d(
        defocus=1.15,
        astigmatism=0.05,
        astigmatism_angle=math.degrees(0.3),
        voltage=300.0,
        spherical_aberration=2.7,
        amplitude_contrast=0.1,
        phase_shift=0.0,
        pixel_size=PIXEL,
        image_shape=(32, 32),
        rfft=True,
        fftshift=False,
        **values,
    ).to(torch.complex128)


def transfer(given: Optics) -> Tensor:
    """CTF and odd aberrations."""
    return (ctf.ctf(given, 32, PIXEL) * aberrations.modulation(given, 32, PIXEL))[0]


def test_zernike_terms_agree_with_torch_ctf():
    """Which names terms one by one, and leaves the lower powers out of RELION's polynomials: the
    terms (1, ±1) and (2, ±2) add them here.
    """
    x, y, c3, s3, c2, s2, c4, s4 = 90.0, -60.0, 120.0, -70.0, 250.0, -150.0, 180.0, 260.0
    # 3s³ - 2s of (3, ±1) and 4s⁴ - 3s² of (4, ±2)
    odd = [2 * y / 3, 2 * x / 3, s3, y / 3, x / 3, c3]
    even = [0, 3 * s2 / 4, 0, 3 * c2 / 4, s4, s2 / 4, 0, c2 / 4, c4]
    theirs = from_torch_ctf(
        odd_zernike_coeffs={"Z31c": x, "Z31s": y, "Z33c": c3, "Z33s": s3},
        even_zernike_coeffs={"Z42c": c2, "Z42s": s2, "Z44c": c4, "Z44s": s4},
    )
    torch.testing.assert_close(transfer(optics(odd=odd, even=even)), theirs, rtol=0, atol=2e-3)


def test_beam_tilt_and_magnification_agree_with_torch_ctf():
    """Its beam tilt has the opposite sign of RELION's, which `tests/interop` holds ours against,
    and its matrix is that of images, [y, x]: M⁻ᵀ, that of frequencies being M.
    """
    matrix = torch.tensor(EVERYTHING["magnification"], dtype=torch.float64)
    theirs = from_torch_ctf(
        beam_tilt_mrad=torch.tensor([-4.0, 7.0]),
        transform_matrix=torch.linalg.inv(matrix).T.flip(0, 1).float(),
    )
    ours = optics(beam_tilt=[4.0, -7.0], magnification=matrix.tolist())
    torch.testing.assert_close(transfer(ours), theirs, rtol=0, atol=2e-3)


@given(scale=st.floats(0.9, 1.1), box=st.sampled_from([15, 16]))
def test_even_magnification_is_another_pixel_size(scale, box):
    """All phases are those of true frequencies."""
    rest = {name: value for name, value in EVERYTHING.items() if name != "magnification"}
    scaled = optics(**rest, magnification=[[scale, 0.0], [0.0, scale]])
    plain = optics(**rest)
    size = PIXEL / scale
    torch.testing.assert_close(ctf.ctf(scaled, box, PIXEL), ctf.ctf(plain, box, size))
    torch.testing.assert_close(
        aberrations.modulation(scaled, box, PIXEL), aberrations.modulation(plain, box, size)
    )


def blobs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Centres "G 3" (Å) and heights of Gaussians of width SIGMA."""
    centres = torch.randn(5, 3, generator=generator, dtype=torch.float64) * 4
    return centres, torch.rand(5, generator=generator, dtype=torch.float64) + 0.5


def density_of(centres: Tensor, heights: Tensor):
    def density(x: Tensor) -> Tensor:
        square = (x[..., None, :] - centres).square().sum(-1)
        return (torch.exp(-square / (2 * SIGMA**2)) * heights).sum(-1)

    return density


def drawn_views(generator: torch.Generator, count: int = 3, **values: object) -> Views:
    rotation = rotations.random(count, generator=generator)
    origin = torch.randn(count, 2, generator=generator, dtype=torch.float64) * 3
    return Views.of(rotation, origin, optics(count, **values))


@pytest.mark.parametrize("operator", [Slice, Ray])
@pytest.mark.parametrize("box", [31, 32])
def test_distorted_projections_of_gaussians(operator, box):
    """Closed form: Gaussians seen at M⁻ᵀ(u + origin), as bright as their transform says."""
    generator = torch.Generator().manual_seed(box)
    centres, heights = blobs(generator)
    views = drawn_views(generator, magnification=EVERYTHING["magnification"])
    part = operator(operator.Options(), Scene(box, PIXEL)).double().eval()
    images = part(density_of(centres, heights), views)
    u = grids.pixel_centres(box, PIXEL, dtype=torch.float64)
    inverse = torch.linalg.inv(views.magnification)
    seen = torch.einsum("nij,gj->ngi", views.rotation, centres)[..., :2]
    at = (u + views.origin[:, None, None]) @ inverse[:, None]
    square = (at[:, :, :, None] - seen[:, None, None]).square().sum(-1)
    planes = (torch.exp(-square / (2 * SIGMA**2)) * heights).sum(-1)
    bright = math.sqrt(2 * math.pi) * SIGMA * torch.linalg.det(inverse).abs()
    expected = planes * bright[:, None, None]
    assert (images - expected).abs().max() < 1e-3 * expected.max()


@pytest.mark.parametrize("premultiplied", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_accumulation_is_the_transpose_of_imaging(premultiplied, symmetric):
    """⟨b, V⟩ = Σ ⟨C e^{iO} V̂(Aᵀ M k), Y⟩ / σ², summed explicitly; K likewise: of three images with
    all aberrations, one of them distorted in another way.
    """
    box = 10
    generator = torch.Generator().manual_seed(5)
    views = drawn_views(generator, **EVERYTHING)
    matrices = views.magnification.clone()
    matrices[1] = torch.tensor([[0.95, 0.02], [0.02, 1.0]])
    changed = {**vars(views.optics), "magnification": matrices}
    views = Views(views.rotation, views.origin, views.index, views.group, Optics(**changed))
    images = torch.randn(3, box, box, generator=generator, dtype=torch.float64)
    volume = torch.randn(box, box, box, generator=generator, dtype=torch.float64)
    volume *= grids.voxel_centres(box, 1.0).norm(dim=-1) <= box // 2 - 0.5
    half_turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))
    turns = torch.stack([torch.eye(3, dtype=torch.float64), half_turn])
    accumulator = Accumulator(
        box,
        PIXEL,
        dtype=torch.float64,
        backend="torch",
        premultiplied=premultiplied,
        symmetry=turns if symmetric else None,
    )
    curve = ctf.ctf(views.optics, box, PIXEL)
    accumulator.add(images, views, noise_variance=torch.ones(box // 2 + 1), ctf=curve)
    statistics = accumulator.finish()
    x = grids.voxel_centres(box, 1.0, dtype=torch.float64).view(-1, 3)
    k = grids.frequencies(box, 1 / box, dtype=torch.float64)
    data = 0.0
    energy = 0.0
    for i in range(3):
        for turn in turns if symmetric else turns[:1]:
            true = k @ matrices[i].T
            taken = true.norm(dim=-1).maximum(k.norm(dim=-1)) < box / 2 - 1e-6
            q = true[taken] @ (views.rotation[i] @ turn)[:2]
            slices = torch.exp(-2j * math.pi / box * (q @ x.T)) @ volume.view(-1).to(
                torch.complex128
            )
            to_place = torch.exp(
                -2j * math.pi / box * (k[taken] @ (box // 2 - views.origin[i] / PIXEL))
            )
            odd = aberrations.modulation(views.optics, box, PIXEL)[i][taken]
            field = PIXEL * slices * to_place * odd
            predicted = field * curve[i][taken]
            observed = torch.fft.rfft2(images[i])[taken]
            twice = torch.where(k[taken][:, 0] == 0, 1.0, 2.0)
            share = twice / box**2 / (len(turns) if symmetric else 1)
            against = field if premultiplied else predicted
            data += float(((against.conj() * observed).real * share).sum())
            energy += float((predicted.abs().square() * share).sum())
    assert float((statistics.b * volume).sum()) == pytest.approx(data, rel=GRIDDING)
    loss = float(statistics.loss(volume))
    assert loss == pytest.approx(0.5 * energy - data, rel=GRIDDING)


def test_components_beyond_the_particle_s_are_left_out():
    """Where the magnification carries them to Nyquist or beyond; nothing else changes."""
    whole = FourierPlane(16)
    larger = FourierPlane(16, magnification=torch.tensor([[1.1, 0.0], [0.0, 1.0]]))
    smaller = FourierPlane(16, magnification=0.9 * torch.eye(2))
    assert len(larger) < len(whole) == len(smaller)
    assert (larger.points * torch.tensor([1.1, 1.0])).norm(dim=1).max() < 8


def test_mirrored_optics_make_mirrored_images():
    """Twice mirrored they are what they were."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 31, 31, generator=generator, dtype=torch.float64)
    given = optics(**EVERYTHING)
    all_of_them = torch.tensor([True])
    there = aberrations.mirrored(given, all_of_them)
    one = ctf.apply(image, given, PIXEL).flip(2)
    other = ctf.apply(image.flip(2), there, PIXEL)
    torch.testing.assert_close(one, other)
    back = aberrations.mirrored(there, all_of_them)
    for name, values in vars(given).items():
        if values is not None:
            assert torch.equal(getattr(back, name), values), name
    same = aberrations.mirrored(given, ~all_of_them)
    assert torch.equal(same.odd, given.odd)
