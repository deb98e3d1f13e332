"""The doctor: names the fault of a set in which one thing was broken, and none in sound ones."""

from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
import torch
from support.command import instamap

from instamap.data.particles import Particles
from instamap.fourier.ctf import ctf
from instamap.progress import SILENT
from instamap.simulate import particle_set
from instamap.workflows.doctor import coverage, examine
from instamap.workflows.settings import Settings

COUNT = 500
BOX = 32
PIXEL = 4.0


@pytest.fixture(scope="session")
def good(tmp_path_factory) -> Path:
    """A sound set: its folder."""
    folder = tmp_path_factory.mktemp("sound")
    particle_set.demo(folder, count=COUNT, box=BOX, pixel_size=PIXEL, snr=0.1)
    return folder


@pytest.fixture
def break_set(good, tmp_path):
    """break_set(images=..., table=..., optics=...) writes the sound set anew with some of it
    changed; the STAR file's path.
    """

    def write(images=None, table=None, optics=None) -> Path:
        tables = starfile.read(good / "particles.star", always_dict=True)
        pixels = mrcfile.read(good / "particles.mrcs").copy()
        if images is not None:
            pixels = images(pixels)
        if table is not None:
            tables["particles"] = table(tables["particles"])
        if optics is not None:
            tables["optics"] = optics(tables["optics"])
        with mrcfile.new(tmp_path / "particles.mrcs") as file:
            file.set_data(pixels.astype(np.float32))
            file.set_image_stack()
        path = tmp_path / "particles.star"
        starfile.write(tables, path)
        return path

    return write


def codes(path: Path) -> list[str]:
    return [finding.code for finding in examine(Settings(particles=path)).findings]


def column(name, change):
    """A table with a column changed."""
    return lambda table: table.assign(**{name: change(table[name])})


def columns(change, *names):
    return lambda table: table.assign(**{name: change(table[name]) for name in names})


DEFOCUS = ("rlnDefocusU", "rlnDefocusV")
SHIFTS = ("rlnOriginXAngst", "rlnOriginYAngst")
ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
UNEVEN = [1] * (COUNT - 1) + [2]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"table": columns(lambda v: -v, *SHIFTS)}, "shift-sign"),
        ({"table": columns(lambda v: v + 0.5 * PIXEL, *SHIFTS)}, "centre"),
        ({"table": columns(lambda v: v - 0.5 * PIXEL, *SHIFTS)}, "centre"),
        ({"table": columns(lambda v: v + PIXEL, *SHIFTS)}, "centre"),
        ({"table": column(SHIFTS[0], lambda v: v - 0.5 * PIXEL)}, "centre"),
        ({"optics": column("rlnImagePixelSize", lambda v: 1.04 * v)}, "pixel-size"),
        ({"optics": column("rlnImagePixelSize", lambda v: 0.96 * v)}, "pixel-size"),
        ({"images": lambda images: -images}, "contrast"),
        ({"table": columns(lambda v: -v, *DEFOCUS)}, "ctf-sign"),
        ({"table": columns(lambda v: 1.5 * v, *DEFOCUS)}, "defocus"),
        ({"table": columns(lambda v: v / 10000, *DEFOCUS)}, "units"),
        ({"images": lambda images: np.roll(images[:, ::-1], 1, 1)}, "mirrored-images"),
        ({"images": lambda images: images + 2 * images.std()}, "background"),
        ({"optics": column("rlnVoltage", lambda v: 1000 * v)}, "units"),
        ({"table": columns(lambda v: 0 * v - 999, "rlnAngleRot")}, "placeholders"),
        ({"table": columns(lambda v: 0 * v, "rlnAngleRot", "rlnAngleTilt")}, "one-direction"),
        ({"table": columns(lambda v: 0 * v + 10, *ANGLES)}, "one-pose"),
        ({"optics": column("rlnSphericalAberration", lambda v: 1000 * v)}, "units"),
        ({"table": lambda table: table.assign(rlnRandomSubset=UNEVEN)}, "half-sets"),
        ({"images": lambda images: np.roll(images[:, :, ::-1], 1, 2)}, "mirrored-images"),
    ],
)
def test_one_broken_thing_is_named(break_set, changes, code):
    assert codes(break_set(**changes)) == [code]


@pytest.mark.parametrize("name", [SHIFTS[1], DEFOCUS[1], ANGLES[0]])
def test_half_a_pair_is_refused(break_set, name):
    """Without the other half nothing else can be looked at: the file cannot be read."""
    path = break_set(table=lambda table: table.drop(columns=name))
    found = instamap("doctor", path)
    assert found.code == 2
    assert name in found.err


