"""The made-up set keeps every convention: bead by bead against quadrature, and as a whole through
its own STAR file.
"""

import math
from dataclasses import replace

import mrcfile
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instamap.data import noise
from instamap.data.particles import Particles
from instamap.errors import OptionError, OutputError
from instamap.fourier.ctf import ctf
from instamap.geometry import rotations
from instamap.simulate import particle_set
from instamap.simulate.beads import Beads, molecule
from instamap.simulate.exposure import Exposure

seeds = st.integers(0, 2**31)


def test_one_bead_against_quadrature():
    """A pixel is the mean of the line integral over it: 200 x 200 midpoints a pixel leave an error
    of 1e-6.
    """
    bead = torch.tensor([[3.0, -5.0, 2.0]]).double()
    origin = torch.tensor([[1.0, -1.5]]).double()
    size = 2.0
    box = 7
    image = Beads(bead, torch.tensor([2.0]).double(), box, size).project(
        torch.eye(3).double()[None], origin
    )[0]
    fine = (np.arange(box * 200) + 0.5) / 200 * size - (
        box // 2 + 0.5
    ) * size  # midpoints; pixel i spans (i - D // 2 ± 1/2) size

    def bell(x, s):
        return np.exp(-(x**2) / (2 * s * s)) / (math.sqrt(2 * math.pi) * s)

    narrow = 0.75 * size
    wide = math.hypot(0.75, 0.6) * size
    x = fine - (3.0 - 1.0)
    y = fine - (-5.0 + 1.5)
    exact = 2.0 * (
        np.outer(bell(y, narrow), bell(x, narrow)) - 0.6 * np.outer(bell(y, wide), bell(x, wide))
    )
    np.testing.assert_allclose(
        image.numpy(), exact.reshape(box, 200, box, 200).mean((1, 3)), atol=1e-6, rtol=0
    )


@given(seed=seeds, box=st.sampled_from([40, 41]))
def test_a_bead_lands_at_the_rotated_point_less_the_origin(seed, box):
    """By the centre of mass, which pixels see up to aliasing: exp(-2π² 0.75²) = 1.5e-5 of a bead of
    0.75 pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    bead = 15 * torch.rand(1, 3, generator=generator, dtype=torch.float64) - 7.5
    rotation = rotations.random(4, generator=generator)
    origin = 4 * torch.rand(4, 2, generator=generator, dtype=torch.float64) - 2
    images = Beads(bead, torch.ones(1).double(), box, 1.5).project(rotation, origin)
    axis = (torch.arange(box).double() - box // 2) * 1.5
    total = images.sum((1, 2))
    centre = (
        torch.stack([(images * axis).sum((1, 2)), (images * axis[:, None]).sum((1, 2))], -1)
        / total[:, None]
    )
    torch.testing.assert_close(centre, (rotation @ bead[0])[:, :2] - origin, atol=2e-4, rtol=0)
    torch.testing.assert_close(
        total * 1.5**2, torch.full((4,), 0.4, dtype=torch.float64), atol=1e-9, rtol=0
    )


@pytest.mark.parametrize("box", [32, 33])
def test_map_and_projection_are_of_the_same_molecule(box):
    beads, mass = molecule()
    source = Beads(beads * box * 6.0, mass, box, 6.0)
    volume = source.density()
    straight = source.project(torch.eye(3).double()[None], torch.zeros(1, 2).double())[0]
    torch.testing.assert_close(volume.sum(0) * 6.0, straight, atol=1e-9, rtol=0)
    down_y = torch.tensor(
        [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]]
    ).double()  # x stays, image y is z: the beam runs along y
    side = source.project(down_y[None], torch.zeros(1, 2).double())[0]
    torch.testing.assert_close(volume.sum(1) * 6.0, side, atol=1e-9, rtol=0)


def test_molecule_fits_the_box_and_is_centred():
    beads, mass = molecule()
    assert beads.norm(dim=-1).max() < 0.36  # of the edge: with 5 pixels' margin in a box of 32
    torch.testing.assert_close(
        (mass[:, None] * beads).sum(0), torch.zeros(3).double(), atol=1e-12, rtol=0
    )


def test_molecule_has_a_hand():
    """Its mirror image, turned about the long axis in steps of 15° with either end up, correlates
    with it below 0.9.
    """
    beads, mass = molecule()
    moments, axes = torch.linalg.eigh((beads * mass[:, None]).T @ beads)
    assert moments[2] > 3 * moments[1]
    aligned = beads @ (axes * axes.det())  # by a rotation; the last axis is the long one

    def view(points):
        return Beads(points * 144.0, mass, 24, 6.0).density().flatten()

    def alike(one, two):
        return torch.corrcoef(torch.stack([view(one), view(two)]))[0, 1].item()

    def about(x, y, z):
        return rotations.from_rotvec(torch.tensor([x, y, z], dtype=torch.float64))

    turns = [
        about(0, 0, k * math.pi / 12) @ about(end, 0, 0)
        for k in range(24)
        for end in (0.0, math.pi)
    ]
    mirrored = aligned * torch.tensor([-1, 1, 1])
    assert max(alike(aligned, mirrored @ turn.T) for turn in turns) < 0.9
    assert (
        max(alike(aligned, aligned @ turn.T) for turn in turns[1:] if turn.trace() < 2) < 0.9
    )  # nor has it a symmetry
    steps = beads[64:100].diff(dim=0)  # the linker
    assert (torch.linalg.cross(steps[:-2], steps[1:-1]) * steps[2:]).sum(
        -1
    ).min() > 0  # right-handed all along


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A set without noise to speak of."""
    return Particles.open(
        particle_set.demo(
            tmp_path_factory.mktemp("clean"),
            count=40,
            box=24,
            pixel_size=5.0,
            snr=1e10,
            seed=3,
        )
    )


