"""`instamap simulate`: what it writes can be reconstructed, its noise, contrasts and backgrounds
are what its record says, and refusals.
"""

import math
import re
import tomllib

import pytest
import torch
from support.command import QUICK, instamap, maps

from instamap.data.particles import Particles
from instamap.errors import OptionError
from instamap.fourier.ctf import ctf
from instamap.geometry import grids
from instamap.maps import fsc, mrc
from instamap.simulate import particle_set
from instamap.simulate.exposure import Exposure
from instamap.simulate.potential import Potential

BOX = 24
SIZE = 4.0
SPIRAL = [
    (9 * math.cos(0.55 * i) * (0.5 + i / 60), 9 * math.sin(0.55 * i) * (0.5 + i / 60), 0.9 * i - 25)
    for i in range(60)
]


@pytest.fixture(scope="module")
def molecule(tmp_path_factory):
    """A conical spiral of 60 carbon atoms."""
    path = tmp_path_factory.mktemp("model") / "spiral.pdb"

    def place(where):
        return "".join(f"{value:8.3f}" for value in where)

    lines = [
        f"ATOM  {i:5d}  C   UNK A{i:4d}    {place(where)}  1.00 40.00           C"
        for i, where in enumerate(SPIRAL, 1)
    ]
    path.write_text("\n".join([*lines, "END", ""]))
    return path


@pytest.fixture(scope="module")
def made(molecule, tmp_path_factory):
    """A set with all that is drawn, of the command line."""
    out = tmp_path_factory.mktemp("made") / "set"
    words = (
        "--box",
        BOX,
        "--pixel",
        SIZE,
        "-n",
        1500,
        "--snr",
        2.0,
        "--noise",
        "coloured",
        "--scale",
        0.2,
        "--offset",
        0.5,
        "--defocus",
        "9000:15000",
        "--shift",
        2.0,
        "--solvent",
        0.3,
        "--point-mass",
        1e-3,
        "--b-factor",
        60,
        "--seed",
        7,
    )
    outcome = instamap("simulate", molecule, *words, "-o", out)
    assert outcome.code == 0, outcome.err
    assert (
        outcome.out
        == f"1500 images of 24 px at 4 Å in {out}/: particles.star, particles.mrcs, truth.mrc,"
        " simulate.toml\n"
    )
    assert sorted(path.name for path in out.iterdir()) == [
        "particles.mrcs",
        "particles.star",
        "simulate.toml",
        "truth.mrc",
    ]
    return out


@pytest.fixture(scope="module")
def record(made):
    return tomllib.loads((made / "simulate.toml").read_text())


def test_the_record_says_what_was_asked_and_what_was_drawn(made, record, molecule):
    lists = ("centre", "noise_spectrum", "contrast", "background", "gain")
    assert {name: value for name, value in record.items() if name not in lists} == {
        "source": str(molecule),
        "files": ["particles.star", "particles.mrcs", "truth.mrc"],
        "seed": 7,
        "box": 24,
        "pixel_size": 4.0,
        "b_factor": 60.0,
        "solvent": 0.3,
        "point_mass": 1e-3,
        "poses": "uniform",
        "shift": 2.0,
        "defocus": [9000.0, 15000.0],
        "snr": 2.0,
        "noise": "coloured",
        "scale": 0.2,
        "offset": 0.5,
        "count": 1500,
    }
    centre = torch.tensor(SPIRAL).mean(0)  # atoms of one kind
    torch.testing.assert_close(torch.tensor(record["centre"]), centre, atol=1e-3, rtol=0)
    source = particle_set.of_model(molecule, BOX, SIZE, b_factor=60, solvent=0.3, point_mass=1e-3)
    torch.testing.assert_close(
        mrc.read(made / "truth.mrc")[0], source.density() * record["gain"], rtol=1e-5, atol=1e-6
    )
    views = Particles.open(made / "particles.star").views
    assert views.origin.std().item() == pytest.approx(2.0, rel=0.1)
    assert views.optics.defocus_u.min() >= 9000 and views.optics.defocus_u.max() <= 15000


