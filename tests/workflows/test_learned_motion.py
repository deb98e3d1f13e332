"""What fits to mini-batches have learned: coordinates of a bending as a motion, corrections of
bodies as STAR files.
"""

import json
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from support.bending import set_linear
from support.command import instamap
from support.motions import BOX, PIXEL, REACH, Blobs, blob
from torch import Tensor

from instamap.data.formats import star
from instamap.data.particles import Particles
from instamap.fitting.images import MiniBatches
from instamap.fitting.loop import FitResult, optimise
from instamap.fitting.stage import Stage
from instamap.geometry import grids, rotations
from instamap.model import Model, compose
from instamap.motion.motion_model import MotionModel
from instamap.plugin.choice import choose
from instamap.poses.correction import as_rigid, from_rigid
from instamap.scene import Views
from instamap.simulate import random_poses
from instamap.simulate.exposure import Exposure
from instamap.simulate.write_set import write_set
from instamap.statistics.particle_statistics import fewer_pixels
from instamap.testing.part import stir
from instamap.toml_text import write_toml
from instamap.workflows import per_particle
from instamap.workflows.prepare import Prepared, prepare
from instamap.workflows.settings import Settings

COUNT = 120
SNR = 0.3
TRUTH = torch.linspace(-1, 1, COUNT, dtype=torch.float64)[
    torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))
]


@pytest.fixture(scope="module")
def particles(tmp_path_factory) -> tuple[Path, float]:
    """A STAR file of a blob that moves along x, and the height of the blob in its images."""
    g = torch.Generator().manual_seed(0)
    drawn = random_poses.uniform(COUNT, shift=PIXEL, defocus=(2e3, 4e3), generator=g)
    written = write_set(
        tmp_path_factory.mktemp("set"),
        Blobs(TRUTH),
        drawn,
        Exposure(SNR),
        generator=g,
    )
    return written.star, written.gain


def prepared(
    file: Path, deformation: str, *options: str, halves: bool = True
) -> tuple[Settings, Prepared]:
    """What a fit to mini-batches of these particles would begin with."""
    settings = Settings(
        file,
        objective="images",
        workflow="map",
        representation=("voxel", {"floor": "none"}),
        deformation=choose("deformation", deformation, list(options)),
        held_out=0.25,
        halves=halves,
    )
    return settings, prepare(settings)


def made(settings: Settings, data: Prepared, gain: float) -> Model:
    """A model that has found the blob."""
    model = compose(settings.parts, data.scene).eval()
    with torch.no_grad():
        model.representation.values[0, 0] = blob() * gain / data.scene.density_scale
    return model


def written(settings: Settings, data: Prepared, models: list[Model], folder: Path) -> Path:
    """The folder of a run that ended with these models."""
    folder.mkdir()
    found = FitResult(torch.zeros(BOX, BOX, BOX), [], True)
    fits = {name: found for name in data.fits}
    named = dict(zip(data.fits, models, strict=True))
    for artefact in per_particle.learned(settings, data, fits, named):
        artefact.write(folder)
        assert {file.name for file in folder.iterdir()} == set(artefact.files())
    write_toml(folder / "run.toml", settings.record())
    return folder


def correlation(one: Tensor, two: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.double(), two.double()]))[0, 1])


@pytest.fixture(scope="module")
def table(particles, tmp_path_factory) -> tuple[Path, Prepared]:
    """A run whose halves have the coordinates z and -2 z of their own particles in their tables,
    and no idea of others'.
    """
    file, gain = particles
    settings, data = prepared(file, "bending-field", "points=5")
    models = []
    for rows, scale in zip((e.rows for e in data.fits.values()), (1.0, -2.0), strict=True):
        model = made(settings, data, gain)
        set_linear(model.deformation, (torch.zeros(3, 3), [-REACH / scale, 0, 0]))
        with torch.no_grad():
            model.deformation.table[rows, 0] = scale * TRUTH[rows].float()
        models.append(model)
    return written(settings, data, models, tmp_path_factory.mktemp("table") / "run"), data


