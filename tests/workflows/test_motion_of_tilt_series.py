"""Motion of particles that are seen in several tilts: all images of one have its coordinates, with
nothing said about it.
"""

import math
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
import torch
from scipy.stats import spearmanr
from support.command import instamap
from support.swinging import SwingingLobe

from instamap.data.particles import Particles
from instamap.simulate import particle_set
from instamap.simulate.exposure import Exposure
from instamap.workflows.prepare import open_dataset
from instamap.workflows.settings import Settings

PARTICLES = 300
TILTS = 4
COUNT = PARTICLES * TILTS
DEGREES = 60.0
OF_TILTS = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift")


def row_vector(values) -> str:
    return "[" + ",".join(repr(float(value)) for value in values) + "]"


def as_tilt_series(folder: Path) -> Path:
    """The optimisation set of a set of single images, each TILTS of which are those of a particle
    that lies in a tomogram of its own as its reference does.
    """
    plain = Particles.open(folder / "particles.star")
    tables = starfile.read(folder / "particles.star", always_dict=True)
    images = mrcfile.read(folder / "particles.mrcs")
    names = [f"TS_{number}" for number in range(PARTICLES)]
    tomograms = {
        "global": {
            "rlnTomoName": names,
            "rlnTomoHand": [-1.0] * PARTICLES,
            "rlnTomoTiltSeriesPixelSize": [plain.pixel_size] * PARTICLES,
        }
    }
    for number, name in enumerate(names):
        rows = slice(number * TILTS, (number + 1) * TILTS)
        tilts = {column: tables["particles"][column][rows].tolist() for column in OF_TILTS}
        for axis, letter in enumerate("XYZ"):
            vectors = plain.views.rotation[rows, axis].tolist()
            tilts[f"rlnTomoProj{letter}"] = [row_vector([*vector, 0.0]) for vector in vectors]
        tomograms[name] = tilts
        with mrcfile.new(folder / f"{number}.mrcs") as file:
            file.set_data(images[rows])
            file.set_image_stack()
    particles = {
        "rlnTomoName": names,
        "rlnOpticsGroup": [1] * PARTICLES,
        "rlnImageName": [f"{number}.mrcs" for number in range(PARTICLES)],
        "rlnTomoVisibleFrames": [row_vector([1] * TILTS)] * PARTICLES,
    }
    for name in ("AngleRot", "AngleTilt", "AnglePsi", "OriginXAngst", "OriginYAngst"):
        particles[f"rln{name}"] = [0.0] * PARTICLES
    for axis in "XYZ":
        particles[f"rlnCenteredCoordinate{axis}Angst"] = [0.0] * PARTICLES
    write(folder / "tilts.star", {"optics": tables["optics"], "particles": particles})
    write(folder / "tomograms.star", tomograms)
    path = folder / "optimisation_set.star"
    path.write_text(
        "data_\n\n_rlnTomoParticlesFile tilts.star\n_rlnTomoTomogramsFile tomograms.star\n"
    )
    return path


def write(path: Path, tables: dict[str, dict]) -> None:
    lines = []
    for name, columns in tables.items():
        lines += [f"data_{name}", "", "loop_", *(f"_{column}" for column in columns)]
        rows = zip(*(list(columns[column]) for column in columns), strict=True)
        lines += [" ".join(map(str, row)) for row in rows]
        lines.append("")
    path.write_text("\n".join(lines))


@pytest.fixture(scope="module")
def swinging(tmp_path_factory) -> tuple[Path, torch.Tensor]:
    """A tilt series of particles whose lobe swings, and each image's angle."""
    folder = tmp_path_factory.mktemp("tilts")
    drawn = torch.rand(PARTICLES, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    angle = ((2 * drawn - 1) * math.radians(DEGREES)).repeat_interleave(TILTS)
    plan = particle_set.Plan(COUNT, shift=0.0)
    particle_set.simulate(folder, SwingingLobe(angle), plan, Exposure(0.5), seed=3)
    return as_tilt_series(folder), angle


def test_particles_are_in_one_set_each(swinging):
    dataset = open_dataset(Settings(particles=swinging[0]))
    number = torch.arange(COUNT) // TILTS
    sets = [*dataset.rows.values(), dataset.held_out]
    assert len(torch.cat(sets)) == COUNT
    for rows in sets:
        assert len(number[rows].unique()) * TILTS == len(rows)


@pytest.mark.slow
def test_images_of_a_particle_share_its_coordinates(swinging, tmp_path):
    path, angle = swinging
    out = tmp_path / "out"
    outcome = instamap(
        "reconstruct", path, "-o", out, "--deform", "bending-field", "-O", "steps=80"
    )
    assert outcome.code == 0, outcome
    z = np.load(out / "latents.npy").reshape(PARTICLES, TILTS, -1)
    assert z.shape[2] == 1
    assert (z == z[:, :1]).all()
    assert abs(spearmanr(z[:, 0, 0], angle[::TILTS]).statistic) > 0.85
    placed = instamap("infer", out, path, "-o", tmp_path / "placed")
    assert placed.code == 0, placed
    again = np.load(tmp_path / "placed" / "latents.npy").reshape(PARTICLES, TILTS, -1)
    assert (again == again[:, :1]).all()
    assert np.corrcoef(again[:, 0, 0], z[:, 0, 0])[0, 1] > 0.97