def test_poses_of_the_inverse_rotation_are_named(break_set):
    def inverse(table):
        return table.assign(
            rlnAngleRot=-table["rlnAnglePsi"],
            rlnAngleTilt=-table["rlnAngleTilt"],
            rlnAnglePsi=-table["rlnAngleRot"],
        )

    assert codes(break_set(table=inverse)) == ["transposed-poses"]


def transfer(folder: Path) -> np.ndarray:
    """The CTF of every image of a set."""
    particles = Particles.open(folder / "particles.star")
    return ctf(particles.views.optics, particles.box, particles.pixel_size).numpy()


def filtered(images: np.ndarray, factor: np.ndarray) -> np.ndarray:
    spectrum = np.fft.rfft2(images.astype(float))
    return np.fft.irfft2(spectrum * factor, s=images.shape[1:])


def test_phase_flipped_images_are_named(good, break_set):
    sign = np.sign(transfer(good))
    assert codes(break_set(images=lambda images: filtered(images, sign))) == ["phase-flipped"]


def test_images_that_are_said_to_be_phase_flipped_and_are_not_are_named(break_set):
    path = break_set(optics=lambda optics: optics.assign(rlnCtfDataArePhaseFlipped=1))
    assert codes(path) == ["phase-flipped"]


def test_premultiplied_images_are_named(good, break_set):
    factor = transfer(good)
    assert codes(break_set(images=lambda images: filtered(images, factor))) == ["premultiplied"]


def test_images_that_are_said_to_be_premultiplied_and_are_not_are_named(break_set):
    path = break_set(optics=lambda optics: optics.assign(rlnCtfDataAreCtfPremultiplied=1))
    assert codes(path) == ["premultiplied"]


def test_copies_in_both_halves_are_named(break_set):
    def again(images):
        images[1] = images[0]
        return images

    path = break_set(
        images=again, table=lambda table: table.assign(rlnRandomSubset=[1, 2] * (COUNT // 2))
    )
    found = examine(Settings(particles=path)).findings
    assert [finding.code for finding in found] == ["copies"]
    assert found[0].is_wrong
    assert "rows 1 and 2" in str(found[0])


def test_a_wild_image_is_named(break_set):
    def hot(images):
        images[6, 5, 5] = 1e6
        return images

    found = examine(Settings(particles=break_set(images=hot))).findings
    assert [finding.code for finding in found] == ["outliers"]
    assert "row 7" in str(found[0])


def test_nothing_is_found_in_sound_sets(good, break_set, tmp_path):
    assert codes(good / "particles.star") == []
    flipped = np.sign(transfer(good))
    path = break_set(
        images=lambda images: filtered(images, flipped),
        optics=lambda optics: optics.assign(rlnCtfDataArePhaseFlipped=1),
    )
    assert codes(path) == []


def test_premultiplied_images_that_are_said_to_be_are_sound(good, break_set):
    factor = transfer(good)
    path = break_set(
        images=lambda images: filtered(images, factor),
        optics=lambda optics: optics.assign(rlnCtfDataAreCtfPremultiplied=1),
    )
    assert codes(path) == []


@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_is_found_in_other_sound_sets(tmp_path, seed):
    assert codes(particle_set.demo(tmp_path, count=500, snr=0.3 * seed, seed=seed)) == []


def test_nothing_is_found_in_real_images(shared_data):
    assert codes(shared_data / "ribosome-tilts" / "particles.star") == []


def test_metadata_without_images_are_looked_at(good, tmp_path):
    alone = tmp_path / "particles.star"
    alone.write_bytes((good / "particles.star").read_bytes())
    diagnosis = examine(Settings(particles=alone), SILENT)
    assert diagnosis.is_sound
    assert diagnosis.needs is None
    assert "images" in diagnosis.unchecked[0]
    assert diagnosis.covered == 1


def test_coverage_knows_what_is_missing():
    around = torch.linspace(0, 2 * torch.pi, 400, dtype=torch.float64)
    zero = torch.zeros_like(around)
    one = torch.ones_like(around)
    turned = torch.stack([around.cos(), around.sin(), zero, -around.sin(), around.cos(), zero], -1)
    in_plane = torch.cat([turned, torch.stack([zero, zero, one], -1)], -1).reshape(-1, 3, 3)
    assert coverage(in_plane) < 0.1
    sideways = in_plane[:, [2, 0, 1]]  # views from all around the z axis
    assert coverage(sideways) == 1


def test_the_command_ends_with_1_where_something_was_found(break_set, good, tmp_path):
    broken = break_set(optics=column("rlnVoltage", lambda v: 1000 * v))
    found = instamap("doctor", broken, "--plot", tmp_path / "views.png")
    assert found.code == 1
    assert "rlnVoltage" in found.out
    assert (tmp_path / "views.png").exists()
    sound = instamap("doctor", good / "particles.star")
    assert sound.code == 0
    assert "a run needs about" in sound.out
    assert instamap("doctor", good / "particles.mrcs").code == 2
