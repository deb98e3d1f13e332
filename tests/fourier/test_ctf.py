"""The contrast transfer function: RELION's formula, sign and units, from its zeros to its
application with padding.
"""

import math

import pytest
import torch
import torch_ctf
from hypothesis import given
from hypothesis import strategies as st

from instamap.fourier.ctf import apply, compiled_ctf, ctf, wavelength
from instamap.geometry import compiled, grids
from instamap.scene import Optics

SEEDS = st.integers(0, 2**31 - 1)
BOXES = st.sampled_from([15, 16, 31, 32])


def optics(rows=1, **values) -> Optics:
    """A 300 kV microscope without astigmatism, decay or phase plate, unless said otherwise; numbers
    or tensors "B".
    """
    usual = {
        "voltage": 300.0,
        "spherical_aberration": 2.7,
        "amplitude_contrast": 0.1,
        "defocus_u": 15000.0,
        "defocus_v": 15000.0,
        "defocus_angle": 0.0,
        "phase_shift": 0.0,
        "b_factor": 0.0,
        "scale": 1.0,
    }
    return Optics(
        **{
            name: torch.as_tensor(value, dtype=torch.float64).expand(rows)
            for name, value in {**usual, **values}.items()
        }
    )


def drawn(seed, rows=3) -> Optics:
    """Random but plausible optics."""
    g = torch.Generator().manual_seed(seed)

    def between(low, high):
        return low + (high - low) * torch.rand(rows, generator=g, dtype=torch.float64)

    v = between(3000.0, 30000.0)
    return Optics(
        voltage=torch.tensor([100.0, 200.0, 300.0], dtype=torch.float64)[
            torch.randint(3, (rows,), generator=g)
        ],
        spherical_aberration=between(0.0, 2.7),
        amplitude_contrast=between(0.0, 0.3),
        defocus_u=v + between(0.0, 3000.0),
        defocus_v=v,
        defocus_angle=between(-math.pi, math.pi),
        phase_shift=between(0.0, math.pi),
        b_factor=between(0.0, 100.0),
        scale=between(0.3, 1.0),
    )


@pytest.mark.parametrize(
    ("kilovolts", "expected"), [(100, 0.0370144), (200, 0.0250793), (300, 0.0196875)]
)
def test_wavelength_in_tables(kilovolts, expected):
    """Kirkland, Advanced Computing in Electron Microscopy, table 2.1; seven digits are given."""
    assert float(wavelength(torch.tensor(float(kilovolts), dtype=torch.float64))) == pytest.approx(
        expected, abs=1e-7
    )