def test_coordinates_of_a_table_are_related_by_the_held_out_particles(table):
    """The halves' scales differ by -2, which the held-out particles tell to a tenth or so: there
    are thirty, some seen along the motion.
    """
    run, data = table
    motion = MotionModel.open(run)
    one, two = motion.halves
    assert float(two.turn) == pytest.approx(-2, rel=0.2) and float(two.offset) == pytest.approx(
        0, abs=0.2
    )
    for half, own_data in zip(motion.halves, data.fits.values(), strict=True):
        own = half.to_own(motion.latents[own_data.rows].float())[:, 0]
        torch.testing.assert_close(
            own, (1.0 if half is one else -2.0) * TRUTH[own_data.rows].float(), atol=1e-5, rtol=0
        )
    out = next(iter(data.fits.values())).held_out
    assert correlation(motion.latents[out, 0], TRUTH[out]) > 0.95, (
        "they come from the images: their rows of the table are noise"
    )
    said = json.loads((run / "motion.json").read_text())
    assert said["coordinates"] == 1 and said["agreement"] > 0.9


def test_commands_read_it_as_a_motion(table, particles, tmp_path):
    run, data = table
    assert instamap("states", run, "-o", tmp_path / "states", "--path", 3, "--frames", 0).code == 0
    done = instamap("audit", run, "-o", tmp_path / "audit")
    assert done.code == 0 and "verdict: to be believed" in done.out, done
    moved = json.loads((tmp_path / "audit" / "audit.json").read_text())["states"][-1][
        "displacement_max"
    ]
    assert moved == pytest.approx(0.9 * REACH, rel=0.15)  # from the median to the 95th percentile
    assert instamap("infer", run, particles[0], "-o", tmp_path / "again").code == 0
    again, z = (
        torch.from_numpy(np.load(folder / "latents.npy"))[:, 0]
        for folder in (tmp_path / "again", run)
    )
    assert correlation(again, z) > 0.95 and float((again - z).abs().median()) < 0.15


def test_coordinates_from_images_are_the_networks(particles, tmp_path):
    """Both halves have one network but for an affine map of its output, which is found exactly."""
    file, gain = particles
    settings, data = prepared(file, "bending-field", "points=5", "from=image", "latent=2")
    one, two = (made(settings, data, gain) for _ in range(2))
    for model in (one, two):
        set_linear(
            model.deformation,
            (torch.zeros(3, 3), [-REACH, 0, 0]),
            (torch.zeros(3, 3), [0, -REACH, 0]),
        )
    stir(one.deformation.encoder, torch.Generator().manual_seed(2))
    two.deformation.encoder.load_state_dict(one.deformation.encoder.state_dict())
    mix = torch.tensor([[0.5, -1.0], [2.0, 0.3]])
    shift = torch.tensor([0.2, -0.1])
    last = two.deformation.encoder.decide[-1]
    with torch.no_grad():
        last.weight.copy_(mix @ last.weight)
        last.bias.copy_(mix @ last.bias + shift)
    motion = MotionModel.open(written(settings, data, [one, two], tmp_path / "run"))
    batch = data.particles.batch(torch.arange(COUNT))
    with torch.no_grad():
        expected = one.deformation.latent(batch.views, batch.images)
    assert expected.std() > 1e-3
    torch.testing.assert_close(
        motion.latents.float(), expected, atol=1e-4 * float(expected.std()), rtol=1e-3
    )
    torch.testing.assert_close(motion.halves[1].turn, mix, atol=1e-2, rtol=1e-2)
    with torch.no_grad():
        for half in motion.halves:  # conformations by which new particles are placed
            assert (
                half.coarse_maps.shape == (len(half.nodes), BOX, BOX, BOX)
                and 1 < len(half.nodes) <= 45
            )