def test_files(clean):
    assert (clean.count, clean.box, clean.pixel_size, clean.premultiplied) == (40, 24, 5.0, False)
    assert clean.half.bincount().tolist() == [20, 20]
    assert clean.ignored == []
    for name, shape in (("particles.mrcs", (40, 24, 24)), ("truth.mrc", (24, 24, 24))):
        with mrcfile.open(clean.path.parent / name) as mrc:
            assert mrc.data.shape == shape
            assert mrc.data.dtype == np.float32
            assert mrc.voxel_size.x == mrc.voxel_size.y == pytest.approx(5.0)
            assert mrc.is_image_stack() == name.endswith("s")


def test_images_follow_from_the_star_file_and_the_truth(clean):
    """What a reader of the three files computes is what is in them. STAR has six decimals: 1e-8 rad
    and 1e-6 Å.
    """
    truth = mrcfile.read(clean.path.parent / "truth.mrc").astype(np.float64)
    beads, mass = molecule()
    unit = truth.sum() * 5.0**3 / (0.4 * mass.sum())
    source = Beads(beads * 120.0, mass, 24, 5.0)
    assert np.abs(truth - unit.item() * source.density().numpy()).max() < 1e-6 * truth.max()
    views = clean.views
    flat = source.project(views.rotation, views.origin) * unit
    expected = torch.fft.irfft2(torch.fft.rfft2(flat) * ctf(views.optics, 24, 5.0), s=(24, 24))
    images = clean.images(torch.arange(40)).double()
    assert images.std().item() == pytest.approx(1e5, rel=1e-3)
    assert (images - expected).abs().max() < 1e-4 * images.std()  # noise is 1e-5 of it


def test_noise_has_variance_one_and_the_ratio_is_kept(tmp_path):
    particles = Particles.open(particle_set.demo(tmp_path / "a" / "b", count=400, snr=0.25, seed=1))
    spectra = noise.estimate(particles)
    # 400 x 220 pixels: a standard error of 0.5 %
    assert spectra[0, 2:].mean().item() == pytest.approx(
        1.0, rel=0.02
    )  # the molecule reaches into the corners at shell 1
    assert particles.images(torch.arange(400)).var().item() == pytest.approx(1.25, rel=0.02)


def test_the_seed_decides(tmp_path):
    def make(name, seed):
        return Particles.open(particle_set.demo(tmp_path / name, count=8, seed=seed))

    one = make("one", 1)
    same = make("same", 1)
    other = make("other", 2)
    rows = torch.arange(8)
    assert torch.equal(one.images(rows), same.images(rows))
    assert torch.equal(one.views.rotation, same.views.rotation)
    assert torch.equal(one.half, same.half)
    assert not torch.equal(one.images(rows), other.images(rows))
    truth = [mrcfile.read(p.path.parent / "truth.mrc").astype(np.float64) for p in (one, other)]
    assert np.corrcoef(truth[0].ravel(), truth[1].ravel())[0, 1] == pytest.approx(1.0, abs=1e-9)