@given(seed=SEEDS, box=BOXES)
def test_shape_and_bound(seed, box):
    values = ctf(drawn(seed), box, 2.0)
    assert values.shape == (3, box, box // 2 + 1)
    assert values.dtype == torch.float64
    assert values.abs().max() <= 1


def test_dtype_is_that_of_the_optics():
    assert ctf(optics().to(torch.float32), 16, 2.0).dtype == torch.float32


@given(seed=SEEDS, box=BOXES)
def test_even(seed, box):
    """CTF(-k) = CTF(k). In the half plane of rfft2 both are there where kx = 0; elsewhere half a
    turn of the astigmatism tells.
    """
    o = drawn(seed)
    column = ctf(o, box, 2.0)[:, 1:, 0]
    torch.testing.assert_close(column, column.flip(1), rtol=0, atol=1e-9)
    turned = Optics(**{**vars(o), "defocus_angle": o.defocus_angle + math.pi})
    torch.testing.assert_close(ctf(turned, box, 2.0), ctf(o, box, 2.0), rtol=0, atol=1e-9)


@given(w=st.floats(0, 1), b=st.floats(0, 500))
def test_protein_is_white_at_low_frequency(w, b):
    """CTF(0) = +w: RELION's sign."""
    value = ctf(optics(amplitude_contrast=w, b_factor=b), 16, 2.0)[0, 0, 0]
    assert float(value) == pytest.approx(w, abs=1e-12)


@given(w=st.floats(0, 0.5), phase=st.floats(0, math.pi))
def test_phase_shift_at_the_origin(w, phase):
    """CTF(0) = sqrt(1-w²) sin φ + w cos φ: a phase plate adds to χ."""
    value = ctf(optics(amplitude_contrast=w, phase_shift=phase), 16, 2.0)[0, 0, 0]
    assert float(value) == pytest.approx(
        math.sqrt(1 - w**2) * math.sin(phase) + w * math.cos(phase), abs=1e-12
    )


@given(phase=st.floats(0, 1.5))
def test_phase_shift_is_amplitude_contrast(phase):
    """sin(χ + φ) = sqrt(1-w²) sin χ + w cos χ for w = sin φ."""
    plate = optics(amplitude_contrast=0, phase_shift=phase)
    contrast = optics(amplitude_contrast=math.sin(phase))
    torch.testing.assert_close(ctf(plate, 32, 2.0), ctf(contrast, 32, 2.0), rtol=0, atol=1e-9)


@given(
    order=st.integers(1, 12),
    defocus=st.floats(5000, 30000),
    cs=st.floats(0.01, 2.7),
    w=st.floats(0, 0.3),
)
def test_zeros(order, defocus, cs, w):
    """The n-th zero is where πλ df s² - ½π Cs λ³ s⁴ + asin w = nπ, a quadratic in s²; the sign
    changes there.
    """
    lam = float(wavelength(torch.tensor(300.0, dtype=torch.float64)))
    a = 0.5 * cs * 1e7 * lam**3
    b = -lam * defocus
    c = order - math.asin(w) / math.pi
    s = math.sqrt((-b - math.sqrt(b * b - 4 * a * c)) / (2 * a))
    component = 10
    box = 64
    pixel_size = component / (box * s)  # puts the zero onto that component of the x axis
    row = ctf(
        optics(defocus_u=defocus, defocus_v=defocus, spherical_aberration=cs, amplitude_contrast=w),
        box,
        pixel_size,
    )[0, 0]
    assert abs(float(row[component])) < 1e-9
    near = [
        ctf(
            optics(
                defocus_u=defocus, defocus_v=defocus, spherical_aberration=cs, amplitude_contrast=w
            ),
            box,
            pixel_size * f,
        )
        for f in (1.001, 0.999)
    ]
    before, after = (float(values[0, 0, component]) for values in near)
    assert before * (-1) ** order < 0 < after * (-1) ** order


@given(b=st.floats(0, 300), box=BOXES)
def test_b_factor(b, box):
    """exp(-B s²/4), so that intensities fall by exp(-B s²/2)."""
    square = grids.frequencies(box, 2.0, dtype=torch.float64).square().sum(-1)
    expected = ctf(optics(), box, 2.0) * torch.exp(-b * square / 4)
    torch.testing.assert_close(ctf(optics(b_factor=b), box, 2.0), expected, rtol=0, atol=1e-12)


def test_scale_multiplies():
    torch.testing.assert_close(ctf(optics(scale=0.7), 16, 2.0), 0.7 * ctf(optics(), 16, 2.0))


@pytest.mark.parametrize(
    ("degrees", "at_u", "at_v"),
    [(0, (0, 5), (5, 0)), (90, (5, 0), (0, 5)), (45, (5, 5), (-5, 5)), (-45, (-5, 5), (5, 5))],
)
def test_astigmatism_turns_from_x_to_y(degrees, at_u, at_v):
    """Along its axis, an angle from x towards y, the defocus is u; across it is v. Components are
    [ky, kx].
    """
    values = ctf(
        optics(defocus_u=16000, defocus_v=14000, defocus_angle=math.radians(degrees)), 32, 2.0
    )[0]
    plain = {d: ctf(optics(defocus_u=d, defocus_v=d), 32, 2.0)[0] for d in (16000, 14000)}
    assert float(values[at_u]) == pytest.approx(float(plain[16000][at_u]), abs=1e-9)
    assert float(values[at_v]) == pytest.approx(float(plain[14000][at_v]), abs=1e-9)
    assert (
        abs(float(plain[16000][at_u] - plain[14000][at_u])) > 0.01
    )  # or the test would tell nothing


@given(seed=SEEDS, box=BOXES)
def test_agrees_with_torch_ctf(seed, box):
    """teamtomo's torch-ctf: micrometres and degrees; the same sign. It works in float32, where χ of
    some hundred radians errs by 1e-4.
    """
    o = drawn(seed)
    theirs = torch_ctf.calculate_ctf_2d(
        defocus=(o.defocus_u + o.defocus_v) / 2e4,
        astigmatism=(o.defocus_u - o.defocus_v) / 2e4,
        astigmatism_angle=torch.rad2deg(o.defocus_angle),
        voltage=o.voltage,
        spherical_aberration=o.spherical_aberration,
        amplitude_contrast=o.amplitude_contrast,
        phase_shift=torch.rad2deg(o.phase_shift),
        pixel_size=2.0,
        image_shape=(box, box),
        rfft=True,
        fftshift=False,
    )
    bare = Optics(
        **{
            **vars(o),
            "b_factor": torch.zeros(3, dtype=torch.float64),
            "scale": torch.ones(3, dtype=torch.float64),
        }
    )
    torch.testing.assert_close(theirs.double(), ctf(bare, box, 2.0), rtol=0, atol=2e-3)


@given(seed=SEEDS, box=BOXES)
def test_point_spread_is_centred(seed, box):
    """A point at pixel D // 2 becomes a pattern that is symmetric about it: contrast transfer moves
    nothing.
    """
    point = torch.zeros(3, box, box, dtype=torch.float64)
    point[:, box // 2, box // 2] = 1
    for padding in (1.0, 2.0):
        image = apply(point, drawn(seed), 2.0, padding=padding)
        inner = image[:, 1 - box % 2 :, 1 - box % 2 :]
        torch.testing.assert_close(inner, inner.flip(1, 2), rtol=0, atol=1e-12)


@given(seed=SEEDS, box=BOXES, padding=st.sampled_from([1.0, 1.3, 2.0]))
def test_apply_is_its_own_transpose(seed, box, padding):
    """⟨C a, b⟩ = ⟨a, C b⟩, which the normal equations rely on."""
    o = drawn(seed)
    a, b = torch.randn(
        2, 3, box, box, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    left, right = ((apply(p, o, 2.0, padding=padding) * q).sum() for p, q in ((a, b), (b, a)))
    assert float(left) == pytest.approx(float(right), abs=1e-9)


def test_padding_keeps_edges_apart():
    """What leaves at one edge comes back at the other without padding, and is gone with it."""
    point = torch.zeros(1, 32, 32, dtype=torch.float64)
    point[0, 16, 1] = 1
    wrapped, padded = (
        apply(point, optics(b_factor=50.0), 2.0, padding=p)[0, 16] for p in (1.0, 2.0)
    )
    large = grids.crop(apply(grids.pad(point, 128), optics(b_factor=50.0), 2.0), 32)[0, 16]
    assert (padded - large).norm() < 0.3 * (wrapped - large).norm()


def test_padding_one_is_the_plain_product():
    image = torch.randn(1, 15, 15, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.fft.irfft2(torch.fft.rfft2(image) * ctf(optics(), 15, 2.0), s=(15, 15))
    torch.testing.assert_close(apply(image, optics(), 2.0), expected, rtol=0, atol=1e-12)


# Compiled

needs_numba = pytest.mark.skipif(not compiled.usable(), reason="numba is not installed")


@needs_numba
@given(seed=SEEDS, box=BOXES)
def test_compiled_values_are_those_of_the_formula(seed, box):
    """To the rounding of the result, 6e-8, and of the polynomial: phases of many turns are in
    double precision.
    """
    single = drawn(seed).to(torch.float32)
    expected = ctf(single.to(torch.float64), box, 0.8)
    values = compiled_ctf(single, box, 0.8)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), expected, rtol=0, atol=2e-7)


@needs_numba
def test_compiled_values_at_extremes():
    """No amplitude contrast and no other; a turn more or less changes nothing."""
    single = optics(
        3, amplitude_contrast=torch.tensor([0.0, 1.0, 0.1]), b_factor=50.0, phase_shift=9.0
    ).to(torch.float32)
    expected = ctf(single.to(torch.float64), 32, 0.5)
    torch.testing.assert_close(compiled_ctf(single, 32, 0.5).double(), expected, rtol=0, atol=2e-7)


@needs_numba
def test_numbers_that_are_none_stay_so():
    """Or else a damaged defocus would pass for a CTF."""
    single = optics(2, defocus_u=torch.tensor([math.nan, 1e4])).to(torch.float32)
    values = compiled_ctf(single, 8, 2.0)
    assert values[0].isnan().all() and values[1].isfinite().all()


@needs_numba
def test_threads_change_no_bit_of_compiled_values():
    single = drawn(0, rows=7).to(torch.float32)
    one = compiled_ctf(single, 16, 2.0)
    torch.set_num_threads(3)
    try:
        assert torch.equal(compiled_ctf(single, 16, 2.0), one)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    "more",
    [
        {"dose": torch.full((3,), 10.0)},
        {"even": torch.full((3, 2), 0.3)},
        {"magnification": torch.diag(torch.tensor([1.01, 0.99])).expand(3, 2, 2)},
    ],
)
def test_other_optics_take_the_formula(more):
    single = Optics(**{**vars(drawn(1).to(torch.float32)), **more})
    assert torch.equal(compiled_ctf(single, 16, 2.0), ctf(single, 16, 2.0))