def test_images_are_contrast_times_signal_plus_background_plus_noise(made, record, molecule):
    """Every image, with the signal made anew from the STAR file. What remains has the spectrum of
    the record: of 1500 images, to 1 % even in the second shell, of 12 components. SNR is that of
    images of contrast one.
    """
    particles = Particles.open(made / "particles.star")
    source = particle_set.of_model(molecule, BOX, SIZE, b_factor=60, solvent=0.3, point_mass=1e-3)
    flat = (
        source.project(particles.views.rotation, particles.views.origin).double() * record["gain"]
    )
    signal = torch.fft.irfft2(
        torch.fft.rfft2(flat) * ctf(particles.views.optics, BOX, SIZE), s=(BOX, BOX)
    )
    assert signal.var().item() == pytest.approx(2.0, rel=1e-4)
    a, b = (torch.tensor(record[name]).double() for name in ("contrast", "background"))
    assert (a.mean().item(), a.std().item()) == (
        pytest.approx(1.0, abs=0.02),
        pytest.approx(0.2, rel=0.08),
    )
    assert (b.mean().item(), b.std().item()) == (
        pytest.approx(0.0, abs=0.05),
        pytest.approx(0.5, rel=0.08),
    )
    rest = (
        particles.images(torch.arange(1500)).double() - a[:, None, None] * signal - b[:, None, None]
    )
    assert rest.var().item() == pytest.approx(1.0, rel=0.02)
    shell = grids.noise_shells(BOX).flatten()
    power = (torch.fft.fft2(rest).abs().square() / BOX**2).flatten(1).mean(0)
    spectrum = torch.zeros(BOX // 2 + 1).double().index_add(0, shell, power) / torch.bincount(shell)
    expected = torch.tensor(record["noise_spectrum"]).double()
    torch.testing.assert_close(
        spectrum, expected, rtol=0.1, atol=0
    )  # one component of 1500 images: 3.7 %
    torch.testing.assert_close(spectrum[2:], expected[2:], rtol=0.03, atol=0)


@pytest.mark.parametrize("box", [24, 25])
def test_spectra(box):
    """White is flat, coloured falls all the way, and the variance of a pixel is one for both."""
    white, coloured = (Exposure(noise=name).spectrum(box) for name in ("white", "coloured"))
    assert (white == 1).all() and (coloured.diff() < 0).all() and coloured[0] > 3 * coloured[-1]

    def at(shell):
        return 0.25 + 1 / (1 + (shell / (box / 2) / 0.15) ** 2)

    assert (coloured[12] / coloured[3]).item() == pytest.approx(at(12) / at(3))
    assert coloured[grids.noise_shells(box)].mean().item() == pytest.approx(1.0)
    noise = Exposure(noise="coloured").draw(400, box, torch.Generator().manual_seed(0))
    assert noise.var().item() == pytest.approx(1.0, rel=0.02)


def test_a_set_can_be_reconstructed(molecule, tmp_path):
    assert (
        instamap(
            "simulate",
            molecule,
            "--box",
            BOX,
            "--pixel",
            SIZE,
            "-n",
            300,
            "--snr",
            1,
            "-o",
            tmp_path / "set",
        ).code
        == 0
    )
    outcome = instamap(
        "reconstruct", tmp_path / "set" / "particles.star", "-o", tmp_path / "out", *QUICK
    )
    assert outcome.code == 0, outcome.err
    curve = fsc.fsc(maps(tmp_path / "out")["map"], mrc.read(tmp_path / "set" / "truth.mrc")[0])
    assert (
        curve[:9].min() > 0.85
    )  # of 12 shells; a mirror image or an inverted one would not get far


def test_a_map_and_the_poses_of_an_earlier_set(made, tmp_path):
    outcome = instamap(
        "simulate", made / "truth.mrc", "--poses", made / "particles.star", "-n", 20, "-o", tmp_path
    )
    assert outcome.code == 0, outcome.err
    said = tomllib.loads((tmp_path / "simulate.toml").read_text())
    assert said["poses"] == str(made / "particles.star") and not {
        "shift",
        "centre",
        "contrast",
        "background",
    } & set(said)
    assert Particles.open(tmp_path / "particles.star").images(torch.arange(20)).shape == (
        20,
        BOX,
        BOX,
    )


def test_the_seed_decides(molecule, tmp_path):
    def make(name, seed):
        return instamap(
            "simulate",
            molecule,
            "-n",
            4,
            "--box",
            24,
            "--pixel",
            4,
            "--seed",
            seed,
            "-o",
            tmp_path / name,
        )

    assert [make(name, seed).code for name, seed in (("one", 1), ("same", 1), ("other", 2))] == [
        0,
        0,
        0,
    ]

    # the header has the time in it
    def content(name, file):
        return (tmp_path / name / file).read_bytes()[1024:]

    assert (
        content("one", "particles.mrcs")
        == content("same", "particles.mrcs")
        != content("other", "particles.mrcs")
    )


def test_nothing_is_replaced_unless_forced_and_no_source_ever(molecule, tmp_path):
    def call(*words):
        return instamap("simulate", *words, "-n", 2, "-o", tmp_path)

    small = ("--box", 24, "--pixel", 4)
    assert call(molecule, *small).code == 0
    assert (
        "already holds particles; choose another or add --force" in call(molecule, *small).refusal
    )
    assert call(molecule, *small, "--force").code == 0
    truth = tmp_path / "truth.mrc"
    star = tmp_path / "particles.star"
    refusal = call(truth, "--force").refusal
    assert f"'{truth}' is read and belongs to what '{tmp_path}' holds" in refusal
    refusal = call(molecule, *small, "--poses", star, "--force").refusal
    assert f"'{star}' is read and belongs to what '{tmp_path}' holds" in refusal


def test_files_of_others_are_never_replaced(molecule, tmp_path):
    """Not even with --force, which replaces what an earlier call wrote."""
    (tmp_path / "truth.mrc").write_text("mine")
    words = ("simulate", molecule, "-n", 2, "--box", 24, "--pixel", 4, "-o", tmp_path, "--force")
    assert "has a file 'truth.mrc' that particles would replace" in instamap(*words).refusal
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--box", 7), "box is 7; it must be at least 8"),
        (("--pixel", 0), "pixel_size is 0.0; it must be above 0"),
        (
            ("--box", 16, "--pixel", 2),
            (
                "reaches 30 Å from its centre, but a box of 16 pixels of 2 Å only 16 Å; give a"
                " --box of at least 30"
            ),
        ),
        (("-n", 0), "count is 0; it must be at least 1"),
        (("--snr", 0), "snr is 0.0; it must be above 0"),
        (("--noise", "pink"), "noise is 'pink'; choose white or coloured"),
        (("--defocus", "2:1"), "defocus is 2 to 1 Å; give the lower end first"),
        (("--defocus", "deep"), "defocus is 'deep'; give Å, or LOW:HIGH, such as 8000:20000"),
        (("--shift", -1), "shift is -1.0; it must be at least 0"),
        (("--scale", -1), "scale is -1.0; it is a standard deviation and must be at least 0"),
        (("--offset", "nan"), "offset is nan; it is a standard deviation and must be at least 0"),
        (("--b-factor", -3), "b_factor is -3.0; it must be at least 0 Å²"),
        (("--solvent", 1.5), "solvent is 1.5; it must be from 0 to 1"),
        (("--point-mass", -0.1), "point_mass is -0.1; it must be from 0 to 1"),
        (("--seed", -1), "seed is -1; it must be from 0 to 2147483647"),
        (
            ("--seed", "99999999999999999999"),
            "seed is 99999999999999999999; it must be from 0 to 2147483647",
        ),
        (("--poses", "no.star"), "no.star"),
        (
            ("--poses", "no.star", "--defocus", 9000),
            (
                "defocus is given, but poses come from 'no.star', which has its own; leave out"
                " --defocus"
            ),
        ),
        (
            ("--poses", "no.star", "--shift", 1),
            "shift is given, but poses come from 'no.star', which has its own; leave out --shift",
        ),
    ],
)
def test_values_that_make_no_sense(molecule, tmp_path, words, said):
    assert said in instamap("simulate", molecule, *words, "-o", tmp_path / "out").refusal
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", [-1, 2**31, 99999999999999999999])
def test_the_demo_has_the_same_seeds(tmp_path, seed):
    assert (
        f"seed is {seed}; it must be from 0 to 2147483647"
        in instamap("demo", "-o", tmp_path / "out", "--seed", seed).refusal
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--solvent", 0.6),
            (
                "solvent is 0.6, but '.*truth.mrc' is taken for a map, which has no atoms; leave"
                " out --solvent"
            ),
        ),
        (("--b-factor", 0), "b_factor is 0, but .* leave out --b-factor"),
        (
            ("--pixel", 3),
            (
                "32 pixels of 3 Å cannot be made of the map's voxels of 4 Å; leave out --box and"
                " --pixel"
            ),
        ),
        (("--box", 11, "--pixel", 4.5), "11 pixels of 4.5 Å cannot be made"),
    ],
)
def test_what_a_map_does_not_have(made, tmp_path, words, said):
    line = instamap("simulate", made / "truth.mrc", *words, "-o", tmp_path / "out").refusal
    assert re.search(said, line), line
    assert not (tmp_path / "out").exists()


def test_values_in_python(molecule):
    with pytest.raises(OptionError, match="solvent is nan"):
        particle_set.of_model(molecule, solvent=math.nan)
    assert isinstance(particle_set.of_model(molecule), Potential)