def test_poses_are_uniform(tmp_path):
    """Means of the rotation matrices vanish: 1000 of them have a standard error of 0.018 an
    element.
    """
    views = Particles.open(particle_set.demo(tmp_path, count=1000, box=8)).views
    assert views.rotation.mean(0).abs().max() < 0.09
    assert views.origin.std().item() == pytest.approx(6.0, rel=0.1)
    assert (views.optics.defocus_u >= 8000).all()
    assert (views.optics.defocus_u <= 20000).all()


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("count", 0, "at least 1"),
        ("box", 7, "at least 8"),
        ("pixel_size", 0.0, "above 0"),
        ("snr", -1.0, "above 0"),
        ("snr", math.inf, "above 0"),
    ],
)
def test_values_that_make_no_sense(tmp_path, name, value, words):
    with pytest.raises(OptionError, match=f"{name} is {value}; it must be {words}"):
        particle_set.demo(tmp_path / "out", **{name: value})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["particles.star", "particles.mrcs", "truth.mrc"])
def test_nothing_is_overwritten(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match=f"{name}' is already there; choose another folder"):
        particle_set.demo(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_aberrations_and_dose_of_another_file_are_in_the_images(tmp_path):
    """Coma and three-fold astigmatism by hand: phases -2π Cs λ² s² t·k and c Re (kx + i ky)³; dose
    by Grant and Grigorieff; and what is written says so again.
    """
    labels = "rlnOpticsGroup rlnVoltage rlnSphericalAberration rlnAmplitudeContrast"
    labels += " rlnImagePixelSize rlnBeamTiltX rlnBeamTiltY rlnOddZernike rlnEvenZernike"
    lines = ["data_optics", "", "loop_", *(f"_{name}" for name in labels.split())]
    lines += ["1 300 2.7 0.1 5 1.5 -0.5 [0,0,0,0,0,90] [0,0,0,20]"]
    lines += ["2 300 2.7 0.1 5 0 0 [0] [0]", ""]
    labels = "rlnImageName rlnOpticsGroup rlnAngleRot rlnAngleTilt rlnAnglePsi rlnDefocusU"
    labels += " rlnDefocusV rlnDefocusAngle rlnOriginXAngst rlnOriginYAngst instamapDose"
    lines += ["data_particles", "", "loop_", *(f"_{name}" for name in labels.split())]
    for n in range(1, 7):
        pose = f"{40 * n} {20 * n} {90 - n}"
        lines += [f"{n}@absent.mrcs {1 + n % 2} {pose} 15000 14500 {10 * n} {n} -3 {4 * n}"]
    source = tmp_path / "source.star"
    source.write_text("\n".join([*lines, ""]))
    beads, mass = molecule()
    specimen = Beads(beads * 120.0, mass, 24, 5.0)
    plan = particle_set.Plan(star=source)
    written = particle_set.simulate(tmp_path / "set", specimen, plan, Exposure(1e10), seed=3)
    particles = Particles.open(written.star)
    optics = particles.views.optics
    assert particles.ignored == []
    assert torch.equal(optics.dose, 4.0 * torch.arange(1, 7).double())
    tilted = torch.arange(1, 7) % 2 == 0
    assert torch.equal(optics.beam_tilt[tilted], torch.tensor([[1.5, -0.5]] * 3).double())
    assert torch.equal(optics.odd[~tilted], torch.zeros(3, 6).double())

    frequency = np.fft.fftfreq(24, 5.0)
    y, x = np.meshgrid(frequency, frequency[:13], indexing="ij")
    x[:, 12] = 0.1  # of the two signs of the Nyquist frequency this is what rfft2 stands for
    square = x**2 + y**2
    wavelength = 12.2643247 / math.sqrt(3e5 * (1 + 3e5 * 0.978466e-6))
    coma = -2 * math.pi * 2.7e7 * wavelength**2 * square * (1.5e-3 * x - 0.5e-3 * y)
    trefoil = 90 * ((x + 1j * y) ** 3).real
    phases = tilted.numpy()[:, None, None] * (coma + trefoil)
    with np.errstate(divide="ignore"):
        critical = 0.245 * square ** (-1.665 / 2) + 2.81
    faded = np.exp(-2.0 * np.arange(1, 7)[:, None, None] / critical)
    bare = replace(optics, beam_tilt=None, odd=None, dose=None)
    flat = specimen.project(particles.views.rotation, particles.views.origin) * written.gain
    spectrum = torch.fft.rfft2(flat).numpy() * ctf(bare, 24, 5.0).numpy() * faded
    expected = np.fft.irfft2(spectrum * np.exp(1j * phases), s=(24, 24))
    images = particles.images(torch.arange(6)).double().numpy()
    assert np.abs(images - expected).max() < 1e-4 * images.std()
    plainly = np.fft.irfft2(spectrum, s=(24, 24))
    assert np.abs(images - plainly)[tilted].max() > 0.02 * images.std()