def test_one_fit_is_a_motion_of_one_half(particles, tmp_path):
    file, gain = particles
    settings, data = prepared(file, "bending-field", "points=5", "from=image", halves=False)
    run = written(settings, data, [made(settings, data, gain)], tmp_path / "run")
    motion = MotionModel.open(run)
    assert len(motion.halves) == 1 and not motion.latents.any() and len(motion.halves[0].nodes) == 1
    assert json.loads((run / "motion.json").read_text()) == {"coordinates": 1, "agreement": None}
    done = instamap("states", run, "-o", tmp_path / "states")
    assert done.code == 0 and "there is one state" in done.out


@pytest.mark.parametrize("source", ["table", "image"])
def test_what_a_fit_of_some_steps_leaves_is_a_motion(particles, tmp_path, source):
    """The kept model is the objective's running average; coordinates of its own particles are those
    that it was evaluated with.
    """
    settings, data = prepared(
        particles[0], "bending-field", "points=5", f"from={source}", "latent=2"
    )
    models = []
    for own_data in data.fits.values():
        torch.manual_seed(len(models))
        model = compose(settings.parts, data.scene)
        options = MiniBatches.Options(evaluate_every=8, batch=8, average=0.5)
        objective = MiniBatches(options, model, own_data)
        optimise(model, objective, (Stage(steps=8),), generator=torch.Generator().manual_seed(0))
        models.append(objective.average)
    run = written(settings, data, models, tmp_path / "run")
    motion = MotionModel.open(run)
    assert motion.latents.shape == (COUNT, 2) and motion.latents.isfinite().all()
    for half, model, own_data in zip(motion.halves, models, data.fits.values(), strict=True):
        batch = data.particles.batch(own_data.rows)
        with torch.no_grad():
            torch.testing.assert_close(
                half.to_own(motion.latents[own_data.rows].float()),
                model.deformation.latent(batch.views, batch.images),
                atol=1e-4,
                rtol=1e-3,
            )
            at = half.nodes[0]
            torch.testing.assert_close(half.model.raster(at[None]), model.raster(at[None]))
    assert (
        instamap("states", run, "-o", tmp_path / "states", "--kmeans", 2, "--frames", 0).code == 0
    )


# Rigid bodies


def landed(x: Tensor, rotation: Tensor, origin: Tensor) -> Tensor:
    """Where in the image "n P 2" points "n P 3" are seen."""
    return (x @ rotation.mT)[..., :2] - origin[:, None]


def test_corrections_in_a_plane_are_what_the_deformation_does():
    """Seen in the image, x that is looked up at y = exp(ω)(x - c) + c + t is where y is at the
    corrected pose; and back again.
    """
    g = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    views = Views.of(rotations.random(9, generator=g), draw(9, 2))
    z = 0.3 * draw(9, 6)
    centre = 5 * draw(3)
    x = draw(9, 4, 3)
    turn = rotations.from_rotvec(z[:, :3])
    for c in (None, centre):
        about = torch.zeros(3) if c is None else c
        y = (x - about) @ turn.mT + about + z[:, None, 3:]
        z5 = from_rigid(views, z, c)
        found = landed(y, views.rotation @ turn.mT, views.origin + z5[:, 3:])
        torch.testing.assert_close(found, landed(x, views.rotation, views.origin))
    z5 = draw(9, 5)
    torch.testing.assert_close(from_rigid(views, as_rigid(views, z5)), z5)


def poses_of(file: Path) -> tuple[Tensor, Tensor]:
    read = star.read(file)
    return read.rotation, read.origin


@pytest.mark.parametrize("source", ["table", "image"])
def test_a_whole_particle_has_new_poses(particles, tmp_path, source):
    file, gain = particles
    settings, data = prepared(file, "rigid", f"from={source}")
    models = [made(settings, data, gain) for _ in data.fits]
    for number, model in enumerate(models):
        part = model.deformation.encoder if source == "image" else model.deformation
        stir(part, torch.Generator().manual_seed(number), 0.3)
    run = written(settings, data, models, tmp_path / "run")
    assert {p.name for p in run.iterdir()} == {"particles_refined.star", "run.toml"}
    rotation, origin = poses_of(run / "particles_refined.star")
    views = data.particles.views
    x = 10 * torch.randn(
        COUNT, 5, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    for model, own_data in zip(models, data.fits.values(), strict=True):
        batch = data.particles.batch(own_data.rows)
        some = own_data.rows
        with torch.no_grad():
            y = model.deformation(
                x[some].float(), model.deformation.latent(batch.views, batch.images)
            ).double()
        assert float((y - x[some]).norm(dim=-1).mean()) > 0.1
        seen = landed(x[some], views.rotation[some], views.origin[some])
        torch.testing.assert_close(
            landed(y, rotation[some], origin[some]), seen, atol=1e-4, rtol=0
        )  # six decimals of degrees and Å
    out = own_data.held_out
    same = torch.isclose(origin[out], views.origin[out], atol=1e-6).all()
    assert bool(same) == (source == "table"), (
        "a table knows nothing of held-out particles, a network does"
    )


def test_each_body_has_poses_of_its_own(particles, tmp_path):
    file, gain = particles
    names = []
    for number, place in enumerate(((-12.0, 0.0, 4.0), (12.0, 4.0, 0.0)), 1):
        mask = ((grids.voxel_centres(BOX, PIXEL) - torch.tensor(place)).norm(dim=-1) < 11).float()
        names.append(tmp_path / f"{number}.mrc")
        with mrcfile.new(names[-1]) as out:
            out.set_data(mask.numpy())
            out.voxel_size = PIXEL
    settings, data = prepared(file, "rigid", f"bodies={names[0]},{names[1]}")
    models = [made(settings, data, gain) for _ in data.fits]
    for number, model in enumerate(models):
        stir(
            model.deformation, torch.Generator().manual_seed(number), 2.0
        )  # entries stand for 1° and 1 Å
    run = written(settings, data, models, tmp_path / "run")
    assert {p.name for p in run.iterdir()} == {
        "bodies.npy",
        "particles_body1.star",
        "particles_body2.star",
        "run.toml",
    }
    z = torch.from_numpy(np.load(run / "bodies.npy"))
    views = data.particles.views
    assert z.shape == (COUNT, 2, 6) and float(
        torch.rad2deg(z[..., :3].double()).std()
    ) == pytest.approx(2 * 0.75**0.5, rel=0.1)
    g = torch.Generator().manual_seed(4)
    for number, place in enumerate(models[0].deformation.bodies.centre):
        rotation, origin = poses_of(run / f"particles_body{number + 1}.star")
        x = place + 0.7 * torch.randn(
            COUNT, 6, 3, generator=g
        )  # within the mask, wherever it has gone to
        for model, own_data in zip(models, data.fits.values(), strict=True):
            some = own_data.rows
            with torch.no_grad():
                y = model.deformation(
                    x[some], model.deformation.latent(views[some].to(torch.float32))
                )
            seen = landed(x[some].double(), views.rotation[some], views.origin[some])
            torch.testing.assert_close(
                landed(y.double(), rotation[some], origin[some]), seen, atol=1e-3, rtol=0
            )


def test_nothing_is_written_of_other_deformations(particles, tmp_path):
    file, gain = particles
    settings, data = prepared(file, "identity")
    assert {
        p.name
        for p in written(
            settings, data, [made(settings, data, gain)] * 2, tmp_path / "run"
        ).iterdir()
    } == {"run.toml"}


@pytest.mark.parametrize(
    ("box", "pixel", "coarse"), [(60, 5.0, 30), (60, 2.0, 24), (20, 2.0, 20), (30, 12.0, 30)]
)
def test_images_are_placed_at_low_resolution(
    tmp_path, write_star, write_stack, make_particle, make_optics, box, pixel, coarse
):
    """In pixels of 10 Å, but in a box of 24 at least, if the images have as many."""
    write_stack(tmp_path / "stack.mrcs", np.zeros((1, box, box), np.float32))
    tables = {"optics": [make_optics(rlnImagePixelSize=pixel)], "particles": [make_particle()]}
    settings = Settings(write_star(tmp_path / "particles.star", tables))
    found = fewer_pixels(Particles.open(settings.particles), 10.0)
    assert found.box == coarse and found.box * found.pixel_size == pytest.approx(box * pixel)
